"""How sure a comparison is: spread over seeds, t intervals, and the sentence that says so.

Seeds answer "would it happen again if trained again?", images (`adpe.leaderboard.uncertainty.images`) answer "would it
happen again on other images?". The two doubts are different; every `Difference` carries which one its interval covers.
Needs the standard library alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from adpe.errors import UserError

PAIRED_T = "paired t"
WELCH_T = "Welch t"
BOOTSTRAP = "paired bootstrap"
# Why there is no interval.
ONE_SEED = "one seed"
NO_SPREAD = "no spread"


@dataclass(frozen=True)
class Summary:
    """Mean and spread of one metric over seeds.

    Attributes:
        count: number of values.
        mean: arithmetic mean.
        std: sample standard deviation (ddof=1), None for one value.
        low, high: ends of the t interval of the mean, None for one value and for equal ones.
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
        reason: `ONE_SEED` or `NO_SPREAD` where there is no interval.
    """

    mean: float
    low: float | None
    high: float | None
    confidence: float
    method: str | None
    counts: tuple[int, int]
    reason: str | None = None

    @property
    def is_clear(self) -> bool:
        """True if there is an interval and it excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def summarise(values: Sequence[float], confidence: float = 0.95) -> Summary:
    """Mean, sample standard deviation (ddof=1) and Student's t interval of the mean.

    Equal values have no interval: that they agree to the last digit says that they were rounded, or that nothing was
    learnt, not that the mean is known exactly.

    Raises:
        UserError: for no values or a value that is not finite.
    """
    numbers = _finite(values, "values")
    mean = statistics.fmean(numbers)
    if len(numbers) == 1:
        return Summary(1, mean, None, None, None, confidence)
    if same(numbers):
        return Summary(len(numbers), mean, 0.0, None, None, confidence)
    # statistics.stdev calculates in fractions, ten times as long, and agrees to the last digits.
    std = math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1))
    half = t_quantile(len(numbers) - 1, confidence) * std / math.sqrt(len(numbers))
    return Summary(len(numbers), mean, std, mean - half, mean + half, confidence)


def same(values: Sequence[float]) -> bool:
    """Whether the values are equal up to rounding errors of float64."""
    return max(values) - min(values) <= 1e-12 * max(1.0, *map(abs, values))


def seed_difference(a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95) -> Difference:
    """Difference `a - b` of two methods over seeds.

    Runs of the same seed share data order and masks, so equal sets of at least two seeds give a paired t interval;
    other sets of at least two each give Welch's interval for unequal variances. One seed on either side gives none, and
    neither do differences (or values) without any spread.

    Args:
        a: seed -> metric of the first.
        b: seed -> metric of the second.
        confidence: coverage of the interval.

    Raises:
        UserError: for no values or a value that is not finite.
    """
    x, y = _finite(list(a.values()), "a"), _finite(list(b.values()), "b")
    mean = statistics.fmean(x) - statistics.fmean(y)
    counts = (len(x), len(y))
    if min(counts) < 2:
        return Difference(mean, None, None, confidence, None, counts, ONE_SEED)
    if set(a) == set(b):
        paired = summarise([a[seed] - b[seed] for seed in a], confidence)
        if paired.low is None:
            return Difference(paired.mean, None, None, confidence, None, counts, NO_SPREAD)
        return Difference(paired.mean, paired.low, paired.high, confidence, PAIRED_T, counts)
    if same(x) and same(y):
        return Difference(mean, None, None, confidence, None, counts, NO_SPREAD)
    variances = statistics.variance(x) / len(x), statistics.variance(y) / len(y)
    # Welch-Satterthwaite degrees of freedom.
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / (len(x) - 1) + variances[1] ** 2 / (len(y) - 1))
    half = t_quantile(freedom, confidence) * math.sqrt(sum(variances))
    return Difference(mean, mean - half, mean + half, confidence, WELCH_T, counts)


def detectable(difference: Difference, power: float = 0.8) -> float | None:
    """The true difference that an interval of this width excludes 0 for in a share `power` of repetitions.

    ``(1 + t_power / t_confidence)`` times the half-width: the usual approximation by a central t, with the spread that
    these seeds happened to show. None without a t interval.
    """
    if difference.low is None or difference.high is None or difference.method not in (PAIRED_T, WELCH_T):
        return None
    # Of Welch's interval the degrees of freedom are at least those of its smaller side.
    freedom = min(difference.counts) - 1
    ratio = t_quantile(freedom, 2 * power - 1) / t_quantile(freedom, difference.confidence)
    return (difference.high - difference.low) / 2 * (1 + ratio)


def usual_detectable(differences: Iterable[Difference | None]) -> float | None:
    """The median of what is :func:`detectable` by some differences; None if none has an interval."""
    sizes = [size for one in differences if one is not None and (size := detectable(one)) is not None]
    return statistics.median(sizes) if sizes else None


def describe_interval(difference: Difference, digits: int = 2) -> str:
    """The interval in words: ``"95% interval 1.10 to 5.32, paired t over 3 seeds"`` or ``"one seed: no interval"``."""
    if difference.low is None or difference.high is None:
        return f"{difference.reason or ONE_SEED}: no interval"
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
    if difference.low is None and difference.reason == NO_SPREAD:
        return f"{opening}. The {difference.counts[0]} values have no spread: no interval, rounded or equal numbers."
    if difference.low is None:
        return f"{opening}. One seed: no interval, so this may be seed noise."
    opening += f" ({describe_interval(difference, digits)})"
    if difference.method == BOOTSTRAP:
        verdict = "more than the choice of images explains" if difference.is_clear else "other images might reverse it"
        return f"{opening}: {verdict}; seed noise is not covered."
    if difference.is_clear:
        return f"{opening}: more than seed noise."
    return f"{opening}: the interval includes 0, so these seeds do not tell the two apart."


@lru_cache(maxsize=256)
def t_quantile(freedom: float, confidence: float) -> float:
    """The t with ``P(|T| <= t) = confidence`` of Student's distribution with `freedom` degrees of freedom.

    scipy's ``stats.t.ppf((1 + confidence) / 2, freedom)``, without waiting a second for its import.
    """
    low, high = 0.0, 1.0
    while _t_tails(high, freedom) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _t_tails(middle, freedom) > 1 - confidence else (low, middle)
    return (low + high) / 2


def _t_tails(t: float, freedom: float) -> float:
    """``P(|T| > t)``, the incomplete beta function I_x(freedom / 2, 1 / 2) at x = freedom / (freedom + t^2)."""
    x, a, b = freedom / (freedom + t * t), freedom / 2, 0.5
    if x >= 1:
        return 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(x, a, b) / a
    return 1 - front * _beta_fraction(1 - x, b, a) / b


def _beta_fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method."""
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 1000):
        before = value
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for numerator in (even, odd):
            c, d = 1 + numerator / c, 1 / (1 + numerator * d)
            value *= c * d
        if abs(value - before) < 1e-16 * abs(value):
            break
    return value


def _finite(values: Sequence[float], name: str) -> list[float]:
    numbers = [float(value) for value in values]
    if not numbers:
        raise UserError(f"{name}: no values to summarise.")
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"{name}: {numbers} has a value that is not finite; leave such runs out and say so.")
    return numbers


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text
