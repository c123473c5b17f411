"""Schedules of published recipes as closed formulas of the step; mmengine's own cover the others.

Each takes a step and the schedule's numbers, and returns a value. :class:`AdPEFormulaScheduler` applies them to the
learning rate or the weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def seamed_cosine(
    step: int, total: int, warmup: int, peak: float, start: float = 0.0, end: float = 0.0, lag: int = 1
) -> float:
    """Linear warm-up, then a cosine that is counted from step 0 and so falls at the seam (timm's CosineLRScheduler).

    MFM (arXiv 2206.07706), SimMIM and BEiT train so: the rate falls by ``peak / 2 * (1 - cos(pi * warmup / total))`` at
    the seam.

    Args:
        step: optimiser steps done.
        total: steps of the training; later ones keep the last value.
        warmup: steps of the warm-up.
        peak: value at its end.
        start: value of the first step.
        end: value that the cosine goes to.
        lag: steps by which the schedule is late; 1 where it advances after the optimiser, so that the first two steps
            share a value.
    """
    at = max(step - lag, 0)
    if at < warmup:
        return start + (peak - start) * at / warmup
    return end + (peak - end) / 2 * (1 + math.cos(math.pi * min(at / total, 1.0)))


def warmup_cosine(
    step: int, total: int, warmup: int, peak: float, start: float = 0.0, end: float = 0.0, lag: int = 0
) -> float:
    """DINO's schedule (arXiv 2104.14294): `start` to `peak` over `warmup` steps, both ends included, then a cosine.

    ``end + (peak - end) / 2 * (1 + cos(pi * j / (total - warmup)))`` for j = 0 .. total - warmup - 1, which never quite
    reaches `end`. Arguments as :func:`seamed_cosine`.
    """
    at = max(step - lag, 0)
    if at < warmup:
        return peak if warmup == 1 else start + (peak - start) * at / (warmup - 1)
    return end + (peak - end) / 2 * (1 + math.cos(math.pi * (at - warmup) / max(total - warmup, 1)))


def probe_cosine(
    step: int, total: int, warmup: int, peak: float, start: float = 1e-6, end: float = 0.0, lag: int = 1
) -> float:
    """DINOv3's schedule of its segmentation probe (arXiv 2508.10104): a warm-up inside a line to 0, then a cosine.

    The cosine runs from step 0, not from the warm-up's end, so that the rate jumps up at the seam. `start` is the share
    of `peak` at the first step; the other arguments are those of :func:`seamed_cosine`.
    """
    at = max(step - lag, 0)
    if at < warmup:
        return peak * (1 - (1 - at / warmup) * (1 - start)) * (1 - at / total)
    return end + (peak - end) / 2 * (1 + math.cos(math.pi * (at + 1) / total))


SCHEDULES: dict[str, Callable[..., float]] = {
    "seamed_cosine": seamed_cosine,
    "warmup_cosine": warmup_cosine,
    "probe_cosine": probe_cosine,
}
