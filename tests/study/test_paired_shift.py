"""The exact paired interval: by hand, against every pattern of signs, against scipy's test, and by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from study.paired_shift import fewest_pairs, paired_ratio, paired_shift, signed_rank_probabilities
from study.statistics import Estimate

DIFFERENCES = st.lists(st.integers(-40, 40), min_size=6, max_size=8, unique=True)


def test_by_hand_with_six_pairs_the_interval_is_the_range_of_the_differences():
    """1 of 64 patterns of signs has none below the shift, 2 have a rank sum of 1 or less: 0.031 is too much."""
    assert paired_shift([1.1, 1.3, 0.9, 1.6, 1.2, 1.0], [1.0] * 6) == pytest.approx((0.15, -0.1, 0.6))


def test_by_hand_with_seven_pairs_two_walsh_averages_are_cut_at_either_end():
    """P(T <= 2) = 3/128 = 0.023, P(T <= 3) = 5/128 = 0.039; the third Walsh average from below is (0 + 2) / 2."""
    found = paired_shift([0, 1, 2, 3, 5, 8, 13], [0] * 7)
    assert found == pytest.approx((4.0, 1.0, 9.0))
    walsh = sorted((a + b) / 2 for a, b in itertools.combinations_with_replacement([0, 1, 2, 3, 5, 8, 13], 2))
    assert (found.low, found.high) == (walsh[2], walsh[-3])


@pytest.mark.parametrize("n", range(6))
def test_too_few_pairs_give_no_interval(n):
    estimate = paired_shift(np.arange(n), np.zeros(n))
    assert math.isnan(estimate.value) == (n == 0)
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95, 0.99, 0.999])
def test_the_fewest_pairs_are_the_first_that_give_an_interval(level):
    n = fewest_pairs(level)
    assert math.isnan(paired_shift(np.arange(n - 1), np.zeros(n - 1), level).low)
    assert math.isfinite(paired_shift(np.arange(n), np.zeros(n), level).low)


@pytest.mark.parametrize("n", [1, 3, 6, 10])
def test_rank_sums_are_as_likely_as_counting_every_pattern_of_signs_says(n):
    sums = np.array(_signs(n)) @ np.arange(1, n + 1)
    counted = np.bincount(sums, minlength=n * (n + 1) // 2 + 1) / 2**n
    np.testing.assert_allclose(signed_rank_probabilities(n), counted, atol=1e-15)


def _signs(n):
    return list(itertools.product((False, True), repeat=n))


def rejected(differences, shift):
    """Whether the two-sided exact test rejects a shift at 5%, by the rank sums of every pattern of signs."""
    ranks = stats.rankdata(np.abs(differences - shift))
    sums = np.array(_signs(len(differences))) @ ranks
    seen = ranks[differences > shift].sum()
    return min(np.mean(sums <= seen), np.mean(sums >= seen)) <= 0.025 + 1e-12


@settings(max_examples=40, deadline=None)
@given(DIFFERENCES)
def test_the_interval_holds_the_shifts_that_brute_force_does_not_reject(differences):
    d = np.array(differences)
    estimate = paired_shift(d, np.zeros(len(d)))
    walsh = np.unique([(a + b) / 2 for a, b in itertools.combinations_with_replacement(d, 2)])
    between = [walsh[0] - 1, *(walsh[:-1] + walsh[1:]) / 2, walsh[-1] + 1]  # where no rank is tied or zero
    for shift in between:
        if len(np.unique(np.abs(d - shift))) == len(d):
            assert rejected(d, shift) == (not estimate.low < shift < estimate.high)


@pytest.mark.parametrize("n", [8, 12, 24])
def test_the_bounds_are_where_scipys_exact_p_crosses_five_percent(n):
    d = np.random.default_rng(n).normal(0.3, 1, n)
    estimate = paired_shift(d, np.zeros(n))
    for bound, outwards in ((estimate.low, -1e-9), (estimate.high, 1e-9)):
        assert stats.wilcoxon(d - bound - outwards, method="exact").pvalue <= 0.05
        assert stats.wilcoxon(d - bound + outwards, method="exact").pvalue > 0.05


@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform", "standard_cauchy"])
@pytest.mark.parametrize("n", [6, 8, 15])
def test_coverage_is_the_nominal_one_for_any_symmetric_differences(draw, n):
    """The exact coverage lies between 95% and what one Walsh average more would lose; 600 samples tell them to 3%."""
    rng = np.random.default_rng(n)
    samples = getattr(rng, draw)(size=(600, n)) - (0.5 if draw == "uniform" else 0.0)
    intervals = [paired_shift(0.7 + d, np.zeros(n)) for d in samples]
    coverage = np.mean([low <= 0.7 <= high for _, low, high in intervals])
    cumulated = np.cumsum(signed_rank_probabilities(n))
    exact = 1 - 2 * cumulated[cumulated <= 0.025][-1]
    assert exact >= 0.95
    assert coverage == pytest.approx(exact, abs=0.03)


def test_a_ratio_is_the_shift_of_logarithms_and_turns_over_with_its_terms():
    rng = np.random.default_rng(0)
    arm, control = np.exp(rng.normal(size=(2, 9)))
    there, back = paired_ratio(arm, control), paired_ratio(control, arm)
    assert there == pytest.approx((1 / back.value, 1 / back.high, 1 / back.low))
    assert paired_ratio(1.07 * control, control) == pytest.approx((1.07, 1.07, 1.07))


def test_pairs_without_two_numbers_are_left_out():
    known = paired_ratio([1, 2, 3, 4, 5, 6], [1] * 6)
    assert paired_ratio([1, 2, 3, 4, 5, 6, math.nan, 1, 0], [1] * 6 + [1, math.inf, 1]) == known
    assert np.isnan(paired_shift([math.nan], [1.0])).all()
    with pytest.raises(ValueError, match="impossible input"):
        paired_shift([1.0, 2.0], [1.0])
    assert isinstance(known, Estimate)
