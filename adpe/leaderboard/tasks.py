"""What the recorded metrics are called, in which unit they are shown and which direction is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """How a recorded metric is shown.

    Attributes:
        label: the reader's name for it.
        scale: factor from the recorded to the shown value; mmdet reports AP as a fraction, papers in percent.
        higher_is_better: direction of the ranking.
        digits: decimals shown.
    """

    label: str
    scale: float = 1.0
    higher_is_better: bool = True
    digits: int = 2


METRICS: dict[str, Metric] = {
    "mIoU": Metric("mIoU"),
    "mIoU_ms": Metric("mIoU, multi-scale"),
    "top1": Metric("top-1"),
    "top5": Metric("top-5"),
    "mAcc": Metric("mean accuracy"),
    "aAcc": Metric("pixel accuracy"),
    **{
        f"{kind}_mAP{suffix}": Metric(f"{label} AP{shown}", scale=100.0)
        for kind, label in (("bbox", "box"), ("segm", "mask"))
        for suffix, shown in {"": "", "_50": "50", "_75": "75", "_s": " small", "_m": " medium", "_l": " large"}.items()
    },
    "loss": Metric("loss", higher_is_better=False, digits=4),
}
# The ones a table shows; a task that is not here, or has none of them, shows all it has.
MAIN_METRICS: dict[str, tuple[str, ...]] = {
    "segmentation": ("mIoU", "mIoU_ms"),
    "classification": ("top1",),
    "detection": ("bbox_mAP", "segm_mAP"),
    "pretrain": ("loss",),
}


def metric_of(name: str) -> Metric:
    """How the recorded metric `name` is shown; an unknown one as it is."""
    return METRICS.get(_short(name), Metric(name))


def short_names(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Known metrics without the evaluator's prefix: ``"coco/bbox_mAP"`` becomes ``"bbox_mAP"``."""
    return {_short(name): value for name, value in metrics.items()}


def is_defined(name: str, value: Any) -> bool:
    """Whether a recorded value is a number to average; pycocotools reports an AP of -1 where there is no object."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    return not ("mAP" in name and value < 0)


def show_metric(name: str, value: Any) -> str:
    """A recorded value in its shown unit and decimals."""
    metric = metric_of(name)
    return f"{value * metric.scale:.{metric.digits}f}" if is_defined(name, value) else "undefined"


def _short(name: str) -> str:
    last = name.rpartition("/")[2]
    return last if last in METRICS else name
