"""Statistics of a comparison: plain functions of arrays whose axes are named, over scipy.

Axis legend: R replicates (paired seeds) of one arm, T times, K thresholds, M comparisons. Aggregate,
interval and plot never mix. Nothing here knows a table, a file or an algorithm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
LEVEL = 0.95
ALPHA = 0.05
POWER = 0.8
LARGEST_SAMPLE = 1000
PART = 1 << 20  # indices of a bootstrap that are held at once
FEWEST_FOR_BOOTSTRAP = 5  # the whole range of four values covers a median with less than 90%


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A number with its confidence interval."""

    value: float
    low: float
    high: float


class SurvivalCurve(NamedTuple):
    """A right-continuous step function: ``survival[t]`` holds from ``time[t]`` on. All fields have shape (T,)."""

    time: Array
    survival: Array
    low: Array
    high: Array


# Proportions and paired differences


def clopper_pearson(k: int, n: int, level: float = LEVEL) -> Interval:
    """Exact interval of a probability after ``k`` events in ``n`` trials (Clopper and Pearson 1934).

    Its coverage is never below ``level``. Without a trial it is the whole range from 0 to 1.

    >>> [round(bound, 3) for bound in clopper_pearson(1, 3)]
    [0.008, 0.906]
    """
    _require(0 <= k <= n, f"{k} events in {n} trials")
    tail = (1.0 - level) / 2.0
    low = 0.0 if k == 0 else float(stats.beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(stats.beta.ppf(1.0 - tail, k + 1, n - k))
    return Interval(low, high)


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact McNemar p of a paired difference: ``b`` and ``c`` pairs disagree one way and the other.

    Pairs that agree carry no information; given b + c of them that disagree, b is Binomial(b + c, 1/2)
    under the null hypothesis (McNemar 1947, in its exact form).

    >>> mcnemar_exact(8, 0)
    0.0078125
    """
    _require(b >= 0 and c >= 0, f"{b} and {c} discordant pairs")
    return 1.0 if b + c == 0 else float(min(1.0, 2.0 * stats.binom.cdf(min(b, c), b + c, 0.5)))


def holm(pvalues: ArrayLike) -> Array:
    """Holm's step-down correction of (M,) p-values; NaN stands for a test not made and stays NaN.

    Holm 1979. Keeps the probability of any false claim among the M below the level, whatever their dependence.

    >>> [round(float(p), 6) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(pvalues, dtype=float)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    steps = np.arange(len(order), 0, -1)
    corrected = np.full(p.shape, np.nan)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * steps)) if len(order) else []
    return corrected


def mcnemar_power(n: int, p_better: float, p_worse: float, alpha: float = ALPHA) -> float:
    """Probability that the exact McNemar test on ``n`` pairs comes out at or below ``alpha``.

    Args:
        n: pairs.
        p_better: probability that a pair disagrees one way (control fails, arm does not).
        p_worse: probability that it disagrees the other way.
        alpha: level of the test, after any correction for several comparisons.
    """
    _require(p_better >= 0 and p_worse >= 0 and p_better + p_worse <= 1 + 1e-12, f"{p_better} and {p_worse}")
    discordant = min(1.0, p_better + p_worse)
    if n < 1 or discordant == 0.0:
        return 0.0
    d = np.arange(n + 1)
    critical = stats.binom.ppf(alpha / 2.0, d, 0.5)
    critical = np.where(2.0 * stats.binom.cdf(critical, d, 0.5) <= alpha, critical, critical - 1)
    share = min(1.0, p_better / discordant)
    reject = stats.binom.cdf(critical, d, share) + stats.binom.sf(d - critical - 1, d, share)
    reject = np.where(critical < 0, 0.0, reject)
    return float(np.sum(stats.binom.pmf(d, n, discordant) * reject))


