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


def ranked_precision(scores: np.ndarray, targets: np.ndarray, empty_classes: str = "skip") -> tuple[np.ndarray, float]:
    """Average precision of every class in [0, 1], the mean over its positives of the precision at their rank, and mAP.

    Args:
        scores: ``(N, C)``; equal ones keep the images' order.
        targets: 1 for positives, 0 for the others, -1 for unknown ones, which are left out.
        empty_classes: "skip" leaves classes without a positive out of the mean, "zero" counts them as 0 (DualCoOp's
            reference).

    Returns:
        ``(C,)`` values, 0 for classes without a positive, and their mean in percent.
    """
    values = []
    for label in range(targets.shape[1]):
        known = np.flatnonzero(targets[:, label] >= 0)
        order = known[np.argsort(-scores[known, label], kind="stable")]
        hits = targets[order, label] == 1
        precision = hits.cumsum() / np.arange(1, len(hits) + 1)
        values.append(float((precision * hits).sum() / (hits.sum() + 1e-8)))
    found = np.asarray(values)
    kept = found if empty_classes == "zero" else found[(targets == 1).any(axis=0)]
    return found, 100.0 * float(kept.mean()) if len(kept) else float("nan")


def top_k_scores(scores: np.ndarray, targets: np.ndarray, k: int = 3) -> tuple[float, float, float]:
    """Overall precision, recall and F1 in percent if the k highest scores of an image are its labels."""
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    predicted = np.zeros_like(targets, dtype=bool)
    np.put_along_axis(predicted, chosen, True, axis=1)
    return _overall(predicted, targets == 1)


def threshold_scores(
    scores: np.ndarray, targets: np.ndarray, threshold: float = 0.5, empty_classes: str = "skip"
) -> dict[str, float]:
    """Precision, recall and F1 at a threshold, in percent.

    Args:
        scores: ``(N, C)``.
        targets: 1, 0, and -1 for unknown ones, which are left out.
        threshold: above which a label is predicted.
        empty_classes: as of :func:`ranked_precision`, of the means over classes.

    Returns:
        ``CP`` and ``CR``, means over classes, in which one without a true positive counts 0, with ``CF1``, their
        harmonic mean; and ``OP``, ``OR``, ``OF1`` of all decisions together.
    """
    predicted, true = (scores > threshold) & (targets >= 0), targets == 1
    kept = true.any(axis=0) if empty_classes == "skip" else np.ones(true.shape[1], dtype=bool)
    both = (predicted & true).sum(axis=0)
    precision, recall = (
        float(np.mean((both / np.maximum(chosen.sum(axis=0), 1))[kept])) if kept.any() else 0.0
        for chosen in (predicted, true)
    )
    overall = _overall(predicted, true)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    by_class = {"CP": 100.0 * float(precision), "CR": 100.0 * float(recall), "CF1": 100.0 * float(f1)}
    return {**by_class, **dict(zip(("OP", "OR", "OF1"), overall, strict=True))}


def _overall(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float, float]:
    both = float((predicted & true).sum())
    precision, recall = both / max(predicted.sum(), 1), both / max(true.sum(), 1)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return 100.0 * precision, 100.0 * recall, 100.0 * f1
