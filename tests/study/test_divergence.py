"""The failure rule on hand-made curves: numbers in, a word and a step out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from study.divergence import DivergenceRule, Outcome, count_spikes, stall_ratio

CONSTANT, MEAN_PATCH = 1.0, 0.8


def judge(losses: Sequence[float], spreads: Sequence[float] | None = None, every: int = 10) -> Outcome:
    """The outcome of a training whose validations are ``losses``, one every ``every`` steps."""
    rule = DivergenceRule(constant=CONSTANT, mean_patch=MEAN_PATCH)
    for k, loss in enumerate(losses):
        rule.evaluation((k + 1) * every, loss, 0.3 if spreads is None else spreads[k])
    return rule.outcome()


@pytest.mark.parametrize(
    ("losses", "word", "reason", "step"),
    [
        pytest.param([0.9, 0.5, 0.3], "ok", "", None, id="healthy"),
        pytest.param([0.5, 50.0, 0.5, 0.3], "ok", "", None, id="a spike that recovers"),
        pytest.param([0.5, 0.7, 0.9, 1.0, 1.1], "failed", "collapsed", 40, id="slow collapse"),
        pytest.param([0.5, 3.0, 30.0, 3000.0], "failed", "exploded", 20, id="explosion"),
        pytest.param([0.5, 0.4, 30.0], "failed", "collapsed", 30, id="an explosion not yet sustained"),
        pytest.param([1.0, 1.0, 1.0], "failed", "collapsed", 10, id="a flat line at the constant baseline"),
        pytest.param([0.9, 0.9, 0.9], "plateau", "", None, id="between the baselines"),
        pytest.param([0.8, 0.8, 0.8], "plateau", "", None, id="a flat line at the mean patch"),
        pytest.param([0.9, 0.3, 0.3, 0.9], "ok", "", None, id="a spike at the end of a training that has learnt"),
        pytest.param([0.3, 0.9, 0.3, 0.9, 0.9], "plateau", "", None, id="two of the last three on the plateau"),
        pytest.param([1.01, 0.98, 1.01, 0.98], "plateau", "", None, id="an oscillation that ends below the threshold"),
        pytest.param([0.98, 1.01, 0.98, 1.01], "failed", "collapsed", 40, id="an oscillation that ends above it"),
        pytest.param([0.5, math.nan, 0.5], "failed", "nonfinite", 20, id="a validation that is not finite"),
        pytest.param([math.inf], "failed", "nonfinite", 10, id="infinite at once"),
    ],
)
def test_the_word_and_the_step(losses: list[float], word: str, reason: str, step: int | None) -> None:
    assert judge(losses) == Outcome(word=word, reason=reason, failed_at_step=step)  # type: ignore[arg-type]


def test_a_network_that_says_one_thing_has_collapsed_whatever_its_loss() -> None:
    outcome = judge([0.5, 0.6, 0.6], spreads=[0.3, 1e-4, 1e-5])
    assert outcome == Outcome(word="failed", reason="collapsed", failed_at_step=20)


def test_weights_that_are_not_finite_fail_at_their_step_and_end_the_training() -> None:
    rule = DivergenceRule(constant=CONSTANT, mean_patch=MEAN_PATCH)
    rule.step(0, 0.1)
    assert not rule.beyond_recovery
    for step in (1, 2):
        rule.step(step, math.nan)
    rule.evaluation(3, 0.2, 0.3)
    assert rule.beyond_recovery
    assert rule.outcome() == Outcome(word="failed", reason="nonfinite", failed_at_step=1)


def test_nan_at_step_zero() -> None:
    rule = DivergenceRule(constant=CONSTANT, mean_patch=MEAN_PATCH)
    rule.step(0, math.nan)
    assert rule.outcome().failed_at_step == 0


def test_a_training_without_a_validation_is_an_error_not_a_success() -> None:
    assert DivergenceRule(constant=CONSTANT, mean_patch=MEAN_PATCH).outcome().word == "error"


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_rule_has_no_absolute_threshold(scale: float) -> None:
    for losses in ([0.9, 0.3], [0.9, 0.9], [0.9, 1.1], [3.0, 30.0, 30.0]):
        rule = DivergenceRule(constant=scale * CONSTANT, mean_patch=scale * MEAN_PATCH)
        for k, loss in enumerate(losses):
            rule.evaluation((k + 1) * 10, scale * loss, 0.3)
        assert rule.outcome() == judge(losses)


@pytest.mark.parametrize(
    ("losses", "spikes"),
    [
        ([1.0] * 30, 0),
        ([1.0] * 10 + [6.0] + [1.0] * 10, 1),
        ([1.0] * 10 + [6.0, 7.0, 6.0] + [1.0] * 10, 1),
        ([1.0] * 10 + [6.0] + [1.0] * 5 + [9.0] + [1.0] * 5, 2),
        ([1.0] * 10 + [math.nan] + [1.0] * 10, 1),
        ([1.0] * 10 + [4.9] + [1.0] * 10, 0),
        ([], 0),
    ],
)
def test_spikes_are_counted_once_each(losses: list[float], spikes: int) -> None:
    assert count_spikes(losses) == spikes


def test_the_stall_ratio_tells_a_frozen_network() -> None:
    assert stall_ratio([0.1] * 180 + [0.002] * 20) == pytest.approx(0.02)
    assert stall_ratio([0.1] * 200) == pytest.approx(1.0)
    assert math.isnan(stall_ratio([0.1] * 5))
    assert math.isnan(stall_ratio([math.nan] * 200))
