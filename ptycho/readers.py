"""Real scans from files: tike, PtychoPINN and our own cached NPZ, all to one type.

Shape legend: F frames in the file, B groups of C = gridsize**2 of them, P probe modes, N side of a frame.

| format | arrays | values |
|---|---|---|
| tike, ``.npz`` or ``.npz.bz2`` | ``data`` (1, F, N, N) or (F, N, N), ``scan`` (1, F, 2) or (F, 2), ``probe`` (..., P, N, N) | counts; ``scan`` is (row, column) |
| PtychoPINN | ``diffraction`` or ``diff3d`` (F, N, N) or (N, N, F), ``xcoords``, ``ycoords`` (F,), ``probeGuess`` | amplitudes without a unit; counts where all are whole numbers; x is the column, y the row |
| cached | see ``ptycho.cache`` | |

Other arrays in a file are not looked at: ``objectGuess`` is somebody's reconstruction, not the truth.
The zero frequency may lie at a corner or in the centre of a frame; see ``zero_frequency_at_corner``.

Units. Whatever the file holds is brought to counts first. The probe is rescaled so that its power is the
mean count of a frame (an object of modulus 1 then explains the data), and then divided by its unit as in
the simulation; the square of that unit is ``photons_per_intensity``.
"""  # noqa: E501 (the table's rows)

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.arrays import PtychoArrays, ScanSplits
from ptycho.cache import load_split
from ptycho.errors import InputError
from ptycho.npz import Arrays, check_numbers, read_npz, require
from ptycho.probe import as_modes, match_power, normalise_probe
from ptycho.scan import neighbour_groups, split_frames


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RawScan:
    """A scan as a file holds it: frames (F, N, N), positions (F, 2) as (row, column) in px, probe (P, N, N)."""

    frames: NDArray[Any]
    positions_px: NDArray[Any]
    probe: NDArray[np.complex64]
    counts: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a format is told and read.

    Attributes:
        marks: names of arrays, any of which means this format.
        keys: names of arrays that it reads.
        read: makes a raw scan of them; None for our own files, which are read by ``ptycho.cache``.
    """

    marks: tuple[str, ...]
    keys: tuple[str, ...]
    read: Callable[[Path, Arrays], RawScan] | None


def read_scan(path: str | Path, gridsize: int = 1, nphotons: float = 1e9) -> PtychoArrays:
    """Read a scan in any known format.

    Args:
        path: the file.
        gridsize: g; g*g neighbouring frames are stacked as channels, see ``group_neighbours``.
        nphotons: mean photons of a frame where the file holds amplitudes without a unit.

    Raises:
        InputError: no known format, or anything in the file that cannot be used; one line that names
            the file, the array, what was found and what is allowed.
    """
    path = Path(path)
    stored = read_npz(path, {key for form in FORMATS.values() for key in form.keys})
    form = _format_of(path, stored)
    arrays = load_split(path) if form.read is None else to_arrays(path, form.read(path, stored), nphotons)
    return group_neighbours(arrays, gridsize)


def _format_of(path: Path, stored: Arrays) -> Format:
    for form in FORMATS.values():
        if any(mark in stored for mark in form.marks):
            return form
    known = "; ".join(f"{name} has {', '.join(form.keys)}" for name, form in FORMATS.items())
    raise InputError(f"{path}: not a known kind of scan; {known}")


def _read_tike(path: Path, stored: Arrays) -> RawScan:
    require(path, stored, ("data", "scan", "probe"))
    frames, positions = (_only_view(path, key, stored[key], ndim) for key, ndim in (("data", 3), ("scan", 2)))
    frames, positions = _checked(path, ("data", frames), ("scan", positions))
    probe = as_modes(path, "probe", stored["probe"], frames.shape[-1])
    return RawScan(frames=frames, positions_px=positions, probe=probe, counts=True)


def _read_ptychopinn(path: Path, stored: Arrays) -> RawScan:
    key = "diff3d" if "diff3d" in stored else "diffraction"
    require(path, stored, (key, "xcoords", "ycoords", "probeGuess"))
    x, y = stored["xcoords"].ravel(), stored["ycoords"].ravel()
    if x.shape != y.shape:
        raise InputError(f"{path}: {x.size} xcoords, but {y.size} ycoords; allowed: one of each for a frame")
    frames = _frames_first(stored[key])
    frames, positions = _checked(path, (key, frames), ("xcoords, ycoords", np.stack([y, x], axis=-1)))
    probe = as_modes(path, "probeGuess", stored["probeGuess"], frames.shape[-1])
    return RawScan(frames=frames, positions_px=positions, probe=probe, counts=_whole_numbers(frames))


# In this order: a file is of the first format of which it holds a mark.
FORMATS: dict[str, Format] = {
    "tike": Format(marks=("data", "scan"), keys=("data", "scan", "probe"), read=_read_tike),
    "PtychoPINN": Format(
        marks=("diff3d", "xcoords", "ycoords"),
        keys=("diffraction", "diff3d", "xcoords", "ycoords", "probeGuess"),
        read=_read_ptychopinn,
    ),
    "cached": Format(marks=("diffraction", "coords_nominal"), keys=("diffraction", "coords_nominal"), read=None),
}


def _only_view(path: Path, key: str, array: NDArray[Any], ndim: int) -> NDArray[Any]:
    """Take the one view of an array with a leading axis of views."""
    if array.ndim == ndim + 1 and len(array) == 1:
        return np.asarray(array[0])
    if array.ndim != ndim:
        raise InputError(f"{path}: {key} has shape {array.shape}; allowed: {ndim} axes, or one more of length 1")
    return array


def _frames_first(frames: NDArray[Any]) -> NDArray[Any]:
    """(N, N, F) to (F, N, N); where all three are equal, (F, N, N) is meant."""
    last = frames.ndim == 3 and frames.shape[0] == frames.shape[1] != frames.shape[2]
    return np.moveaxis(frames, -1, 0) if last else frames


def _checked(
    path: Path, frames: tuple[str, NDArray[Any]], positions: tuple[str, NDArray[Any]]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Frames and positions, each given with its name in the file, if they can be used together."""
    (key, values), (positions_key, places) = frames, positions
    if values.ndim != 3 or values.shape[1] != values.shape[2]:
        raise InputError(f"{path}: {key} has shape {values.shape}; allowed: square frames")
    if places.shape != (len(values), 2):
        raise InputError(
            f"{path}: {positions_key} give positions of shape {places.shape}; {len(values)} frames in {key} "
            f"need {(len(values), 2)}"
        )
    check_numbers(path, key, values, nonnegative=True)
    check_numbers(path, positions_key, places)
    if np.iscomplexobj(places):
        raise InputError(f"{path}: {positions_key} are complex; allowed: real numbers")
    if not values.any():
        raise InputError(f"{path}: {key} is zero everywhere")
    return values, places


