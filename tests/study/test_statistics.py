"""Statistics by hand, against statsmodels and lifelines, and by simulation."""

from __future__ import annotations

import warnings
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from study import statistics as s

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lifelines
    from lifelines.statistics import logrank_test
    from lifelines.utils import restricted_mean_survival_time

TIME = np.array([6, 6, 6, 7, 10, 13, 16, 22, 23, 6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35.0])
EVENT = np.array([1] * 9 + [0] * 12, dtype=bool)  # Freireich 1963, the 6-MP arm
PLACEBO = np.array([1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23.0])


@pytest.mark.parametrize(("k", "n"), [(0, 3), (1, 3), (8, 8), (3, 10), (19, 20)])
def test_clopper_pearson_agrees_with_statsmodels(k, n):
    assert s.clopper_pearson(k, n) == pytest.approx(proportion_confint(k, n, method="beta"), abs=1e-12)


def test_clopper_pearson_edges():
    assert s.clopper_pearson(0, 0) == (0.0, 1.0)
    assert s.clopper_pearson(0, 8).high == pytest.approx(1 - 0.025 ** (1 / 8))
    with pytest.raises(ValueError, match="9 events in 8 trials"):
        s.clopper_pearson(9, 8)


@pytest.mark.parametrize("n", [3, 8, 20])
def test_clopper_pearson_covers_at_every_probability(n):
    intervals = [s.clopper_pearson(k, n) for k in range(n + 1)]
    for p in np.linspace(0.005, 0.995, 100):
        inside = [k for k, (low, high) in enumerate(intervals) if low <= p <= high]
        assert stats.binom.pmf(inside, n, p).sum() >= 0.95


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 0), (8, 0), (7, 1), (3, 3), (1, 9)])
def test_mcnemar_agrees_with_statsmodels(b, c):
    expected = 1.0 if b + c == 0 else mcnemar([[4, b], [c, 2]], exact=True).pvalue
    assert s.mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-12)


def test_five_pairs_can_never_reach_the_level_and_eight_survive_four_comparisons():
    assert s.mcnemar_exact(5, 0) == 0.0625
    assert 4 * s.mcnemar_exact(8, 0) < 0.05


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_agrees_with_statsmodels(pvalues):
    with patch("gc.collect"):  # which multipletests calls each time, a tenth of a second and more
        expected = multipletests(pvalues, method="holm")[1]
    assert s.holm(pvalues) == pytest.approx(expected, abs=1e-12)


def test_holm_leaves_out_tests_that_were_not_made():
    assert s.holm([0.01, np.nan, 0.04]) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    assert s.holm([]).shape == (0,)


def test_holm_and_mcnemar_keep_the_rate_of_false_claims():
    rng = np.random.default_rng(1)
    fails = rng.random((2000, 5, 8)) < rng.random((2000, 1, 8))
    table = {(b, c): s.mcnemar_exact(b, c) for b in range(9) for c in range(9 - b)}
    claims = 0
    for control, *arms in fails:
        p = [table[int((control & ~arm).sum()), int((~control & arm).sum())] for arm in arms]
        claims += bool((s.holm(p) <= 0.05).any())
    assert claims / 2000 <= 0.05


@pytest.mark.parametrize(
    ("n", "p_control", "p_arm", "expected"), [(8, 0.9, 0.1, 0.77), (10, 0.9, 0.1, 0.93), (20, 0.6, 0.1, 0.88)]
)
def test_power_against_known_values(n, p_control, p_arm, expected):
    assert s.mcnemar_power(n, p_control * (1 - p_arm), (1 - p_control) * p_arm) == pytest.approx(expected, abs=0.01)


def test_power_against_simulation():
    rng = np.random.default_rng(2)
    b, c, _ = rng.multinomial(12, [0.55, 0.1, 0.35], size=4000).T
    found = np.mean([s.mcnemar_exact(int(x), int(y)) <= 0.0125 for x, y in zip(b, c, strict=True)])
    assert s.mcnemar_power(12, 0.55, 0.1, alpha=0.0125) == pytest.approx(found, abs=0.025)


