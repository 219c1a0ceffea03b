"""The sequential paired test: its error rate exactly, its power by simulation, and when an arm stops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from study.adaptive import FUTILE, MOST, Pairs, decide, mcnemar_sequential, predictive_power, wager
from study.statistics import ALPHA, mcnemar_exact


def chance_of_ever_rejecting(test, alpha: float, most: int, share: float = 0.5) -> float:
    """Exact probability that a test, looked at after each of ``most`` discordant pairs, ever gives p <= alpha."""
    alive, rejected = {0: 1.0}, 0.0
    for d in range(1, most + 1):
        after: dict[int, float] = {}
        for better, mass in alive.items():
            after[better + 1] = after.get(better + 1, 0.0) + mass * share
            after[better] = after.get(better, 0.0) + mass * (1 - share)
        rejected += sum(mass for better, mass in after.items() if test(better, d - better) <= alpha)
        alive = {better: mass for better, mass in after.items() if test(better, d - better) > alpha}
    return rejected


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.0125])
def test_looking_after_every_pair_keeps_the_error_rate(alpha: float):
    assert 0 < chance_of_ever_rejecting(mcnemar_sequential, alpha, 150) <= alpha


def test_the_fixed_test_would_not_keep_it():
    assert chance_of_ever_rejecting(mcnemar_exact, ALPHA, 150) > 2 * ALPHA


def test_the_wager_is_fair():
    for better, worse in ((0, 0), (3, 1), (10, 10)):
        now, up, down = wager(better, worse), wager(better + 1, worse), wager(better, worse + 1)
        assert math.exp(up) / 2 + math.exp(down) / 2 == pytest.approx(math.exp(now))


def test_the_wager_by_hand():
    assert math.exp(wager(1, 0)) == pytest.approx(1.0)
    assert math.exp(wager(2, 0)) == pytest.approx(4 * 3 / 8)
    assert mcnemar_sequential(0, 0) == 1.0
    assert mcnemar_sequential(5, 1) == mcnemar_sequential(1, 5)


def test_it_costs_something_to_look_at_any_time():
    for d in range(1, 40):
        assert mcnemar_sequential(d, 0) >= mcnemar_exact(d, 0) - 1e-12


def test_predictive_power_of_what_cannot_be_missed_or_reached():
    assert predictive_power(Pairs(6, 6, 0), 18, ALPHA) > 0.9
    assert predictive_power(Pairs(20, 0, 0), 4, ALPHA) == 0.0


def test_predictive_power_against_draws():
    rng = np.random.default_rng(5)
    shares = rng.dirichlet([3.5, 0.5, 3.5], size=20_000)
    coming = np.array([rng.multinomial(10, share) for share in shares])
    reached = [mcnemar_sequential(3 + b, w) <= ALPHA for b, w, _ in coming]
    assert predictive_power(Pairs(6, 3, 0), 10, ALPHA) == pytest.approx(np.mean(reached), abs=0.02)


def test_when_an_arm_stops():
    assert decide(Pairs(8, 8, 0), arms=1) == "settled"
    assert decide(Pairs(8, 8, 0), arms=4) == "open", "four comparisons ask for more"
    assert decide(Pairs(10, 10, 0), arms=4) == "settled"
    assert decide(Pairs(10, 0, 10), arms=4) == "settled", "worse is a decision too"
    assert decide(Pairs(10, 0, 0), arms=1) == "futile"
    assert decide(Pairs(MOST, 5, 1), arms=1) == "futile", "no replicate is left"


def test_no_futility_while_a_decision_is_likely():
    pairs = Pairs(6, 4, 0)
    assert predictive_power(pairs, MOST - 6, ALPHA) > FUTILE
    assert decide(pairs, arms=1) == "open"
