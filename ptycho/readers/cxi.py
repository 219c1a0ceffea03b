"""CXI files: Coherent X-ray Imaging, entries by name (https://www.cxidb.org/cxi.html, version 1.6).

| entry, under ``/entry_1`` | content |
|---|---|
| ``data_1/data``, ``instrument_1/detector_1/data`` | (F, H, W) counts |
| ``data_1/translation``, ``sample_1/geometry_1/translation``, ``instrument_1/detector_1/translation`` | (F, 3) or (F, 2) as (x, y, z), metres |
| ``instrument_1/detector_1/distance``, ``corner_position`` | metres; the distance, or else the corner's z |
| ``instrument_1/detector_1/x_pixel_size``, ``y_pixel_size``, ``basis_vectors`` | metres |
| ``instrument_1/detector_1/mask`` | (H, W), 0 and 0x1000 (has signal) are good, any other bit is bad |
| ``instrument_1/source_1/energy``, ``wavelength`` | joules, metres |
| ``instrument_1/source_1/illumination``, ``probe``, ``detector_1/probe`` | the probe, where a program left one |

Axes. CXI's x points left and y up, looking along the beam; rows of a detector run down and columns right, unless
``basis_vectors`` (the steps along a row and along a column) say otherwise. A translation moves the sample, so the
probe moves over it the other way: down a row of the object for a translation up, right for one to the left. Both
turns cancel, and (row, column) = (y, x). SHARP, ptychodus and cdtools read files so.
"""  # noqa: E501 (the table's rows)

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import ScanConfig
from ptycho.errors import InputError
from ptycho.readers.geometry import wavelength_m
from ptycho.readers.hdf5 import array_of, energy_j, files_of, find, length_m, near_field_words, need, unit_m
from ptycho.readers.raw import FrameStack, Pair, Part, RawScan

HAS_SIGNAL = 0x1000
PROBES = (
    "instrument_1/source_1/illumination",
    "instrument_1/source_1/probe",
    "instrument_1/detector_1/probe",
)


def is_cxi(file: h5py.File) -> bool:
    """Whether an HDF5 file has CXI's frames."""
    return find(file, "entry_1/data_1/data", "entry_1/instrument_1/detector_1/data") is not None


def read_cxi(path: Path, file: h5py.File, settings: ScanConfig) -> RawScan:
    """What a CXI file holds; its frames are read later, from the open file.

    Raises:
        InputError: no positions, or an entry that cannot be used.
    """
    entry = file["entry_1"]
    frames = need(path, entry, "data_1/data", "instrument_1/detector_1/data")
    places = ("data_1/translation", "sample_1/geometry_1/translation", "instrument_1/detector_1/translation")
    translation = need(path, entry, *places)
    detector = entry.get("instrument_1/detector_1")
    rows, columns = detector_axes(path, detector)
    moved = lengths(path, translation)
    energy = energy_j(path, find(entry, "instrument_1/source_1/energy"))
    probe = find(entry, *PROBES)
    mask = find(detector, "mask")
    return RawScan(
        path=path,
        format="CXI",
        frames=FrameStack(path, str(frames.name), parts_of(path, frames)),
        values="counts",
        positions=np.stack([-moved @ rows, -moved @ columns], axis=-1),
        positions_name=str(translation.name),
        positions_unit="m",
        probe=None if probe is None else complex_array(path, probe),
        probe_name="probe" if probe is None else str(probe.name),
        good=None if mask is None else unmasked(path, mask),
        wavelength_m=length_m(path, find(entry, "instrument_1/source_1/wavelength"))
        or (None if energy is None else wavelength_m(energy)),
        distance_m=distance_of(path, detector),
        pixel_m=pixel_of(path, detector),
        near_field=near_field_words(file),
        sources=files_of(path, [frames]),
    )


def parts_of(path: Path, frames: h5py.Dataset) -> tuple[Part, ...]:
    """A stack (F, H, W), or a raster (A, B, H, W) read along its rows, as parts.

    Raises:
        InputError: any other shape.
    """
    if frames.ndim not in (3, 4):
        raise InputError(f"{path}: {frames.name} has shape {frames.shape}; allowed: (frames, rows, columns)")
    leads = itertools.product(*(range(n) for n in frames.shape[:-3]))
    return tuple(Part(frames, lead) for lead in leads)


def lengths(path: Path, dataset: h5py.Dataset) -> NDArray[np.float64]:
    """Translations (F, 2 or 3) or (2 or 3, F) as (F, 3) in metres, z = 0 where there is none.

    Raises:
        InputError: any other shape.
    """
    values = array_of(path, dataset)
    if values.ndim == 2 and values.shape[1] not in (2, 3):
        values = values.T
    if values.ndim != 2 or values.shape[1] not in (2, 3) or values.dtype.kind not in "fiu":
        raise InputError(f"{path}: {dataset.name} has shape {values.shape}; allowed: (frames, 2) or (frames, 3)")
    padded = np.zeros((len(values), 3))
    padded[:, : values.shape[1]] = values
    return padded * unit_m(path, dataset)


def detector_axes(path: Path, detector: h5py.Group | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors (x, y, z) from one row of the detector to the next, and from one column to the next."""
    basis = find(detector, "basis_vectors")
    if basis is None:
        return np.array([0.0, -1.0, 0.0]), np.array([-1.0, 0.0, 0.0])
    steps = array_of(path, basis)
    if steps.shape == (3, 2):
        steps = steps.T
    if steps.shape != (2, 3) or not np.linalg.norm(steps, axis=1).all():
        raise InputError(f"{path}: {basis.name} has shape {steps.shape}; allowed: (2, 3), two vectors")
    rows, columns = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    return rows, columns


def distance_of(path: Path, detector: h5py.Group | None) -> float | None:
    """Metres from the sample to the detector, by name or from the corner's place."""
    distance = length_m(path, find(detector, "distance"))
    corner = find(detector, "corner_position")
    if distance is not None or corner is None or corner.shape != (3,):
        return distance
    return abs(float(array_of(path, corner)[2])) * unit_m(path, corner)


def pixel_of(path: Path, detector: h5py.Group | None) -> Pair | None:
    """(row, column) side of a detector pixel in metres; one that is not said is like the other."""
    x, y = (length_m(path, find(detector, f"{axis}_pixel_size")) for axis in "xy")
    basis = find(detector, "basis_vectors")
    if x is None and y is None and basis is not None:
        steps = array_of(path, basis)
        y, x = np.linalg.norm(steps, axis=0 if steps.shape == (3, 2) else 1)
    side = y if x is None else x
    if side is None:
        return None
    return float(side if y is None else y), float(side if x is None else x)


def unmasked(path: Path, mask: h5py.Dataset) -> NDArray[np.bool_]:
    """(H, W) good pixels of a mask of bits; one mask for each frame is joined to one."""
    bits = array_of(path, mask)
    good = (bits == 0) | (bits == HAS_SIGNAL)
    return good.reshape(-1, *good.shape[-2:]).all(axis=0)


def complex_array(path: Path, dataset: h5py.Dataset) -> NDArray[Any]:
    """A complex array, which some programs store as a compound of two parts.

    Raises:
        InputError: it cannot be read, or holds no numbers.
    """
    values = array_of(path, dataset)
    if values.dtype.names is not None and len(values.dtype.names) == 2:
        real, imaginary = values.dtype.names
        values = values[real] + 1j * values[imaginary]
    if not np.issubdtype(values.dtype, np.number):
        raise InputError(f"{path}: {dataset.name} has type {values.dtype}; allowed: numbers")
    return values