def smallest_detectable_effect(n: int, p_control: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """Smallest change of a failure probability that ``n`` pairs would show with the given power; NaN if none.

    The change is a fall where the control fails at least half of the time, else a rise. Pairs are taken as
    independent given their arm's probability, which is cautious: shared seeds make them agree more often.
    """
    _require(0 <= p_control <= 1, f"probability {p_control}")
    sign = -1.0 if p_control >= 0.5 else 1.0
    for change in np.linspace(0.01, 1.0, 100):
        p_arm = p_control + sign * change
        if not -1e-9 <= p_arm <= 1 + 1e-9:
            break
        p_arm = min(1.0, max(0.0, p_arm))
        if mcnemar_power(n, p_control * (1 - p_arm), (1 - p_control) * p_arm, alpha) >= power:
            return float(change)
    return float("nan")


def pairs_to_decide(p_better: float, p_worse: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Fewest pairs with which the exact McNemar test has the given power; None above 1,000.

    From 60 pairs on in steps of about 3%.
    """
    sizes = [*range(1, 60), *np.unique(np.geomspace(60, LARGEST_SAMPLE, 96).astype(int)).tolist()]
    return next((n for n in sizes if mcnemar_power(n, p_better, p_worse, alpha) >= power), None)


# Time to failure


def kaplan_meier(time: ArrayLike, event: ArrayLike, level: float = LEVEL) -> SurvivalCurve:
    """Kaplan-Meier estimate of the survival function (Kaplan and Meier 1958).

    Args:
        time: (R,) step of the failure, or the last step seen of a run that did not fail.
        event: (R,) bool, True where the run failed; the others are censored.
        level: confidence of the pointwise band: Greenwood's variance on the log-log scale. Where the estimate
            is 0 the band keeps its last upper bound, and where it is 1 it has no width.

    Returns:
        The curve from time 0, with one entry per distinct failure time.
    """
    t, died = _times(time, event)
    at = np.unique(t[died])
    deaths = np.array([np.sum(died & (t == moment)) for moment in at], dtype=float)
    at_risk = np.array([np.sum(t >= moment) for moment in at], dtype=float)
    survival = np.cumprod(1.0 - deaths / at_risk) if len(at) else np.array([])
    low, high = _greenwood(survival, deaths, at_risk, level)
    one = np.ones(1)
    return SurvivalCurve(
        np.concatenate([np.zeros(1), at]), *(np.concatenate([one, curve]) for curve in (survival, low, high))
    )


def _greenwood(survival: Array, deaths: Array, at_risk: Array, level: float) -> tuple[Array, Array]:
    alive = survival > 0
    s, d, n = survival[alive], deaths[alive], at_risk[alive]
    error = np.sqrt(np.cumsum(d / (n * (n - d)))) / np.abs(np.log(s))
    z = float(stats.norm.ppf((1 + level) / 2))
    low, high = np.zeros_like(survival), np.ones_like(survival)
    low[alive], high[alive] = s ** np.exp(z * error), s ** np.exp(-z * error)
    if not alive.all() and alive.any():
        high[~alive] = high[alive][-1]
    return low, high


def logrank(time_a: ArrayLike, event_a: ArrayLike, time_b: ArrayLike, event_b: ArrayLike) -> float:
    """Two-sided p of the log-rank test (Mantel 1966) that two groups of runs fail alike; 1 if none failed."""
    (a, died_a), (b, died_b) = _times(time_a, event_a), _times(time_b, event_b)
    if not (len(a) and len(b)) or not (died_a.any() or died_b.any()):
        return 1.0
    if np.max(a) == np.min(a) == np.max(b) == np.min(b) and died_a.all() and died_b.all():
        return 1.0
    with np.errstate(invalid="ignore", divide="ignore"):
        result = stats.logrank(
            stats.CensoredData.right_censored(a, ~died_a), stats.CensoredData.right_censored(b, ~died_b)
        )
    return float(result.pvalue) if np.isfinite(result.pvalue) else 1.0


def restricted_mean_survival(time: ArrayLike, event: ArrayLike, horizon: float) -> float:
    """Mean time to failure when every run is watched for ``horizon`` steps: the area under Kaplan-Meier up to it.

    Royston and Parmar 2013. Beyond the last time seen the curve is held at its last value. NaN without runs.
    """
    if not len(_times(time, event)[0]):
        return float("nan")
    curve = kaplan_meier(time, event)
    edges = np.append(np.minimum(curve.time, horizon), horizon)
    return float(np.sum(curve.survival * np.diff(edges)))


# Quality


def interquartile_mean(values: ArrayLike) -> float:
    """Mean of the middle half of (R,) values: a quarter, rounded down, is cut at either end. NaN without values.

    Agarwal et al. 2021: steadier than the mean, and less wasteful than the median.
    """
    x = np.asarray(values, dtype=float)
    return float(_middle_mean(x[np.newaxis])[0]) if len(x) else float("nan")


def _middle_mean(values: Array) -> Array:
    """(B, R) -> (B,)."""
    n = values.shape[-1]
    return np.asarray(np.sort(values, axis=-1)[..., n // 4 : n - n // 4].mean(axis=-1))


def interquartile_mean_interval(
    values: ArrayLike, level: float = LEVEL, seed: int = 0, resamples: int = 2000
) -> Estimate:
    """The interquartile mean with a bootstrap interval over (R,) replicates.

    Percentile bootstrap whose level is widened for small samples as Hesterberg (2015, section 4.2) proposes:
    the normal quantile is replaced by sqrt(n / (n - 1)) times Student's. Fewer than five values give no interval.
    """
    x = np.asarray(values, dtype=float)
    if len(x) < FEWEST_FOR_BOOTSTRAP:
        return Estimate(interquartile_mean(x), float("nan"), float("nan"))
    means = [_middle_mean(x[picks]) for picks in _resampled(len(x), resamples, seed)]
    low, high = np.quantile(np.concatenate(means), _widened(len(x), level))
    return Estimate(interquartile_mean(x), float(low), float(high))


def ratio_of_medians(
    values: ArrayLike, control: ArrayLike, level: float = LEVEL, seed: int = 0, resamples: int = 2000
) -> Estimate:
    """Median of (R,) values over the median of their (R,) paired controls, with a bootstrap interval over pairs."""
    x, y = np.asarray(values, dtype=float), np.asarray(control, dtype=float)
    _require(x.shape == y.shape, f"{len(x)} values and {len(y)} controls")
    nan = float("nan")
    if not len(x) or not np.median(y) > 0:
        return Estimate(nan, nan, nan)
    ratio = float(np.median(x) / np.median(y))
    if len(x) < FEWEST_FOR_BOOTSTRAP:
        return Estimate(ratio, nan, nan)
    tiny = np.finfo(float).tiny
    ratios = [
        np.median(x[picks], axis=1) / np.maximum(np.median(y[picks], axis=1), tiny)
        for picks in _resampled(len(x), resamples, seed)
    ]
    low, high = np.quantile(np.concatenate(ratios), _widened(len(x), level))
    return Estimate(ratio, float(low), float(high))


def _resampled(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Indices (resamples, n) drawn with replacement, in parts that fit the memory; the parts change no number."""
    generator, rows = np.random.default_rng(seed), max(1, PART // n)
    for start in range(0, resamples, rows):
        yield generator.integers(n, size=(min(rows, resamples - start), n))


def _widened(n: int, level: float) -> tuple[float, float]:
    tail = float(stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1)))
    return tail, 1.0 - tail


def performance_profile(losses: ArrayLike, thresholds: ArrayLike) -> Array:
    """(K,) share of the (R,) runs whose loss is at most each threshold; a failed run has loss infinity.

    Dolan and More 2002, with scores in place of times. NaN counts as a loss that reaches nothing.
    """
    x = np.asarray(losses, dtype=float)
    tau = np.asarray(thresholds, dtype=float)
    if not len(x):
        return np.full(tau.shape, np.nan)
    return np.asarray((x[np.newaxis, :] <= tau[:, np.newaxis]).mean(axis=1))


def half_failure_rate(rates: Sequence[float], failures: Sequence[int], counts: Sequence[int]) -> float:
    """Learning rate at which half of the runs fail: NaN where the rates tried do not bracket it.

    Failure shares are made to rise with the rate (isotonic regression by pooling adjacent violators), and the
    half is interpolated in the logarithm of the rate. Where the share is one half over a stretch, it is its middle.
    """
    order = np.argsort(rates)
    x = np.log(np.asarray(rates, dtype=float)[order])
    weight = np.asarray(counts, dtype=float)[order]
    share = _pooled(np.asarray(failures, dtype=float)[order] / weight, weight)
    if not len(x) or share[0] >= 0.5 or share[-1] < 0.5:
        return float("nan")
    first, last = int(np.argmax(share >= 0.5)), int(np.flatnonzero(share <= 0.5)[-1])
    rise = _at_half(x[first - 1 : first + 1], share[first - 1 : first + 1])
    fall = x[-1] if last == len(x) - 1 else _at_half(x[last : last + 2], share[last : last + 2])
    return float(np.exp((rise + fall) / 2))


def _at_half(x: Array, share: Array) -> float:
    """Where the line through two points is one half."""
    return float(x[0] + (0.5 - share[0]) / (share[1] - share[0]) * (x[1] - x[0]))


def _pooled(share: Array, weight: Array) -> Array:
    blocks: list[tuple[float, float, int]] = []
    for value, mass in zip(share, weight, strict=True):
        block = (float(value), float(mass), 1)
        while blocks and blocks[-1][0] > block[0]:
            last = blocks.pop()
            total = last[1] + block[1]
            block = ((last[0] * last[1] + block[0] * block[1]) / total, total, last[2] + block[2])
        blocks.append(block)
    return np.array([value for value, _, length in blocks for _ in range(length)])


def _times(time: ArrayLike, event: ArrayLike) -> tuple[Array, NDArray[np.bool_]]:
    t, died = np.asarray(time, dtype=float), np.asarray(event, dtype=bool)
    _require(t.shape == died.shape and bool(np.all(t >= 0)), f"times of shape {t.shape}, events {died.shape}")
    return t, died


def _require(condition: bool, found: str) -> None:
    if not condition:
        raise ValueError(f"impossible input: {found}")
