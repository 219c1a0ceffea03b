"""Detector and beam faults put into a scan, by name: what goes wrong at real beamlines.

Shape legend: B frames, C channels, N side of a frame, K frames hit.

Which frames are hit, which pixels and by how much depends on the seed, the fault and the number of
frames only, so every arm of a study meets the same faults. A higher rate hits the same frames and more.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ptycho.arrays import PtychoArrays
from ptycho.config.plugins import register
from ptycho.errors import InputError, unknown_name
from ptycho.fault_kinds import FAULTS, FaultInfo, Frame, counts_of, some_of

Apply = TypeVar("Apply", bound=Callable[[Frame, float, np.random.Generator], None])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault as asked for: ``size`` as its registry entry says, ``onset`` in optimizer steps."""

    name: str
    rate: float
    size: float | None
    onset: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FaultyFrames:
    """Frames as they are served from optimizer step ``onset`` on; later entries of a list take over.

    Attributes:
        index: (K,) int64, ascending, which frames of the training scan.
        amplitude: (K, C, N, N) float32, in place of the true amplitudes.
        positions_px: (K, C, 2) float32, in place of the true positions.
        onset: first optimizer step.
    """

    index: NDArray[np.int64]
    amplitude: NDArray[np.float32]
    positions_px: NDArray[np.float32]
    onset: int


def parse_fault(text: str) -> Fault:
    """Read a fault from ``name`` or ``name:key=value,...`` with the keys rate, size and onset.

    >>> parse_fault("overload:rate=0.05,onset=10")
    Fault(name='overload', rate=0.05, size=1000.0, onset=10)

    Raises:
        InputError: unknown name or key, a key given twice, no number, or a number out of range.
    """
    name, colon, rest = text.partition(":")
    name = name.strip()
    if name not in FAULTS:
        raise unknown_name("fault", name, FAULTS)
    info = FAULTS[name]
    given: dict[str, float] = {}
    for item in rest.split(",") if colon else ():
        key, value = _parse_item(text, item)
        if key in given:
            raise InputError(f"fault {text!r}: {key} is given twice")
        given[key] = value
    _check(text, info, given)
    return Fault(
        name=name,
        rate=given.get("rate", info.rate),
        size=given.get("size", info.size),
        onset=int(given.get("onset", info.onset)),
    )


def register_fault(
    name: str,
    *,
    rate: float,
    size: float | None = None,
    size_meaning: str = "",
    low: float = 0.0,
    high: float = 0.0,
    onset: int = 0,
    same_pixels: bool = False,
) -> Callable[[Apply], Apply]:
    """Register a fault of your own: ``--fault name:rate=0.1``. Its docstring's first line says what goes wrong.

    >>> @register_fault("half_lost", rate=0.05)
    ... def half_lost(frame, size, rng):
    ...     '''The lower half of the detector is not read out.'''
    ...     frame.counts[:, frame.counts.shape[1] // 2 :] = 0

    Args:
        name: small letters, digits and underscores.
        rate, size, size_meaning, low, high, onset, same_pixels: see :class:`FaultInfo`.

    Returns:
        A decorator for a function that changes a frame in place, given the size and a source of random numbers.

    Raises:
        InputError: a name that is taken.
    """

    def decorate(apply: Apply) -> Apply:
        info = FaultInfo(
            summary=(apply.__doc__ or "").strip().partition("\n")[0],
            apply=apply,
            rate=rate,
            same_pixels=same_pixels,
            size=size,
            size_meaning=size_meaning,
            onset=onset,
            low=low,
            high=high,
        )
        register("fault", FAULTS, name, info, apply)
        return apply

    return decorate


def _parse_item(text: str, item: str) -> tuple[str, float]:
    key, equals, value = (part.strip() for part in item.partition("="))
    if not equals:
        raise InputError(f"fault {text!r}: {item.strip()!r} is not key=value; keys: rate, size, onset")
    if key not in ("rate", "size", "onset"):
        raise unknown_name(f"fault {text!r}: key", key, ("rate", "size", "onset"))
    try:
        return key, float(value)
    except ValueError:
        raise InputError(f"fault {text!r}: {key} is {value!r}; allowed: a number") from None


