"""Multi-label recognition on frozen features: average precision of a set, and the probe of DINO-MM's reference."""

from __future__ import annotations

import numpy as np


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Stepwise sum of precision times gain of recall, in percent, of ``(N,)`` scores against 0/1 targets.

    NaN where there is no positive.
    """
    if not targets.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = targets[order].astype(np.float64)
    # Equal scores are one step.
    last = np.r_[np.diff(scores[order]) != 0, True]
    found = hits.cumsum()[last]
    precision = found / (np.flatnonzero(last) + 1)
    recall = found / hits.sum()
    return 100.0 * float((precision * np.diff(np.r_[0.0, recall])).sum())


def micro_and_macro(scores: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Average precision in percent over all decisions ``(N, labels)``, and the mean over labels that occur."""
    each = [average_precision(scores[:, label], targets[:, label]) for label in range(targets.shape[1])]
    return average_precision(scores.ravel(), targets.ravel()), float(np.nanmean(each))
