"""The typical difference within pairs, with an exact interval. Plain functions of arrays with named axes, over numpy.

Axis legend: R replicates that two arms share, S = R (R + 1) / 2 their Walsh averages (means of two differences, each
also with itself). Nothing here knows a table, a file or an algorithm.

Wilcoxon's signed-rank statistic counts the Walsh averages above a supposed shift. Under its null distribution, in which
the signs of the differences are fair coins, so many of them lie above the true shift as ranks drawn by coins add up to.
Hence the interval: cut as many Walsh averages from either end as that sum falls short of with no more than half of the
allowed error (Hodges and Lehmann 1963; Hollander, Wolfe and Chicken 2014, section 3.2). It is exact where the
differences are symmetric about their middle, whatever their distribution else; ties only make it wider.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from study.statistics import LEVEL, Array, Estimate


def paired_shift(values: ArrayLike, control: ArrayLike, level: float = LEVEL) -> Estimate:
    """By how much (R,) values exceed their (R,) paired controls: Hodges-Lehmann estimate and exact interval.

    Pairs that lack a finite number are left out. With fewer than :func:`fewest_pairs` there is no interval (NaN), and
    without any no estimate.

    >>> paired_shift([3, 4, 5, 6, 7, 8], [2, 2, 2, 2, 2, 2])
    Estimate(value=3.5, low=1.0, high=6.0)
    """
    x, y = np.asarray(values, dtype=float), np.asarray(control, dtype=float)
    if x.shape != y.shape:
        raise ValueError(f"impossible input: {x.shape} values and {y.shape} controls")
    walsh = walsh_averages((x - y)[np.isfinite(x) & np.isfinite(y)])
    if not len(walsh):
        return Estimate(math.nan, math.nan, math.nan)
    n = round((math.sqrt(8 * len(walsh) + 1) - 1) / 2)
    cut = int(np.sum(np.cumsum(signed_rank_probabilities(n)) <= (1 - level) / 2))
    low, high = (float(walsh[cut - 1]), float(walsh[-cut])) if cut else (math.nan, math.nan)
    return Estimate(float(np.median(walsh)), low, high)


def paired_ratio(values: ArrayLike, control: ArrayLike, level: float = LEVEL) -> Estimate:
    """How many times their (R,) paired controls the (R,) values are: the paired shift of the logarithms.

    Pairs in which either number is not positive are left out, as those that lack a finite one are.

    >>> [round(bound, 6) for bound in paired_ratio([2, 4, 8, 16, 32, 64], [2, 2, 2, 2, 2, 2])]
    [5.656854, 1.0, 32.0]
    """
    x, y = np.asarray(values, dtype=float), np.asarray(control, dtype=float)
    log_x, log_y = (np.log(np.where(v > 0, v, math.nan)) for v in (x, y))
    return Estimate(*(math.exp(bound) for bound in paired_shift(log_x, log_y, level)))


def fewest_pairs(level: float = LEVEL) -> int:
    """Fewest pairs that give an interval of the level: all signs agree by chance in 2 of 2^R cases.

    >>> fewest_pairs(), fewest_pairs(0.99)
    (6, 8)
    """
    return math.ceil(1 - math.log2(1 - level))


def walsh_averages(differences: Array) -> Array:
    """(R,) -> (S,) means of every two differences, and each by itself, in rising order."""
    first, second = np.triu_indices(len(differences))
    return np.sort((differences[first] + differences[second]) / 2)


def signed_rank_probabilities(n: int) -> Array:
    """(S + 1,) probability of each sum of the ranks 1 to ``n`` when a fair coin decides which of them count.

    >>> signed_rank_probabilities(2).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    probability = np.ones(1)
    for rank in range(1, n + 1):
        without, included = np.pad(probability, (0, rank)), np.pad(probability, (rank, 0))
        probability = (without + included) / 2
    return probability