def test_no_power_without_disagreement_or_below_six_pairs():
    assert s.mcnemar_power(100, 0.0, 0.0) == 0.0
    assert s.mcnemar_power(5, 1.0, 0.0) == 0.0
    assert s.mcnemar_power(6, 1.0, 0.0) == 1.0


def test_smallest_effect_is_the_smallest():
    effect = s.smallest_detectable_effect(20, 0.9)
    reached = [s.mcnemar_power(20, 0.9 * (1 - p), 0.1 * p) for p in (0.9 - effect, 0.9 - effect + 0.01)]
    assert reached[0] >= 0.8 > reached[1]
    assert np.isnan(s.smallest_detectable_effect(5, 1.0)), "five pairs show nothing"
    assert s.smallest_detectable_effect(8, 0.0) > 0.75, "where nothing fails, only a rise can be seen"


def test_pairs_to_decide():
    assert s.pairs_to_decide(1.0, 0.0) == 6
    assert s.pairs_to_decide(1.0, 0.0, alpha=0.0125) == 8
    n = s.pairs_to_decide(0.3, 0.05)
    assert n is not None
    assert s.mcnemar_power(n, 0.3, 0.05) >= 0.8 > s.mcnemar_power(n - 1, 0.3, 0.05)
    assert s.pairs_to_decide(0.1, 0.1) is None


def test_kaplan_meier_by_hand():
    curve = s.kaplan_meier([2, 3, 3, 5], [True, True, False, False])
    assert curve.time.tolist() == [0, 2, 3]
    assert curve.survival == pytest.approx([1, 3 / 4, 3 / 4 * 2 / 3])


def test_kaplan_meier_agrees_with_lifelines():
    curve = s.kaplan_meier(TIME, EVENT)
    fit = lifelines.KaplanMeierFitter().fit(TIME, EVENT)
    assert curve.survival == pytest.approx(fit.survival_function_at_times(curve.time).to_numpy())
    band = fit.confidence_interval_survival_function_.loc[curve.time].to_numpy()
    assert np.stack([curve.low, curve.high], axis=1) == pytest.approx(band)


def test_kaplan_meier_when_all_or_none_fail():
    everyone = s.kaplan_meier([0, 4], [True, True])
    assert everyone.time.tolist() == [0, 0, 4]
    assert everyone.survival.tolist() == [1, 0.5, 0]
    assert np.isfinite([everyone.low, everyone.high]).all()
    assert s.kaplan_meier([4, 4], [False, False]).survival.tolist() == [1]
    assert s.kaplan_meier([], []).survival.tolist() == [1]


def test_logrank_agrees_with_lifelines():
    expected = logrank_test(TIME, PLACEBO, EVENT, np.ones(21)).p_value
    assert s.logrank(TIME, EVENT, PLACEBO, np.ones(21)) == pytest.approx(expected)


def test_logrank_without_information():
    assert s.logrank([9, 9], [False, False], [9, 9], [False, False]) == 1.0
    assert s.logrank([4, 4], [True, True], [4, 4], [True, True]) == 1.0
    assert s.logrank([], [], [4], [True]) == 1.0


def test_restricted_mean_survival_agrees_with_lifelines():
    fit = lifelines.KaplanMeierFitter().fit(TIME, EVENT)
    assert s.restricted_mean_survival(TIME, EVENT, 20) == pytest.approx(restricted_mean_survival_time(fit, t=20))


