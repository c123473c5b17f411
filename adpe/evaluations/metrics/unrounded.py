"""Unrounded metrics in place of mmseg's and mmdet's own, in every config."""

from __future__ import annotations

import importlib
from typing import Any

from mmengine.config import Config

# Class of an evaluator: module and class that compute it without rounding.
_UNROUNDED = {
    "IoUMetric": ("adpe.evaluations.metrics.iou", "AdPEIoUMetric"),
    "CocoMetric": ("adpe.evaluations.metrics.coco_ap", "AdPECocoMetric"),
}


def use_unrounded_metrics(cfg: Config) -> None:
    """Let ``val_evaluator`` and ``test_evaluator`` compute what they compute without rounding it.

    Args:
        cfg: changed in place; evaluators of other classes stay as they are.
    """
    for name in ("val_evaluator", "test_evaluator"):
        evaluators: Any = cfg.get(name)
        for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
            kind = evaluator.get("type") if isinstance(evaluator, dict) else None
            known = _UNROUNDED.get(str(getattr(kind, "__name__", kind)).rpartition(".")[2])
            if known is not None:
                importlib.import_module(known[0])
                evaluator["type"] = known[1]
