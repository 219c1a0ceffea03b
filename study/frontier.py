"""Critical learning rates: where to look next, what was found, and how sure it is. Plain numbers in and out.

LR50 of an algorithm is the rate at which half of its runs fail. Every rate is tried with the same paired
replicates, so runs of different rates are not independent: a replicate that is easy to upset is so at every rate.
A logistic fit with its likelihood would count them as independent and claim too much. Here each claim about a rate
rests on the runs of that rate alone, one per replicate, and holds whatever ties the rates together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import integrate, stats

from study.statistics import LEVEL, Estimate, half_failure_rate

RESOLUTION = 1.2  # neighbouring rates closer than this factor are told apart no further
STRIDE = math.sqrt(10.0)  # factor by which the search goes beyond the rates tried
LOWEST, HIGHEST = 1e-5, 100.0  # rates between which the search stays


class Point(NamedTuple):
    """Runs at one learning rate: judged, failed, and ok (neither failed nor stalled)."""

    rate: float
    n: int
    failed: int
    ok: int


@functools.cache
def fewest_failures(n: int, level: float = LEVEL) -> int:
    """Largest number of failures among ``n`` runs that shows a probability below one half; -1 if none does.

    Exact one-sided binomial test at (1 - level) / 2. With fewer than 6 runs nothing is shown.

    >>> fewest_failures(5), fewest_failures(6), fewest_failures(9)
    (-1, 0, 1)
    """
    k = int(stats.binom.ppf((1 - level) / 2, n, 0.5))
    return k if stats.binom.cdf(k, n, 0.5) <= (1 - level) / 2 else k - 1


def upper_edge(points: Sequence[Point]) -> list[Point]:
    """The points in rising order from the lowest rate on at which most runs live: failed least, none missing.

    Far below it a network has not learnt anything when its steps are over, and counts as failed for that; what is
    sought is the rate that is too high.
    """
    line = [p for p in sorted(points) if p.n]
    most = max((p.n - p.failed for p in line), default=0)
    return line[next((i for i, p in enumerate(line) if p.n - p.failed == most), 0) :]


def critical_rate(points: Sequence[Point], level: float = LEVEL) -> Estimate:
    """LR50 with an exact interval.

    From the lowest rate at which most runs live upwards, each rate is tested for failing less than half of the time,
    until one cannot be shown to; the last that could is the lower bound, and likewise from above. Testing in a fixed
    order and stopping at the first that fails keeps the level without a correction (Maurer, Hothorn and Lehmacher
    1995): the bound is wrong only if the first rate beyond the true LR50 is, by chance, taken for one below it.
    Assumed are independent replicates and a probability that rises with the rate from there on; nothing about its
    shape, or about runs of different rates.

    Returns:
        ``value`` interpolated as :func:`study.statistics.half_failure_rate` does, NaN where the rates do not
        bracket it; ``low`` is 0 where no rate was shown to be below LR50, ``high`` infinity where none above.
    """
    line = upper_edge(points)
    value = half_failure_rate([p.rate for p in line], [p.failed for p in line], [p.n for p in line])
    low, high = 0.0, math.inf
    for point in line:
        if point.failed > fewest_failures(point.n, level):
            break
        low = point.rate
    for point in reversed(line):
        if point.n - point.failed > fewest_failures(point.n, level):
            break
        high = point.rate
    return Estimate(value, low, high)


def gain(rate: Estimate, control: Estimate) -> Estimate:
    """LR50 over that of the control, with an interval from those of the two.

    The limits of a difference of logarithms are recovered from the limits of its terms (MOVER; Zou and Donner
    2008): the distances to the limits add in squares, as they would for independent estimates. Replicates that both
    share make the true spread smaller than that, so the interval is on the safe side.
    """
    nan = float("nan")
    if not (rate.value > 0 and control.value > 0):
        # Not bracketed: whatever the two intervals leave possible.
        return Estimate(nan, _ratio(rate.low, control.high), _ratio(rate.high, control.low))
    value = rate.value / control.value
    down = math.hypot(_decades(rate.low, rate.value), _decades(control.value, control.high))
    up = math.hypot(_decades(rate.value, rate.high), _decades(control.low, control.value))
    return Estimate(value, value * 10**-down, value * 10**up if up < math.inf else math.inf)


def ranks(rates: Mapping[str, Estimate]) -> list[list[str]]:
    """Names in groups of rising LR50; those of one group are not told apart, as their gain may be 1.

    A rate that was never bracketed is ranked by the bounds that it has; one without any is left out.
    """
    placed = sorted((place, name) for name, rate in rates.items() if (place := _place(rate)) > 0)
    groups: list[list[str]] = []
    for _, name in placed:
        if groups and not all(gain(rates[name], rates[other]).low > 1 for other in groups[-1]):
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def _place(rate: Estimate) -> float:
    if not math.isnan(rate.value):
        return rate.value
    return rate.low if rate.low > 0 else rate.high if rate.high < math.inf else 0.0


def _decades(low: float, high: float) -> float:
    return math.inf if low == 0.0 or high == math.inf else math.log10(high / low)


def _ratio(over: float, under: float) -> float:
    return math.inf if under == 0.0 else over / under


def usable_band(points: Sequence[Point]) -> float:
    """Area under the share of ok runs over log10 of the rate, in decades: where the network learns, not only lives.

    It covers the rates tried: too small where runs were still ok at the lowest or the highest of them.
    """
    line = [p for p in sorted(points) if p.n]
    return float(integrate.trapezoid([p.ok / p.n for p in line], [math.log10(p.rate) for p in line]))


def describe(rate: Estimate) -> str:
    """LR50 in words: a number with its interval, or what is known of one that was never bracketed.

    >>> describe(Estimate(0.3, 0.2, 0.5)), describe(Estimate(math.nan, 3.0, math.inf))
    ('0.3 (0.2 to 0.5)', 'above 3')
    >>> describe(Estimate(0.3, 0.0, 0.5)), describe(Estimate(math.nan, 0.0, math.inf))
    ('0.3 (below 0.5)', 'unknown')
    """
    if rate.low == rate.high:
        return f"{rate.value:.3g}"
    bounds = {
        (True, True): f"{rate.low:.3g} to {rate.high:.3g}",
        (True, False): f"above {rate.low:.3g}",
        (False, True): f"below {rate.high:.3g}",
        (False, False): "no bound",
    }[rate.low > 0, rate.high < math.inf]
    if math.isnan(rate.value):
        return "unknown" if bounds == "no bound" else bounds
    return f"{rate.value:.3g} ({bounds})"


# Where to look next


def next_rates(points: Sequence[Point], resolution: float = RESOLUTION) -> list[float]:
    """The rates to try next, at most three, in rising order; none when nothing is gained any more.

    Where even the rate that fails least is not safe, or the highest does not, the search goes beyond, and so it does
    below a lowest rate at which most runs are ok, to see where the usable band begins. Inside, it halves (in the
    logarithm) the gap in which LR50 lies and the two gaps at the ends of its interval, while they are wider than
    ``resolution``.
    """
    line = upper_edge(points)
    if not line:
        return []
    lowest = min(p for p in points if p.n)
    safe, deadly = [_is_safe(p) for p in line], [_is_deadly(p) for p in line]
    beyond = [lowest.rate / STRIDE] if not safe[0] or 2 * lowest.ok > lowest.n else []
    beyond += [line[-1].rate * STRIDE] if not deadly[-1] else []
    gaps = {_prefix(safe), len(line) - _prefix(deadly[::-1]), _crossing(line)}
    inside = [
        math.sqrt(line[i - 1].rate * line[i].rate)
        for i in gaps
        if 0 < i < len(line) and line[i].rate > resolution * line[i - 1].rate
    ]
    return sorted(float(f"{rate:.3g}") for rate in [*beyond, *inside] if LOWEST <= rate <= HIGHEST)


def _is_safe(point: Point) -> bool:
    """Whether so few fail that the rate bounds LR50 from below; none, where there are too few runs to show it."""
    return point.failed <= max(0, fewest_failures(point.n))


def _is_deadly(point: Point) -> bool:
    return point.n - point.failed <= max(0, fewest_failures(point.n))


def _prefix(flags: Sequence[bool]) -> int:
    """How many are true before the first that is not."""
    return next((i for i, flag in enumerate(flags) if not flag), len(flags))


def _crossing(line: Sequence[Point]) -> int:
    """Index of the upper end of the gap in which LR50 lies."""
    value = half_failure_rate([p.rate for p in line], [p.failed for p in line], [p.n for p in line])
    return 0 if math.isnan(value) else int(np.searchsorted([p.rate for p in line], value))