def test_restricted_mean_survival_by_hand():
    assert s.restricted_mean_survival([50, 100], [True, False], 100) == 75
    assert s.restricted_mean_survival([100, 100], [False, False], 100) == 100
    assert s.restricted_mean_survival([0, 0], [True, True], 100) == 0
    assert s.restricted_mean_survival([50, 150], [True, True], 100) == 75, "failures beyond the horizon do not count"
    assert np.isnan(s.restricted_mean_survival([], [], 100))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_interquartile_mean_agrees_with_scipy(values):
    assert s.interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25), abs=1e-6)


def test_a_bootstrap_in_parts_has_the_same_numbers(monkeypatch):
    values, control = np.random.default_rng(0).lognormal(size=(2, 23))
    whole = s.interquartile_mean_interval(values), s.ratio_of_medians(values, control)
    monkeypatch.setattr(s, "PART", 23 * 7)
    assert (s.interquartile_mean_interval(values), s.ratio_of_medians(values, control)) == whole


def test_interquartile_mean_ignores_one_wild_run_in_eight():
    assert s.interquartile_mean([1, 2, 3, 4, 5, 6, 7, np.inf]) == 4.5
    assert np.isnan(s.interquartile_mean([]))


def test_bootstrap_interval_is_reproducible_and_absent_for_few_values():
    values = np.random.default_rng(0).normal(size=8)
    assert s.interquartile_mean_interval(values, seed=3) == s.interquartile_mean_interval(values, seed=3)
    low, high = s.interquartile_mean_interval(values)[1:]
    assert low < s.interquartile_mean(values) < high
    assert np.isnan(s.interquartile_mean_interval(values[:4]).low)
    assert np.isnan(s.ratio_of_medians(values[:4] + 9, values[:4] + 9).low)


@pytest.mark.parametrize("n", [5, 8, 20])
@pytest.mark.parametrize(("draw", "truth"), [("normal", 0.0), ("exponential", None)])
def test_bootstrap_interval_covers_nearly_as_promised(n, draw, truth):
    if truth is None:
        q = stats.expon.ppf([0.25, 0.75])
        truth = float(stats.expon.expect(lambda x: x, lb=q[0], ub=q[1]) / 0.5)
    samples = getattr(np.random.default_rng(4), draw)(size=(400, n))
    estimates = [s.interquartile_mean_interval(x, resamples=400) for x in samples]
    covered = np.mean([e.low <= truth <= e.high for e in estimates])
    assert 0.92 <= covered <= 0.985


def test_ratio_of_medians():
    rng = np.random.default_rng(5)
    control = rng.uniform(1.0, 1.2, size=12)
    ratio = s.ratio_of_medians(1.5 * control, control)
    assert ratio.value == pytest.approx(1.5)
    assert 1.3 < ratio.low <= 1.5 <= ratio.high < 1.7
    assert np.isnan(s.ratio_of_medians([1.0], [0.0]).value)
    with pytest.raises(ValueError, match="2 values and 1 controls"):
        s.ratio_of_medians([1.0, 2.0], [1.0])


def test_performance_profile_by_hand():
    assert s.performance_profile([0.1, 0.2, np.inf, np.nan], [0.05, 0.1, 0.3]).tolist() == [0, 0.25, 0.5]
    assert np.isnan(s.performance_profile([], [0.1])).all()


def test_half_failure_rate_by_hand():
    assert s.half_failure_rate([0.1, 1.0], [0, 8], [8, 8]) == pytest.approx(10**-0.5)
    assert s.half_failure_rate([1.0, 0.1], [8, 0], [8, 8]) == pytest.approx(10**-0.5), "in whatever order"
    assert np.isnan(s.half_failure_rate([0.1, 1.0], [0, 2], [8, 8])), "never half"
    assert np.isnan(s.half_failure_rate([0.1, 1.0], [8, 8], [8, 8])), "always more than half"
    pooled = s.half_failure_rate([0.1, 0.2, 0.4, 0.8], [0, 4, 2, 8], [8, 8, 8, 8])
    assert 0.4 < pooled < 0.8, "shares of 4/8 and 2/8 are pooled to 3/8"
