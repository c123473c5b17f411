"""Means, intervals and the sentences about them, against scipy and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from adpe.errors import UserError
from adpe.leaderboard.uncertainty.images import image_difference, mean_iou
from adpe.leaderboard.uncertainty.seeds import (
    BOOTSTRAP,
    NO_SPREAD,
    ONE_SEED,
    PAIRED_T,
    WELCH_T,
    Difference,
    describe_difference,
    detectable,
    seed_difference,
    summarise,
    t_quantile,
)


def test_summary_by_hand() -> None:
    summary = summarise([1.0, 2.0, 3.0])
    assert (summary.count, summary.mean, summary.std) == (3, 2.0, 1.0)
    # t(0.975, 2 degrees of freedom) = 4.302653 (any table of Student's t).
    assert summary.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert summary.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_summary_against_scipy() -> None:
    values = [48.1, 48.9, 47.2, 50.0]
    summary = summarise(values, confidence=0.9)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (summary.low, summary.high) == pytest.approx((expected.low, expected.high))
    assert summary.std == pytest.approx(np.std(values, ddof=1))


def test_one_value_has_no_spread() -> None:
    summary = summarise([7.0])
    assert (summary.mean, summary.std, summary.low, summary.high) == (7.0, None, None, None)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_values_that_cannot_be_averaged(values: list[float]) -> None:
    with pytest.raises(UserError):
        summarise(values)


def test_same_seeds_are_paired() -> None:
    a, b = {0: 10.0, 1: 12.0, 2: 14.5}, {2: 13.0, 0: 9.0, 1: 11.5}
    difference = seed_difference(a, b)
    expected = stats.ttest_rel([10.0, 12.0, 14.5], [9.0, 11.5, 13.0]).confidence_interval(0.95)
    assert (difference.method, difference.counts, difference.mean) == (PAIRED_T, (3, 3), 1.0)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))


def test_other_seeds_are_not_paired() -> None:
    a, b = {0: 10.0, 1: 12.0, 2: 14.0}, {0: 9.0, 7: 9.5}
    difference = seed_difference(a, b)
    expected = stats.ttest_ind(list(a.values()), list(b.values()), equal_var=False).confidence_interval(0.95)
    assert (difference.method, difference.mean) == (WELCH_T, 2.75)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))


def test_no_spread_at_all_gives_no_interval() -> None:
    # 0.1 + 0.2 - 0.3 is not 0 in float64: differences that are equal but for rounding have no spread either.
    for a, b in (
        ({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}),
        ({0: 1.1, 1: 1.3}, {0: 0.1, 1: 0.3}),
        ({0: 2.0, 1: 2.0}, {2: 1.0, 3: 1.0}),
    ):
        difference = seed_difference(a, b)
        assert (difference.low, difference.high, difference.method) == (None, None, None)
        assert difference.mean == pytest.approx(1.0) and difference.reason == NO_SPREAD and not difference.is_clear
    equal = summarise([23.1, 23.1, 23.1])
    assert (equal.mean, equal.std, equal.low, equal.high) == (pytest.approx(23.1), 0.0, None, None)
    # Spread on one side alone is a spread.
    assert seed_difference({0: 2.0, 1: 2.0}, {2: 1.0, 3: 1.5}).method == WELCH_T


def test_quantiles_of_students_t_are_scipys() -> None:
    for freedom in (1, 1.3, 2, 2.7, 4, 9.99, 30, 1000):
        for confidence in (0.5, 0.9, 0.95, 0.99, 0.999):
            assert t_quantile(freedom, confidence) == pytest.approx(
                stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-9
            )


def test_one_seed_gives_no_interval() -> None:
    difference = seed_difference({0: 5.0}, {0: 3.0, 1: 4.0})
    assert (difference.mean, difference.low, difference.high, difference.method) == (1.5, None, None, None)
    assert difference.reason == ONE_SEED
    assert not difference.is_clear


def test_mean_iou_divides_sums_and_leaves_out_absent_classes() -> None:
    # Class 0: (1 + 3) / (2 + 6) = 0.5; class 1: 1 / 4; class 2 in no image. Averaging per-image ratios would differ.
    areas = np.array([[[1, 2], [1, 4], [0, 0]], [[3, 6], [0, 0], [0, 0]]])
    assert mean_iou(areas) == pytest.approx(37.5)
    assert math.isnan(mean_iou(np.zeros((2, 3, 2))))


def test_bootstrap_of_means_approaches_the_normal_interval() -> None:
    generator = np.random.default_rng(3)
    b = generator.normal(size=400)
    a = b + 0.5 + 0.2 * generator.normal(size=400)
    difference = image_difference(a, b)
    error = np.std(a - b, ddof=1) / 20
    assert difference.mean == pytest.approx(np.mean(a - b))
    # The pairing removes b's spread of 1: an unpaired interval would be seven times as wide.
    assert difference.low == pytest.approx(difference.mean - 1.96 * error, abs=0.3 * error)
    assert difference.high == pytest.approx(difference.mean + 1.96 * error, abs=0.3 * error)
    assert difference.method == BOOTSTRAP and difference.counts == (400, 400)


def test_bootstrap_recomputes_the_statistic_on_each_draw() -> None:
    better = np.array([[[5, 10]], [[90, 100]]])
    worse = np.array([[[4, 10]], [[60, 100]]])
    difference = image_difference(better, worse, mean_iou, resamples=500)
    # The draws of two images: the first twice (10), both (31 / 110), the second twice (30).
    assert difference.mean == pytest.approx(100 * 31 / 110)
    assert (difference.low, difference.high) == pytest.approx((10.0, 30.0))
    same = image_difference(better, better, mean_iou, resamples=50)
    assert (same.mean, same.low, same.high, same.reason) == (0.0, None, None, NO_SPREAD)


def test_bootstrap_needs_the_same_images() -> None:
    with pytest.raises(UserError, match=r"\(3,\) and \(4,\)"):
        image_difference(np.zeros(3), np.zeros(4))
    with pytest.raises(UserError, match="two images"):
        image_difference(np.zeros(1), np.zeros(1))


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        (
            Difference(3.21, 1.1, 5.32, 0.95, PAIRED_T, (3, 3)),
            "AdPE is 3.21 mIoU above random (95% interval 1.10 to 5.32, paired t over 3 seeds): more than seed noise.",
        ),
        (
            Difference(-0.4, -1.0, 0.2, 0.9, WELCH_T, (3, 2)),
            "AdPE is 0.40 mIoU below random (90% interval -1.00 to 0.20, Welch t over 3 and 2 seeds): "
            "the interval includes 0, so these seeds do not tell the two apart.",
        ),
        (
            Difference(3.21, None, None, 0.95, None, (1, 3)),
            "AdPE is 3.21 mIoU above random. One seed: no interval, so this may be seed noise.",
        ),
        (
            Difference(1.0, 0.5, 1.5, 0.95, BOOTSTRAP, (100, 100)),
            "AdPE is 1.00 mIoU above random (95% interval 0.50 to 1.50, paired bootstrap over 100 images): "
            "more than the choice of images explains; seed noise is not covered.",
        ),
        (
            Difference(-0.001, -0.1, 0.1, 0.95, PAIRED_T, (3, 3)),
            "AdPE and random have the same mean mIoU to 2 decimals (95% interval -0.10 to 0.10, paired t over 3 seeds)"
            ": the interval includes 0, so these seeds do not tell the two apart.",
        ),
    ],
)
def test_sentences(difference: Difference, sentence: str) -> None:
    assert describe_difference(difference, "AdPE", "random", "mIoU") == sentence


def test_lower_can_be_better() -> None:
    difference = Difference(-0.5, None, None, 0.95, None, (1, 1))
    assert describe_difference(difference, "A", "B", "loss", higher_is_better=False).startswith(
        "A is 0.50 loss below B, which is better."
    )


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_detectable_difference_is_found_in_four_of_five_repetitions(seeds):
    """By simulation: differences of seeds with a known spread, whose interval has the width it has on average."""
    drawn = np.random.default_rng(0).normal(0.0, 2.0, (4000, seeds))
    half = t_quantile(seeds - 1, 0.95) * 2.0 / np.sqrt(seeds)
    true = detectable(Difference(0.0, -half, half, 0.95, PAIRED_T, (seeds, seeds)))
    found = 0
    for sample in drawn + true:
        found += seed_difference(dict(enumerate(sample)), dict.fromkeys(range(seeds), 0.0)).is_clear
    assert 0.74 < found / len(drawn) < 0.88
    assert detectable(seed_difference({0: 1.0}, {0: 2.0})) is None
