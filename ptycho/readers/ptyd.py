"""PtyPy's prepared data, ``.ptyd`` (https://ptycho.github.io/ptypy, Ptypy data structure).

| entry | content |
|---|---|
| ``chunks/0``, ``chunks/1``, ... ``/data`` | (M, H, W) counts; a chunk may be a link to a file of its own |
| ``chunks/*/positions`` | (M, 2) metres, (y, x): down the rows and right along the columns |
| ``chunks/*/weights``, or ``meta/weight2d``, ``info/weight2d`` | as the data, or (H, W), or empty; above 0 is good |
| ``meta/energy``, ``distance``, ``psize``, ``center`` | keV, metres, metres (one number or (row, column)), px |
| ``info/propagation`` | ``farfield`` or ``nearfield`` |

A value that was None is stored as an array marked ``type = None``. There is no probe. Nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import ScanConfig
from ptycho.errors import InputError
from ptycho.readers.geometry import KEV_J, wavelength_m
from ptycho.readers.hdf5 import array_of, files_of, find, near_field_words, need, number, text_of
from ptycho.readers.raw import CHUNK_FRAMES, FrameStack, Pair, Part, RawScan

WEIGHTS = ("meta/weight2d", "info/weight2d", "common/weight2d")


def is_ptyd(file: h5py.File) -> bool:
    """Whether an HDF5 file has chunks of frames."""
    return isinstance(file.get("chunks"), h5py.Group) and "meta" in file


def read_ptyd(path: Path, file: h5py.File, settings: ScanConfig) -> RawScan:
    """What a prepared scan holds; its frames are read later, from the open file.

    Raises:
        InputError: no chunk, one whose file is missing, or an entry that cannot be used.
    """
    chunks = _chunks(path, file["chunks"])
    frames = [need(path, chunk, "data") for chunk in chunks]
    energy = _number(path, file, "energy")
    return RawScan(
        path=path,
        format="PtyPy",
        frames=FrameStack(path, "chunks/*/data", tuple(Part(data) for data in frames)),
        values="counts",
        positions=np.concatenate([_positions(path, chunk) for chunk in chunks]),
        positions_name="chunks/*/positions",
        positions_unit="m",
        good=_good(path, file, chunks),
        wavelength_m=wavelength_m(energy * KEV_J) if energy else None,
        distance_m=_number(path, file, "distance"),
        pixel_m=_pair(path, file, "psize"),
        centre_px=_pair(path, file, "center"),
        near_field=near_field_words(file),
        sources=files_of(path, frames),
    )


def _chunks(path: Path, group: h5py.Group) -> list[h5py.Group]:
    names = sorted((name for name in group if name.isdigit()), key=int)
    if not names:
        raise InputError(f"{path}: chunks has no chunk of frames")
    for name in names:
        if not isinstance(group.get(name), h5py.Group):
            raise InputError(f"{path}: chunks/{name} leads to a file that is not there")
    return [group[name] for name in names]


def _positions(path: Path, chunk: h5py.Group) -> NDArray[np.float64]:
    dataset = need(path, chunk, "positions")
    if dataset.ndim != 2 or dataset.shape[1] != 2:
        raise InputError(f"{path}: {dataset.name} has shape {dataset.shape}; allowed: (frames, 2)")
    return array_of(path, dataset)


def _number(path: Path, file: h5py.File, name: str) -> float | None:
    found = [number(path, find(file, f"{group}/{name}"), name) for group in ("meta", "info")]
    return next((value for value in found if value is not None), None)


def _pair(path: Path, file: h5py.File, name: str) -> Pair | None:
    """One number or two, as (row, column); None where neither is there, or where it is a word."""
    for group in ("meta", "info"):
        dataset = find(file, f"{group}/{name}")
        if dataset is None or text_of(dataset.attrs.get("type")) == "none" or dataset.dtype.kind not in "fiu":
            continue
        values = array_of(path, dataset).ravel()
        if values.size in (1, 2):
            return float(values[0]), float(values[-1])
    return None


def _good(path: Path, file: h5py.File, chunks: list[h5py.Group]) -> NDArray[np.bool_] | None:
    """(H, W) pixels whose weight is above 0 in every frame."""
    common = find(file, *WEIGHTS)
    if common is not None and common.ndim == 2:
        return array_of(path, common) > 0
    good = None
    for chunk in chunks:
        weights = find(chunk, "weights")
        if weights is None or weights.ndim < 2 or weights.size == 0:
            continue
        pieces = range(0, len(weights), CHUNK_FRAMES) if weights.ndim == 3 else [0]
        for start in pieces:
            piece = weights[start : start + CHUNK_FRAMES] if weights.ndim == 3 else weights[()][None]
            now = (piece > 0).all(axis=0)
            good = now if good is None else good & now
    return good
