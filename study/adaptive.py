"""Replicates added while the verdict is open: a paired test that may be looked at as often as one likes.

The exact McNemar test holds for a number of pairs fixed beforehand; looked at again and again it errs more often
than its level. Here the evidence is a wager instead: the discordant pairs are fair coins if arm and control fail
alike, and capital won by betting against fair coins grows above 1 / alpha with a probability of at most alpha,
however often and on whatever grounds one looks or stops (Ville 1939; Shafer 2021).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from scipy import special, stats

from study.statistics import ALPHA

FIRST = 6  # replicates of the first round
BATCH = 2  # replicates of each further round
MOST = 24  # replicates after which an arm stops in any case
FUTILE = 0.05  # predictive probability of a decision below which an arm stops
PRIOR = 0.5  # of each share of pairs (better, worse, agreeing), for the prediction alone: Jeffreys

Decision = Literal["open", "settled", "futile"]


class Pairs(NamedTuple):
    """Paired replicates of an arm and its control: of ``n``, in ``better`` only the control was not ok, and so on."""

    n: int
    better: int
    worse: int


def wager(better: int, worse: int) -> float:
    """Natural logarithm of the capital won, from 1, by betting on the next discordant pair.

    The bet is the Krichevsky-Trofimov mixture: the likelihood ratio of a share spread as Beta(1/2, 1/2) against one
    half. It needs no guess of the effect, and its direction is left open, so that the test is two-sided.
    """
    mixture = float(special.betaln(better + 0.5, worse + 0.5) - special.betaln(0.5, 0.5))
    return mixture + (better + worse) * math.log(2)


def mcnemar_sequential(better: int, worse: int) -> float:
    """Two-sided p of a paired difference that holds at every look: the reciprocal of the capital, at most 1.

    Compare :func:`study.statistics.mcnemar_exact`, which holds at one look; eight pairs that all disagree the same
    way give 0.0078 there and 0.020 here, the price of looking whenever one likes.

    >>> round(mcnemar_sequential(8, 0), 3), mcnemar_sequential(2, 2)
    (0.02, 1.0)
    """
    return min(1.0, math.exp(-wager(better, worse)))


def predictive_power(pairs: Pairs, more: int, alpha: float) -> float:
    """Probability that ``more`` further pairs decide, given what is known: a forecast, no part of the test.

    The shares of better, worse and agreeing pairs are uncertain; their Dirichlet posterior is averaged over, so the
    coming counts follow a Dirichlet-multinomial distribution. Reached is meant at the end of the ``more`` pairs.
    """
    agreeing = pairs.n - pairs.better - pairs.worse
    weights = np.array([pairs.better, pairs.worse, agreeing]) + PRIOR
    coming = [(i, j, more - i - j) for i in range(more + 1) for j in range(more + 1 - i)]
    decisive = [c for c in coming if mcnemar_sequential(pairs.better + c[0], pairs.worse + c[1]) <= alpha]
    if not decisive:
        return 0.0
    return float(np.sum(stats.dirichlet_multinomial.pmf(np.array(decisive), weights, more)))


def decide(pairs: Pairs, arms: int, most: int = MOST) -> Decision:
    """Whether an arm needs more replicates.

    Settled: its p, times the number of arms held against the control (Bonferroni, which Holm's correction of the
    final table never undoes), is at most ``ALPHA``. Futile: with all replicates up to ``most`` a decision would be
    improbable. Stopping for futility can only lower the error rate.

    Args:
        pairs: what is known of the arm.
        arms: comparisons of its condition.
        most: replicates after which it stops in any case.
    """
    alpha = ALPHA / max(1, arms)
    if mcnemar_sequential(pairs.better, pairs.worse) <= alpha:
        return "settled"
    more = most - pairs.n
    return "open" if more > 0 and predictive_power(pairs, more, alpha) >= FUTILE else "futile"
