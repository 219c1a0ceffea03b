"""NPZ scans: tike's, PtychoPINN's, and our own cached frames.

| format | arrays | values |
|---|---|---|
| tike, ``.npz`` or ``.npz.bz2`` | ``data`` (1, F, N, N) or (F, N, N), ``scan`` (1, F, 2) or (F, 2), ``probe`` (..., P, N, N) | counts; ``scan`` is (row, column) |
| PtychoPINN | ``diffraction`` or ``diff3d`` (F, N, N) or (N, N, F), ``xcoords``, ``ycoords`` (F,), ``probeGuess`` | amplitudes without a unit; counts where all are whole numbers; x is the column, y the row |
| cached | see ``ptycho.cache`` | |

Positions are in object pixels. Other arrays in a file are not looked at: ``objectGuess`` is somebody's
reconstruction, not the truth. Sources: tike's test data and PtychoPINN's data contract.
"""  # noqa: E501 (the table's rows)

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.cache import load_split
from ptycho.errors import InputError
from ptycho.npz import Arrays, require
from ptycho.readers.raw import FrameStack, Part, RawScan


def read_tike(path: Path, stored: Arrays) -> RawScan:
    """A scan as tike's tests keep it.

    Raises:
        InputError: an array is missing, or of another shape.
    """
    require(path, stored, ("data", "scan", "probe"))
    frames, positions = (_only_view(path, key, stored[key], ndim) for key, ndim in (("data", 3), ("scan", 2)))
    return RawScan(
        path=path,
        format="tike",
        frames=FrameStack(path, "data", (Part(frames),)),
        values="counts",
        positions=positions,
        positions_name="scan",
        positions_unit="px",
        probe=stored["probe"],
        sources=(path,),
    )


def read_ptychopinn(path: Path, stored: Arrays) -> RawScan:
    """A scan as PtychoPINN keeps it.

    Raises:
        InputError: an array is missing, or of another shape.
    """
    key = "diff3d" if "diff3d" in stored else "diffraction"
    require(path, stored, (key, "xcoords", "ycoords", "probeGuess"))
    x, y = stored["xcoords"].ravel(), stored["ycoords"].ravel()
    if x.shape != y.shape:
        raise InputError(f"{path}: {x.size} xcoords, but {y.size} ycoords; allowed: one of each for a frame")
    frames = stored[key]
    if frames.ndim != 3:
        raise InputError(f"{path}: {key} has shape {frames.shape}; allowed: square frames, (F, N, N) or (N, N, F)")
    frames = _frames_first(frames)
    return RawScan(
        path=path,
        format="PtychoPINN",
        frames=FrameStack(path, key, (Part(frames),)),
        values="counts" if _whole_numbers(frames) else "amplitudes",
        positions=np.stack([y, x], axis=-1),
        positions_name="xcoords, ycoords",
        positions_unit="px",
        probe=stored["probeGuess"],
        probe_name="probeGuess",
        sources=(path,),
    )


def read_cached(path: Path, stored: Arrays) -> RawScan:
    """Our own cached frames as a scan again, to look at: channels one after the other, brought to counts.

    Raises:
        InputError: see ``ptycho.cache.load_split``.
    """
    arrays = load_split(path)
    size = arrays.frame_size_px
    return RawScan(
        path=path,
        format="cached",
        frames=FrameStack(path, "diffraction", (Part(arrays.counts().reshape(-1, size, size)),)),
        values="counts",
        positions=arrays.positions_px.reshape(-1, 2),
        positions_name="coords_nominal",
        positions_unit="px",
        probe=arrays.probe,
        sources=(path,),
    )


def _only_view(path: Path, key: str, array: NDArray[Any], ndim: int) -> NDArray[Any]:
    """Take the one view of an array with a leading axis of views."""
    if array.ndim == ndim + 1 and len(array) == 1:
        return np.asarray(array[0])
    if array.ndim != ndim:
        raise InputError(f"{path}: {key} has shape {array.shape}; allowed: {ndim} axes, or one more of length 1")
    return array


def _frames_first(frames: NDArray[Any]) -> NDArray[Any]:
    """(N, N, F) to (F, N, N); where all three are equal, (F, N, N) is meant."""
    last = frames.shape[0] == frames.shape[1] != frames.shape[2]
    return np.moveaxis(frames, -1, 0) if last else frames


def _whole_numbers(values: NDArray[Any]) -> bool:
    return np.issubdtype(values.dtype, np.number) and bool(np.all(values == np.rint(values)))
