"""COCO's AP to the last digit: mmdet rounds it to 0.1 before anybody can take a mean or an interval of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmdet.evaluation.metrics import coco_metric
from mmengine.registry import METRICS

# Positions in pycocotools' `stats` of the names that mmdet gives them.
STATS = {"mAP": 0, "mAP_50": 1, "mAP_75": 2, "mAP_s": 3, "mAP_m": 4, "mAP_l": 5}


@METRICS.register_module()
class AdPECocoMetric(coco_metric.CocoMetric):
    """mmdet's `CocoMetric`, with the APs as ``COCOeval.stats`` has them: fractions, -1 where there is no object."""

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
