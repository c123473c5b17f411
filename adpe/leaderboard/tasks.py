"""The registry of tasks and metrics: records, tables, page, published rows, claims and model index read it here.

A new task is an entry of `TASKS`, a new metric one of `METRICS`. Needs the standard library alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Metric:
    """How a recorded metric is shown.

    Attributes:
        label: the reader's name for it.
        unit: of the shown value, ``"%"`` or empty.
        scale: factor from the recorded to the shown value; mmdet reports AP as a fraction, papers in percent.
        higher_is_better: direction of the ranking.
        digits: decimals shown.
        floor: shown value up to which nothing was learnt.
        neutral: it describes an encoder; neither higher nor lower is better, and none is marked as the best.
        by_class: a constant prediction may reach 100 / classes, which is the floor where their number is known.
    """

    label: str
    unit: str = "%"
    scale: float = 1.0
    higher_is_better: bool = True
    digits: int = 2
    floor: float = 0.0
    by_class: bool = False
    neutral: bool = False

    def floor_of(self, classes: int | None) -> float:
        """Shown value up to which nothing was learnt, on data of so many classes (None: not recorded)."""
        return 100.0 / classes if self.by_class and classes and classes > 1 else self.floor


@dataclass(frozen=True)
class Task:
    """A kind of evaluation.

    Attributes:
        metrics: the ones that a table shows, the first of which ranks.
        model_index: the name of the task in OpenMMLab's ``model-index.yml``.
        published: whether papers print numbers of it, so that `benchmarks/published/` may hold rows.
    """

    metrics: tuple[str, ...]
    model_index: str
    published: bool = True


METRICS: dict[str, Metric] = {
    # Of 80 classes, COCO's, where their number is not recorded.
    "mIoU": Metric("mIoU", floor=1.25, by_class=True),
    "mIoU_ms": Metric("mIoU, multi-scale", floor=1.25, by_class=True),
    "top1": Metric("top-1", by_class=True),
    "top5": Metric("top-5"),
    "mAcc": Metric("mean accuracy"),
    "aAcc": Metric("pixel accuracy"),
    "mIoU_ignored_predicted": Metric("mIoU, ignored labels predicted"),
    **{
        f"{kind}_mAP{suffix}": Metric(f"{label} AP{shown}", scale=100.0, floor=0.1)
        for kind, label in (("bbox", "box"), ("segm", "mask"))
        for suffix, shown in {"": "", "_50": "50", "_75": "75", "_s": " small", "_m": " medium", "_l": " large"}.items()
    },
    "position_R2": Metric("R² of position", unit="", digits=3, neutral=True),
    "position_R2_max": Metric("R² of position, best block", unit="", digits=3, neutral=True),
    "attention_distance": Metric("attention distance", unit="patches", neutral=True),
    "clean_top1": Metric("top-1"),
    "source_top1": Metric("top-1 of the source class"),
    "asr": Metric("attack success", higher_is_better=False),
    "asr_clean": Metric("attack success without trigger", higher_is_better=False),
    "blocked_asr": Metric("attack success, blocked", higher_is_better=False),
    "blocked_random_asr": Metric("attack success, blocked at random", higher_is_better=False),
    "blocked_centre_asr": Metric("attack success, centre blocked", higher_is_better=False),
    "blocked_trigger_asr": Metric("attack success, trigger blocked", higher_is_better=False),
    "blocked_source_top1": Metric("top-1 of the source class, blocked"),
    "blocked_clean_top1": Metric("top-1, blocked"),
    "trigger_hit": Metric("trigger inside the window"),
    "top1_cue": Metric("top-1, with cue"),
    "top1_no_cue": Metric("top-1, misleading cue"),
    "top1_no_border": Metric("top-1, no cue"),
    "shortcut": Metric("shortcut", unit="points", higher_is_better=False),
    "mAP": Metric("mAP"),
    "mAP_micro": Metric("AP over all decisions"),
    "CF1": Metric("F1 by class"),
    "OF1": Metric("overall F1"),
    "linear_mAP": Metric("mAP, linear head"),
    "linear_CF1": Metric("F1 by class, linear head"),
    "linear_OF1": Metric("overall F1, linear head"),
    # Not called mAP: below 0 that means undefined.
    "over_linear": Metric("mAP over the linear head"),
    "pacmac_top1": Metric("target top-1, PACMAC"),
    "source_only_top1": Metric("target top-1, source-only"),
    "oracle_top1": Metric("target top-1, oracle"),
    "confidence_top1": Metric("target top-1, confidence alone"),
    "random_views_top1": Metric("target top-1, random views"),
    "pacmac_gain": Metric("PACMAC over source-only"),
    "pacmac_gain_low": Metric("PACMAC over source-only, 95 % from"),
    "pacmac_gain_high": Metric("PACMAC over source-only, 95 % to"),
    "pacmac_mean_top1": Metric("class mean of target top-1, PACMAC"),
    "source_only_mean_top1": Metric("class mean of target top-1, source-only"),
    **{
        f"{prefix}selected_{kind}": Metric(f"{label}{of}")
        for prefix, of in (("", ""), ("confidence_", ", confidence alone"), ("random_views_", ", random views"))
        for kind, label in (("share", "selected"), ("precision", "selected pseudo-labels that are right"))
    },
    "no_agreement_share": Metric("confident without an agreeing view"),
    "pseudo_label_top1": Metric("all pseudo-labels that are right"),
    "PQ": Metric("PQ"),
    "delta1": Metric("δ1"),
    "FID": Metric("FID", unit="", higher_is_better=False),
    "IS": Metric("inception score", unit="", digits=1),
    "copy_mAP": Metric("copy detection mAP"),
    "J_and_F": Metric("(J&F)m"),
    "loss": Metric("loss", unit="", higher_is_better=False, digits=4),
}
# In the order of the tables.
TASKS: dict[str, Task] = {
    "segmentation": Task(("mIoU", "mIoU_ms"), "Semantic Segmentation"),
    "detection": Task(("bbox_mAP", "segm_mAP"), "Instance Segmentation"),
    "classification": Task(("top1",), "Image Classification"),
    "positions": Task(("position_R2", "position_R2_max", "attention_distance"), "Position Readout", published=False),
    "robustness": Task(
        ("blocked_asr", "asr", "asr_clean", "clean_top1", "blocked_clean_top1"), "Backdoor Robustness", published=False
    ),
    "shortcut": Task(("top1_no_cue", "top1_cue", "shortcut", "top1_no_border"), "Shortcut", published=False),
    "multilabel": Task(("mAP", "linear_mAP", "over_linear", "CF1", "OF1"), "Multi-Label Classification"),
    "adaptation": Task(
        ("pacmac_top1", "source_only_top1", "oracle_top1", "confidence_top1"), "Domain Adaptation", published=False
    ),
    # Known from publications alone: no config of ours records them.
    "panoptic segmentation": Task(("PQ",), "Panoptic Segmentation"),
    "depth": Task(("delta1",), "Monocular Depth Estimation"),
    "image generation": Task(("FID", "IS"), "Image Generation"),
    "copy detection": Task(("copy_mAP",), "Image Retrieval"),
    "video segmentation": Task(("J_and_F",), "Video Object Segmentation"),
    "pretrain": Task(("loss",), "Self-Supervised Image Classification", published=False),
}


def main_metrics(task: str, found: Iterable[str]) -> tuple[str, ...]:
    """Those of the metrics `found` that a table of the task shows; all of them if it has no others."""
    names = tuple(dict.fromkeys(found))
    known = TASKS[task].metrics if task in TASKS else ()
    return tuple(name for name in known if name in names) or names


@cache
def metric_of(name: str) -> Metric:
    """How the recorded metric `name` is shown; an unknown one as it is."""
    return METRICS.get(_short(name), Metric(name, unit=""))


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


@cache
def _short(name: str) -> str:
    last = name.rpartition("/")[2]
    return last if last in METRICS else name
