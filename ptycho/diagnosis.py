"""What looks wrong with a scan, by statistics that a few wrong frames or pixels cannot move.

Shape legend: F frames, (S, S) or (N, N) a frame.

A suspicion is no verdict: an object that absorbs strongly makes dark frames too. The thresholds are meant to stay
silent on healthy scans; each stands with its constant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

NEIGHBOURHOOD_PX = 5  # side of the square with whose median a pixel is compared
HOT_FACTOR = 5.0  # a hot pixel's median over the frames, against its neighbourhood
BEAM_PX = 3  # from the zero frequency, where the direct beam may be as sharp as a hot pixel
HOT_COUNTS = 5.0  # and at least so much above it, so that sparse patterns show none
DEAD_COUNTS = 50.0  # counted around a pixel in all sampled frames, while it counted nothing
DARK = 0.1  # of the median frame's total
JUMP = 1.5  # factor between a frame's total and the median one
OVERLOAD = 5.0  # factor between a frame's brightest pixel and the median of those
DEVIATIONS = 8.0  # of the logarithm, in robust standard deviations, that a jump or an overload needs as well
MAD_TO_SIGMA = 1.4826  # of a normal distribution


class SuspectedPixels(NamedTuple):
    """(S, S) bool each: pixels that count too much, and pixels that count nothing, whatever falls on them."""

    hot: NDArray[np.bool_]
    dead: NDArray[np.bool_]


class FrameFacts(NamedTuple):
    """One pass over a scan.

    Attributes:
        totals: (F,) sums of the intensities.
        brightest: (F,) largest values.
        prints: (F,) hashes of the frames.
        mean: (N, N) mean frame.
    """

    totals: NDArray[np.float64]
    brightest: NDArray[np.float64]
    prints: list[bytes]
    mean: NDArray[np.float64]


def suspected_pixels(sample: NDArray[Any], good: NDArray[np.bool_]) -> SuspectedPixels:
    """Hot and dead pixels among the good ones (S, S), from some frames (f, S, S), zero frequency in the centre."""
    values = np.where(np.isfinite(sample) & good, sample, 0)
    mean = values.mean(axis=0, dtype=np.float64)
    around = median_filter(mean, NEIGHBOURHOOD_PX, mode="nearest")
    typical = np.median(values, axis=0)
    hot = typical > HOT_FACTOR * around + HOT_COUNTS
    dead = (mean == 0) & (around * len(sample) > DEAD_COUNTS)
    rows, columns = (np.abs(np.arange(side) - side // 2) for side in mean.shape)
    beam = np.maximum(rows[:, None], columns) <= BEAM_PX
    return SuspectedPixels(hot & good & ~beam, dead & good)


def gather_facts(chunks: Iterable[tuple[int, NDArray[Any]]]) -> FrameFacts:
    """The facts of a scan that comes in chunks (f, N, N), each with the number of its first frame."""
    totals, brightest, prints, total = [], [], [], np.zeros(())
    for _, chunk in chunks:
        totals.append(chunk.sum(axis=(1, 2), dtype=np.float64))
        brightest.append(chunk.max(axis=(1, 2)).astype(np.float64))
        prints += [hashlib.sha256(frame.tobytes()).digest() for frame in chunk]
        total = total + chunk.sum(axis=0, dtype=np.float64)
    return FrameFacts(np.concatenate(totals), np.concatenate(brightest), prints, total / len(prints))


def suspected_frames(facts: FrameFacts, not_finite: Iterable[int]) -> dict[str, NDArray[np.int64]]:
    """The numbers of suspected frames by what is suspected, each frame under the first that fits; empty ones left out.

    Args:
        facts: of the scan, in which values that are not finite count as zero.
        not_finite: numbers of the frames that hold such values.
    """
    typical = float(np.median(facts.totals))
    ratio = facts.totals / typical if typical > 0 else np.ones_like(facts.totals)
    found = {
        "not finite": np.isin(np.arange(len(ratio)), list(not_finite)),
        "dropped (all zero)": facts.totals == 0,
        "dark": ratio < DARK,
        "duplicate of an earlier frame": _repeated(facts.prints),
        "overloaded": _far_off(facts.brightest, OVERLOAD, above_only=True),
        "intensity jump": _far_off(facts.totals, JUMP),
    }
    seen = np.zeros(len(ratio), dtype=bool)
    named: dict[str, NDArray[np.int64]] = {}
    for what, suspected in found.items():
        numbers = np.flatnonzero(suspected & ~seen)
        seen |= suspected
        if numbers.size:
            named[what] = numbers
    return named


def _repeated(prints: list[bytes]) -> NDArray[np.bool_]:
    _, first = np.unique(prints, return_index=True)
    repeated = np.ones(len(prints), dtype=bool)
    repeated[first] = False
    return repeated


def _far_off(values: NDArray[np.float64], factor: float, *, above_only: bool = False) -> NDArray[np.bool_]:
    """Values that differ from the median by a factor, and by more than the logarithms scatter."""
    positive = values > 0
    if not positive.any():
        return np.zeros(len(values), dtype=bool)
    logs = np.log(np.where(positive, values, 1))
    off = logs - np.median(logs[positive])
    scatter = MAD_TO_SIGMA * float(np.median(np.abs(off[positive])))
    far = np.abs(off) > max(np.log(factor), DEVIATIONS * scatter)
    return positive & far & (off > 0 if above_only else True)
