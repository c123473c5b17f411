"""Bootstrap over images: how sure the difference of two models is where there is one seed of each."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from adpe.errors import UserError
from adpe.leaderboard.uncertainty.seeds import BOOTSTRAP, NO_SPREAD, Difference, same


def mean_iou(areas: np.ndarray) -> float:
    """Mean IoU in percent from per-image areas, as mmseg computes it: areas are summed over images, then divided.

    Args:
        areas: (images, classes, 2), intersection and union in pixels. Classes without any union are left out.
    """
    intersection, union = np.asarray(areas, dtype=np.float64).sum(axis=0).T
    present = union > 0
    if not present.any():
        return math.nan
    return float(100.0 * np.mean(intersection[present] / union[present]))


def image_difference(
    a: np.ndarray,
    b: np.ndarray,
    statistic: Callable[[np.ndarray], float] = np.mean,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Difference `statistic(a) - statistic(b)` with a paired percentile bootstrap over images.

    Images are drawn with replacement, the same ones for both models, and the statistic is computed anew on each draw
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3). It says nothing about seeds.

    Args:
        a: (images, ...) per-image statistics of the first model: scores (images,), or areas as `mean_iou` takes.
        b: the same of the second model on the same images in the same order.
        statistic: maps the array of the drawn images to one number.
        confidence: coverage of the interval.
        resamples: number of draws.
        seed: of the draws.

    Raises:
        UserError: if the shapes differ or there are fewer than two images.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise UserError(
            f"per-image statistics differ in shape: {a.shape} and {b.shape}; evaluate both on the same images."
        )
    images = len(a) if a.ndim else 0

    def difference(drawn: np.ndarray) -> float:
        return float(statistic(a[drawn])) - float(statistic(b[drawn]))

    return bootstrap_difference(difference, images, confidence=confidence, resamples=resamples, seed=seed)


def bootstrap_difference(
    difference: Callable[[np.ndarray], float],
    images: int,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """The bootstrap of `image_difference` for a difference that is any function of the images drawn.

    Args:
        difference: maps indices of images, repeated ones included, to the difference of the two models on them.
        images: number of images.
        confidence: coverage of the interval.
        resamples: number of draws.
        seed: of the draws.

    Raises:
        UserError: if there are fewer than two images.
    """
    if images < 2:
        raise UserError("a bootstrap over images needs per-image statistics of at least two images.")
    every = np.arange(images)
    low, high = stats.bootstrap(
        (every,),
        difference,
        n_resamples=resamples,
        vectorized=False,
        method="percentile",
        confidence_level=confidence,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    counts = (images, images)
    if same([float(low), float(high)]):
        return Difference(difference(every), None, None, confidence, None, counts, NO_SPREAD)
    return Difference(difference(every), float(low), float(high), confidence, BOOTSTRAP, counts)
