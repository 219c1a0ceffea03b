"""The faults by name: what each does to one frame, its defaults and its allowed size.

Shape legend: C channels, N side of a frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptycho.arrays import PtychoArrays

OVERLOAD_PIXELS = 4  # pixels of one overloaded pattern
HOT_PIXELS = 4  # pixels of the detector that are hot


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame on its way through the faults that hit it.

    Attributes:
        counts: (C, N, N) float64 photons, changed in place.
        positions_px: (C, 2) float64, changed in place.
        index: which frame of the scan.
        scan: the scan as it was.
        brightest: highest count of the scan.
    """

    counts: NDArray[np.float64]
    positions_px: NDArray[np.float64]
    index: int
    scan: PtychoArrays
    brightest: float


def _duplicated(frame: Frame, size: float, rng: np.random.Generator) -> None:
    centres = frame.scan.positions_px.mean(axis=1)
    distance = np.linalg.norm(centres - centres[frame.index], axis=1)
    distance[frame.index] = np.inf
    frame.counts[:] = counts_of(frame.scan, int(np.argmin(distance)))


def _dropped(frame: Frame, size: float, rng: np.random.Generator) -> None:
    frame.counts[:] = 0


def _beam_dump(frame: Frame, size: float, rng: np.random.Generator) -> None:
    pixels = frame.counts[0].size
    frame.counts[:] = rng.poisson(size / pixels, frame.counts.shape)


def _intensity_jump(frame: Frame, size: float, rng: np.random.Generator) -> None:
    frame.counts[:] *= size


def _position_jitter(frame: Frame, size: float, rng: np.random.Generator) -> None:
    frame.positions_px[:] += rng.normal(scale=size, size=frame.positions_px.shape)


def _overload(frame: Frame, size: float, rng: np.random.Generator) -> None:
    for channel in frame.counts:
        channel.flat[some_of(channel.size, OVERLOAD_PIXELS, rng)] = size * frame.brightest


def _zinger(frame: Frame, size: float, rng: np.random.Generator) -> None:
    for channel in frame.counts:
        channel.flat[some_of(channel.size, 1, rng)] = size * frame.brightest


def _hot_pixels(frame: Frame, size: float, rng: np.random.Generator) -> None:
    pixels = some_of(frame.counts[0].size, HOT_PIXELS, rng)
    frame.counts.reshape(len(frame.counts), -1)[:, pixels] = size * frame.brightest


def _dead_pixels(frame: Frame, size: float, rng: np.random.Generator) -> None:
    _set_fraction(frame, size, 0.0, rng)


def _nan_frame(frame: Frame, size: float, rng: np.random.Generator) -> None:
    _set_fraction(frame, size, np.nan, rng)


def _set_fraction(frame: Frame, fraction: float, value: float, rng: np.random.Generator) -> None:
    total = frame.counts[0].size
    pixels = some_of(total, max(1, round(fraction * total)), rng)
    frame.counts.reshape(len(frame.counts), -1)[:, pixels] = value


def some_of(total: int, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The first ``number`` of a random order of ``total`` things: more of them include the fewer."""
    return rng.permutation(total)[:number]


def counts_of(scan: PtychoArrays, index: int) -> NDArray[np.float64]:
    """(C, N, N) photon counts of one frame."""
    amplitude = np.asarray(scan.amplitude[index], dtype=np.float64)
    return amplitude**2 * scan.photons_per_intensity


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FaultInfo:
    """One entry of the registry.

    Attributes:
        summary: what goes wrong, in a sentence.
        apply: changes a frame in place, given the size and a source of random numbers.
        same_pixels: each frame gets the same random numbers: the fault sits in the detector.
        rate: default fraction of the frames that is hit.
        size: default size; None where the fault has no size.
        size_meaning: what the size is, with its unit.
        onset: default first optimizer step.
        low, high: allowed range of the size, inclusive.
    """

    summary: str
    apply: Callable[[Frame, float, np.random.Generator], None]
    rate: float
    same_pixels: bool = False
    size: float | None = None
    size_meaning: str = ""
    onset: int = 0
    low: float = 0.0
    high: float = 0.0


# The order is the order in which faults act on a frame that several of them hit: those that replace
# the whole pattern first, then the beam, then single pixels.
FAULTS: dict[str, FaultInfo] = {
    "duplicated": FaultInfo(
        summary="The pattern of the nearest other frame is stored again at this frame's position",
        apply=_duplicated,
        rate=0.05,
    ),
    "dropped": FaultInfo(summary="The frame is lost: zero everywhere", apply=_dropped, rate=0.05),
    "beam_dump": FaultInfo(
        summary="The beam is lost: a dark pattern with a few stray counts",
        apply=_beam_dump,
        rate=0.05,
        size=10.0,
        size_meaning="mean counts of the whole pattern",
        low=0.0,
        high=1e9,
    ),
    "intensity_jump": FaultInfo(
        summary="The beam is brighter or darker than in the rest of the scan",
        apply=_intensity_jump,
        rate=0.05,
        size=10.0,
        size_meaning="factor on the counts",
        low=1e-6,
        high=1e9,
    ),
    "position_jitter": FaultInfo(
        summary="The recorded positions are off by a random distance",
        apply=_position_jitter,
        rate=1.0,
        size=2.0,
        size_meaning="standard deviation along each axis in px",
        low=0.0,
        high=1e4,
    ),
    "overload": FaultInfo(
        summary=f"{OVERLOAD_PIXELS} pixels anywhere in the pattern overflow",
        apply=_overload,
        rate=0.01,
        size=1000.0,
        size_meaning="their counts as a multiple of the scan's brightest count",
        onset=50,
        low=1e-6,
        high=1e9,
    ),
    "zinger": FaultInfo(
        summary="One pixel of the pattern is hit by a cosmic ray or a scattered photon burst",
        apply=_zinger,
        rate=0.05,
        size=10.0,
        size_meaning="its counts as a multiple of the scan's brightest count",
        low=1e-6,
        high=1e9,
    ),
    "hot_pixels": FaultInfo(
        summary=f"{HOT_PIXELS} pixels of the detector read too high, the same ones in every frame hit",
        apply=_hot_pixels,
        same_pixels=True,
        rate=1.0,
        size=1.0,
        size_meaning="their counts as a multiple of the scan's brightest count",
        low=1e-6,
        high=1e9,
    ),
    "dead_pixels": FaultInfo(
        summary="Pixels of the detector read zero, the same ones in every frame hit",
        apply=_dead_pixels,
        same_pixels=True,
        rate=1.0,
        size=0.01,
        size_meaning="fraction of the pixels",
        low=1e-6,
        high=1.0,
    ),
    "nan_frame": FaultInfo(
        summary="Pixels of the pattern are not a number",
        apply=_nan_frame,
        rate=0.01,
        size=0.01,
        size_meaning="fraction of the pixels",
        onset=50,
        low=1e-6,
        high=1.0,
    ),
}
