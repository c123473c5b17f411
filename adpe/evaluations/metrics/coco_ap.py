"""COCO's AP to the last digit: mmdet rounds it to 0.1 before anybody can take a mean or an interval of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmdet.evaluation.metrics import coco_metric
from mmengine.registry import METRICS

from adpe.data.checks.coco import checked_coco

# Positions in pycocotools' `stats` of the names that mmdet gives them.
STATS = {"mAP": 0, "mAP_50": 1, "mAP_75": 2, "mAP_s": 3, "mAP_m": 4, "mAP_l": 5}


@METRICS.register_module()
class AdPECocoMetric(coco_metric.CocoMetric):
    """mmdet's `CocoMetric` over a checked JSON, with the APs as ``COCOeval.stats`` has them, not rounded.

    APs are fractions, -1 where there is no object. Categories are matched with the classes of the predictions
    by name.

    Args:
        ann_file: the JSON with the ground truth; None takes it from the data samples, as in `CocoMetric`.
        label_policy: ``"strict"``, ``"repair"`` or ``"report"``: what is done about annotations that are wrong; see
            `adpe.data.checks.coco.checked_coco`.
        kwargs: as in `CocoMetric`.

    Raises:
        UserError: if the JSON is not as expected, or has none of the classes.
    """

    def __init__(self, ann_file: str | None = None, label_policy: str = "repair", **kwargs: Any) -> None:
        metrics = kwargs.get("metric", "bbox")
        self._options: dict[str, Any] = {
            "policy": label_policy,
            "with_mask": "segm" in ([metrics] if isinstance(metrics, str) else metrics),
            "without_annotations": bool(kwargs.get("format_only")),
        }
        self._source = None if ann_file is None or kwargs.get("backend_args") is not None else ann_file
        if self._source is not None:
            ann_file = str(checked_coco(self._source, **self._options).json)
        self._coco_api: Any = None
        super().__init__(ann_file=ann_file, **kwargs)

    @property
    def dataset_meta(self) -> dict[str, Any] | None:
        """Meta information of the data set, with the classes that labels are indices of."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict[str, Any]) -> None:
        self._dataset_meta = dataset_meta
        classes = tuple((dataset_meta or {}).get("classes") or ())
        if self._source is None or not classes:
            return
        checked = checked_coco(self._source, classes=classes, **self._options)
        found = [c["name"] for c in self._coco_api.dataset["categories"] if c["name"] in set(classes)]
        if found != list(classes):
            self._coco_api = type(self._coco_api)(str(checked.json))
            self.cat_ids = None

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """As mmdet's, `results` of every image."""
        with _kept_stats() as kept:
            metrics = super().compute_metrics(results)
        for kind, stats in kept:
            names = {f"{kind}_{name}": index for name, index in STATS.items()}
            metrics.update({name: float(stats[index]) for name, index in names.items() if name in metrics})
        return metrics


@contextmanager
def _kept_stats() -> Iterator[list[tuple[str, Sequence[float]]]]:
    """Collect the type and the ``stats`` of every evaluation that `CocoMetric` makes inside."""
    kept: list[tuple[str, Sequence[float]]] = []

    def keeping(evaluation: type[Any]) -> type[Any]:
        class Keeping(evaluation):  # type: ignore[misc]
            def summarize(self, *args: Any, **kwargs: Any) -> None:
                super().summarize(*args, **kwargs)
                kept.append((self.params.iouType, self.stats))

        return Keeping

    # The two classes of which `CocoMetric` makes one.
    before = coco_metric.COCOeval, coco_metric.COCOevalMP
    coco_metric.COCOeval, coco_metric.COCOevalMP = map(keeping, before)
    try:
        yield kept
    finally:
        coco_metric.COCOeval, coco_metric.COCOevalMP = before
