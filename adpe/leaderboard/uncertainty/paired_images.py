"""Per-image statistics as `adpe.evaluations.metrics.per_image` writes them, and metrics of any draw of those images."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from adpe.errors import UserError
from adpe.leaderboard.uncertainty.images import bootstrap_difference, mean_iou
from adpe.leaderboard.uncertainty.seeds import Difference

THRESHOLDS = 10  # IoU 0.50 to 0.95
_RECALLS = np.linspace(0.0, 1.0, 101)

Metric = Callable[[np.ndarray], float]


def read_per_image(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays of a file of per-image statistics; nothing in it is executed.

    Raises:
        UserError: if it is missing, cannot be read or is not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"{path}: the file of per-image statistics that the record names does not exist.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as per-image statistics: {error}") from None
    if "images" not in arrays or not {"intersection", "bbox/score", "segm/score", "rank", "targets"} & set(arrays):
        raise UserError(f"{path} holds no per-image statistics (arrays: {', '.join(arrays) or 'none'}).")
    return arrays


def metrics_of(arrays: dict[str, np.ndarray], images: np.ndarray) -> dict[str, Metric]:
    """Metric name -> function of drawn positions in `images` (names), in shown units (percent)."""
    position = {str(name): index for index, name in enumerate(arrays["images"])}
    order = np.asarray([position[str(name)] for name in images], dtype=np.int64)
    if "intersection" in arrays:
        areas = np.stack([arrays["intersection"], arrays["union"]], axis=-1)[order]
        return {"mIoU": lambda drawn: mean_iou(areas[drawn])}
    if "rank" in arrays:
        ranks = {name.removesuffix("rank") + "top1": array for name, array in arrays.items() if name.endswith("rank")}
        return {name: _Share(array[order] == 0) for name, array in ranks.items()}
    if "targets" in arrays:
        return {"mAP": _RankedPrecision(arrays["scores"][order], arrays["targets"][order])}
    kinds = [kind for kind in ("bbox", "segm") if f"{kind}/score" in arrays]
    return {f"{kind}_mAP": _AveragePrecision(arrays, kind, order) for kind in kinds}


def compare_images(
    a: str | Path, b: str | Path, names: Iterable[str], *, confidence: float = 0.95, resamples: int = 1000
) -> dict[str, Difference]:
    """Paired bootstrap over images of the difference ``a - b``, for those of the metrics that both files hold.

    Raises:
        UserError: if a file cannot be read or they are of different images.
    """
    first, second = read_per_image(a), read_per_image(b)
    images = np.sort(first["images"])
    if not np.array_equal(images, np.sort(second["images"])):
        common = len(np.intersect1d(images, second["images"]))
        raise UserError(
            f"{a} and {b} are of different images ({len(images)} and {len(second['images'])}, {common} in common): "
            "evaluate both on the same ones."
        )
    ours, others = metrics_of(first, images), metrics_of(second, images)
    differences = {}
    for name in names:
        if name in ours and name in others:
            x, y = ours[name], others[name]
            differences[name] = bootstrap_difference(
                lambda drawn, x=x, y=y: x(drawn) - y(drawn),  # type: ignore[misc]
                len(images),
                confidence=confidence,
                resamples=resamples,
            )
    return differences


class _Share:
    """Percent of the images drawn that are right."""

    def __init__(self, right: np.ndarray) -> None:
        self.right = 100.0 * right

    def __call__(self, drawn: np.ndarray) -> float:
        return float(self.right[drawn].mean())


class _AveragePrecision:
    """COCO's AP at IoU 0.50:0.95 in percent, over all areas and at most 100 detections per image and category.

    An image that is drawn twice counts twice: every detection weighs as often as its image was drawn, which gives what
    pycocotools' accumulate would on the repeated list.
    """

    def __init__(self, arrays: dict[str, np.ndarray], kind: str, order: np.ndarray) -> None:
        own = {name.split("/")[1]: array for name, array in arrays.items() if name.startswith(f"{kind}/")}
        self.order, self.images = order, len(arrays["images"])
        self.classes = len(arrays["classes"])
        self.truth = own["truth_image"], own["truth_category"], own["truth_count"]
        bits = np.arange(THRESHOLDS)[:, None]
        self.by_class = []
        for category in range(self.classes):
            chosen = np.flatnonzero(own["category"] == category)
            chosen = chosen[np.argsort(-own["score"][chosen], kind="stable")]
            matched = (own["matched"][chosen] >> bits & 1).astype(bool)
            counted = ~(own["ignored"][chosen] >> bits & 1).astype(bool)
            self.by_class.append((own["image"][chosen], matched & counted, ~matched & counted))

    def __call__(self, drawn: np.ndarray) -> float:
        weights = np.bincount(self.order[drawn], minlength=self.images)
        image, category, count = self.truth
        truths = np.bincount(category, weights[image] * count, minlength=self.classes)
        values = []
        for number, (images, true, false) in zip(truths, self.by_class, strict=True):
            if number == 0:
                continue
            weight = weights[images]
            hits, misses = np.cumsum(true * weight, axis=1), np.cumsum(false * weight, axis=1)
            precision = hits / np.maximum(hits + misses, np.spacing(1))
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            for recall, row in zip(hits / number, precision, strict=True):
                at = np.searchsorted(recall, _RECALLS, side="left")
                values.append(float(np.append(row, 0.0)[at].mean()))
        return 100.0 * float(np.mean(values)) if values else float("nan")


class _RankedPrecision:
    """mAP in percent of classes that have a positive, without unknown labels; an image drawn twice counts twice."""

    def __init__(self, scores: np.ndarray, targets: np.ndarray) -> None:
        self.images = len(scores)
        self.by_class = []
        for label in range(scores.shape[1]):
            known = np.flatnonzero(targets[:, label] >= 0)
            order = known[np.argsort(-scores[known, label], kind="stable")]
            self.by_class.append((order, targets[order, label] == 1))

    def __call__(self, drawn: np.ndarray) -> float:
        times = np.bincount(drawn, minlength=self.images)
        values = []
        for order, positive in self.by_class:
            hits = np.repeat(positive, times[order])
            if hits.any():
                values.append(float((hits.cumsum() / np.arange(1, len(hits) + 1))[hits].mean()))
        return 100.0 * float(np.mean(values)) if values else float("nan")