def _whole_numbers(values: NDArray[Any]) -> bool:
    return bool(np.all(values == np.rint(values)))


def zero_frequency_at_corner(frames: NDArray[Any]) -> bool:
    """Whether frames (F, N, N) have their zero frequency at [0, 0] and not in the centre.

    Far-field patterns are brightest around the zero frequency. On the circle that the periodic pixel
    axis is, the centre of mass then lies nearer to index 0 or to N // 2, which the sign of the first
    cosine moment tells.
    """
    mean = frames.mean(axis=0, dtype=np.float64)
    cosine = np.cos(2 * np.pi * np.arange(mean.shape[0]) / mean.shape[0])
    return bool(np.sum(mean * (cosine[:, None] + cosine[None, :])) > 0)


def to_arrays(path: Path, raw: RawScan, nphotons: float) -> PtychoArrays:
    """Bring a raw scan to model units, zero frequency in the centre, one channel."""
    intensity = raw.frames if raw.counts else np.square(raw.frames, dtype=np.float64)
    total = intensity.sum(dtype=np.float64) / len(intensity)
    mean_counts = float(total) if raw.counts else nphotons
    matched, factor = match_power(raw.probe, mean_counts)
    probe, unit = normalise_probe(matched)
    amplitude = np.sqrt(intensity, dtype=np.float32) * np.float32(np.sqrt(mean_counts / total) / unit)
    if zero_frequency_at_corner(intensity):
        amplitude = np.fft.fftshift(amplitude, axes=(-2, -1))
    return PtychoArrays(
        amplitude=amplitude[:, None],
        positions_px=raw.positions_px.astype(np.float32)[:, None],
        probe=probe,
        photons_per_intensity=unit**2,
        probe_scale=factor,
        name=path.name,
    )


def group_neighbours(arrays: PtychoArrays, gridsize: int) -> PtychoArrays:
    """Stack neighbouring frames of a scan of single frames as channels.

    Each frame is used once, so that parts of a later split share none; see ``scan.neighbour_groups``.

    Raises:
        InputError: too few frames, or frames that are stacked already in another way.
    """
    channels = arrays.amplitude.shape[1]
    if channels == gridsize**2:
        return arrays
    if channels != 1:
        raise InputError(f"gridsize: {gridsize} asked for, but {arrays.name} has {channels} channels")
    groups = neighbour_groups(arrays.positions_px[:, 0], gridsize**2)
    return dataclasses.replace(
        arrays,
        amplitude=arrays.amplitude[groups, 0],
        positions_px=arrays.positions_px[groups, 0],
        patches_true=None if arrays.patches_true is None else arrays.patches_true[groups, 0],
        faulty=None if arrays.faulty is None else np.any(arrays.faulty[groups], axis=1),
    )


def split_scan(arrays: PtychoArrays, validation_fraction: float, test_fraction: float, seed: int) -> ScanSplits:
    """Split the frames of one scan at random, at least one to each part.

    Neighbouring frames overlap, so a held-out frame of the same scan is a weaker test than another object.

    Raises:
        InputError: the fractions leave nothing for one of the parts.
    """
    sizes = tuple(max(1, round(part * arrays.n_frames)) for part in (validation_fraction, test_fraction))
    if sum(sizes) >= arrays.n_frames:
        raise InputError(
            f"{arrays.name}: {arrays.n_frames} frames leave none to train on; "
            f"{sizes[0]} go to validation and {sizes[1]} to the test"
        )
    validation, test, train = split_frames(arrays, sizes, np.random.default_rng(seed))
    return ScanSplits(train=train, validation=validation, test=test)