def _check(text: str, info: FaultInfo, given: dict[str, float]) -> None:
    if "size" in given and info.size is None:
        raise InputError(f"fault {text!r}: this fault has no size; keys: rate, onset")
    for key, low, high in (("rate", 0.0, 1.0), ("size", info.low, info.high), ("onset", 0.0, 1e12)):
        value = given.get(key, low)
        if not low <= value <= high:
            raise InputError(f"fault {text!r}: {key} is {value:g}; allowed: {low:g} to {high:g}")
    if given.get("onset", 0.0) % 1:
        raise InputError(f"fault {text!r}: onset is {given['onset']:g}; allowed: a whole number of optimizer steps")


def inject(train: PtychoArrays, faults: Sequence[Fault], seed: int) -> list[FaultyFrames]:
    """Make the frames that the faults change.

    A frame that several faults hit keeps them all: from each onset on it is served with every fault
    that has set in by then. The list is in ascending order of onset, with one entry for each onset, so
    that at a given step the last entry which holds a frame and has set in is the one to serve. Masked pixels
    show no fault.

    Args:
        train: the scan, left as it is.
        faults: what to put in; none gives an empty list. A fault of rate 0 hits nothing, any other
            at least one frame.
        seed: zero or above.

    Raises:
        InputError: a duplicated frame in a scan of one frame.
    """
    hits = [_Hit.draw(fault, occurrence, train.n_frames, seed) for fault, occurrence in _numbered(faults)]
    hits.sort(key=lambda hit: list(FAULTS).index(hit.fault.name))
    if any(hit.fault.name == "duplicated" and hit.index.size for hit in hits) and train.n_frames < 2:
        raise InputError("fault 'duplicated': the scan has one frame; at least two are needed")
    onsets = sorted({hit.fault.onset for hit in hits if hit.index.size})
    brightest = float(train.amplitude.max()) ** 2 * train.photons_per_intensity
    return [_from_onset(train, hits, onset, brightest) for onset in onsets]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Hit:
    """A fault, the frames it hits, and the entropy its random numbers derive from."""

    fault: Fault
    index: NDArray[np.int64]
    entropy: tuple[int, ...]

    @classmethod
    def draw(cls, fault: Fault, occurrence: int, n_frames: int, seed: int) -> _Hit:
        entropy = (seed, zlib.crc32(fault.name.encode()), occurrence, n_frames)
        number = min(n_frames, max(1, round(fault.rate * n_frames))) if fault.rate > 0 else 0
        return cls(fault=fault, index=some_of(n_frames, number, np.random.default_rng(entropy)), entropy=entropy)


def _numbered(faults: Sequence[Fault]) -> list[tuple[Fault, int]]:
    """Each fault with the number of earlier ones of its name, so that a repeated fault draws afresh."""
    names = [fault.name for fault in faults]
    return [(fault, names[:i].count(fault.name)) for i, fault in enumerate(faults)]


def _from_onset(train: PtychoArrays, hits: Sequence[_Hit], onset: int, brightest: float) -> FaultyFrames:
    active = [hit for hit in hits if hit.fault.onset <= onset]
    index = np.unique(np.concatenate([hit.index for hit in active if hit.fault.onset == onset]))
    frames = [_faulty_frame(train, [hit for hit in active if i in hit.index], int(i), brightest) for i in index]
    amplitude = np.sqrt(np.stack([frame.counts for frame in frames]) / train.photons_per_intensity)
    if train.mask is not None:
        amplitude[..., ~train.mask] = 0
    return FaultyFrames(
        index=index,
        amplitude=amplitude.astype(np.float32),
        positions_px=np.stack([frame.positions_px for frame in frames]).astype(np.float32),
        onset=onset,
    )


def _faulty_frame(train: PtychoArrays, hits: Sequence[_Hit], index: int, brightest: float) -> Frame:
    frame = Frame(
        counts=counts_of(train, index),
        positions_px=train.positions_px[index].astype(np.float64),
        index=index,
        scan=train,
        brightest=brightest,
    )
    for hit in hits:
        info = FAULTS[hit.fault.name]
        draw = train.n_frames if info.same_pixels else index
        info.apply(frame, hit.fault.size or 0.0, np.random.default_rng((*hit.entropy, draw)))
    return frame
