"""How sure a comparison is: spread over seeds, t intervals, bootstrap over images, and the sentence that says so.

Seeds answer "would it happen again if trained again?", images answer "would it happen again on other images?". The two
doubts are different; every `Difference` carries which one its interval covers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from adpe.errors import UserError

PAIRED_T = "paired t"
WELCH_T = "Welch t"
BOOTSTRAP = "paired bootstrap"


@dataclass(frozen=True)
class Summary:
    """Mean and spread of one metric over seeds.

    Attributes:
        count: number of values.
        mean: arithmetic mean.
        std: sample standard deviation (ddof=1), None for one value.
        low, high: ends of the t interval of the mean, None for one value.
        confidence: coverage of the interval, e.g. 0.95.
    """

    count: int
    mean: float
    std: float | None
    low: float | None
    high: float | None
    confidence: float


@dataclass(frozen=True)
class Difference:
    """Mean difference `a - b` and how sure it is.

    Attributes:
        mean: mean of a minus mean of b, in the metric's unit.
        low, high: ends of the interval, None where no interval can be given.
        confidence: coverage of the interval.
        method: `PAIRED_T`, `WELCH_T`, `BOOTSTRAP`, or None without an interval.
        counts: seeds of a and of b; for the bootstrap the number of images, twice.
    """

    mean: float
    low: float | None
    high: float | None
    confidence: float
    method: str | None
    counts: tuple[int, int]

    @property
    def is_clear(self) -> bool:
        """True if there is an interval and it excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def summarise(values: Sequence[float], confidence: float = 0.95) -> Summary:
    """Mean, sample standard deviation (ddof=1) and Student's t interval of the mean.

    Raises:
        UserError: for no values or a value that is not finite.
    """
    array = _finite(values, "values")
    if array.size == 1:
        return Summary(1, float(array[0]), None, None, None, confidence)
    mean, std = float(array.mean()), float(array.std(ddof=1))
    half = _t_quantile(array.size - 1, confidence) * std / math.sqrt(array.size)
    return Summary(int(array.size), mean, std, mean - half, mean + half, confidence)


def seed_difference(a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95) -> Difference:
    """Difference `a - b` of two methods over seeds.

    Runs of the same seed share data order and masks, so equal sets of at least two seeds give a paired t interval;
    other sets of at least two each give Welch's interval for unequal variances. One seed on either side gives none.

    Args:
        a: seed -> metric of the first.
        b: seed -> metric of the second.
        confidence: coverage of the interval.

    Raises:
        UserError: for no values or a value that is not finite.
    """
    x, y = _finite(list(a.values()), "a"), _finite(list(b.values()), "b")
    mean = float(x.mean() - y.mean())
    counts = (int(x.size), int(y.size))
    if min(counts) < 2:
        return Difference(mean, None, None, confidence, None, counts)
    if set(a) == set(b):
        paired = summarise([a[seed] - b[seed] for seed in a], confidence)
        return Difference(paired.mean, paired.low, paired.high, confidence, PAIRED_T, counts)
    variances = x.var(ddof=1) / x.size, y.var(ddof=1) / y.size
    error = math.sqrt(sum(variances))
    if error == 0:
        return Difference(mean, mean, mean, confidence, WELCH_T, counts)
    # Welch-Satterthwaite degrees of freedom.
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / (x.size - 1) + variances[1] ** 2 / (y.size - 1))
    half = _t_quantile(freedom, confidence) * error
    return Difference(mean, mean - half, mean + half, confidence, WELCH_T, counts)


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
    return Difference(difference(every), float(low), float(high), confidence, BOOTSTRAP, (images, images))


def describe_interval(difference: Difference, digits: int = 2) -> str:
    """The interval in words: ``"95% interval 1.10 to 5.32, paired t over 3 seeds"`` or ``"one seed: no interval"``."""
    if difference.low is None or difference.high is None:
        return "one seed: no interval"
    first, second = difference.counts
    over = {
        PAIRED_T: f"{first} seeds",
        WELCH_T: f"{first} and {second} seeds",
        BOOTSTRAP: f"{first} images",
    }[str(difference.method)]
    ends = f"{_number(difference.low, digits)} to {_number(difference.high, digits)}"
    return f"{difference.confidence:.0%} interval {ends}, {difference.method} over {over}"


def describe_difference(
    difference: Difference, a: str, b: str, metric: str, *, higher_is_better: bool = True, digits: int = 2
) -> str:
    """One or two sentences on whether `a` differs from `b`, for a reader who knows no statistics.

    Args:
        difference: a minus b.
        a: name of the first.
        b: name of the second.
        metric: name of the metric as the reader knows it, e.g. ``"mIoU"``.
        higher_is_better: direction of the metric.
        digits: decimals shown.
    """
    size = _number(abs(difference.mean), digits)
    if float(size) == 0:
        opening = f"{a} and {b} have the same mean {metric} to {digits} decimals"
    else:
        direction = "above" if difference.mean > 0 else "below"
        opening = f"{a} is {size} {metric} {direction} {b}"
        if not higher_is_better:
            opening += ", which is better" if difference.mean < 0 else ", which is worse"
    if difference.low is None:
        return f"{opening}. One seed: no interval, so this may be seed noise."
    opening += f" ({describe_interval(difference, digits)})"
    if difference.method == BOOTSTRAP:
        verdict = "more than the choice of images explains" if difference.is_clear else "other images might reverse it"
        return f"{opening}: {verdict}; seed noise is not covered."
    if difference.is_clear:
        return f"{opening}: more than seed noise."
    return f"{opening}: the interval includes 0, so these seeds do not tell the two apart."


def _t_quantile(freedom: float, confidence: float) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, freedom))


def _finite(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(list(values), dtype=np.float64)
    if array.size == 0:
        raise UserError(f"{name}: no values to summarise.")
    if not np.isfinite(array).all():
        raise UserError(f"{name}: {array.tolist()} has a value that is not finite; leave such runs out and say so.")
    return array


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text
