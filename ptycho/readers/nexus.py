"""NeXus files of the contributed definition NXcxi_ptycho (https://manual.nexusformat.org), where they differ from CXI.

Groups are found by their ``NX_class``, not by their names:

| group | content |
|---|---|
| NXentry | ``definition`` NXcxi_ptycho or NXptycho |
| NXinstrument / NXdetector | ``data`` (F, H, W), or (A, B, H, W) of a raster; ``distance``, ``x_pixel_size``, ``y_pixel_size``; ``pixel_mask`` (H, W), 0 is good; ``beam_center_x``, ``beam_center_y`` in px or a length |
| NXinstrument / NXbeam | ``incident_beam_energy``, ``incident_energy``, ``energy``, ``incident_wavelength``; the energy of NXsource is the machine's |
| NXsample | ``translation`` (F, 3) in a collection, or ``x`` and ``y`` in NXtransformations, whose ``vector`` says where a motor moves |

Axes are those of CXI: x left and y up, looking along the beam; see ``ptycho.readers.cxi``.
"""  # noqa: E501 (the table's rows)

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import ScanConfig
from ptycho.errors import InputError
from ptycho.npz import MissingKeyError
from ptycho.readers.cxi import PROBES, complex_array, detector_axes, distance_of, lengths, parts_of, pixel_of, unmasked
from ptycho.readers.geometry import wavelength_m
from ptycho.readers.hdf5 import (
    LARGEST_ENERGY_J,
    LENGTHS_M,
    array_of,
    energy_j,
    files_of,
    find,
    length_m,
    near_field_words,
    number,
    text_of,
    unit_m,
    unit_of,
)
from ptycho.readers.raw import FrameStack, Pair, RawScan

ENERGIES = ("incident_beam_energy", "incident_energy", "energy")
MOTORS = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0)}
LARGEST_WAVELENGTH_M = 1e-6  # a number above this, without a unit, is one of NeXus' angstroms


def of_class(group: h5py.Group, name: str) -> Iterator[h5py.Group]:
    """The groups in a group whose ``NX_class`` has a name."""
    for item in group.values():
        if isinstance(item, h5py.Group) and text_of(item.attrs.get("NX_class")) == name.lower():
            yield item


def is_nexus(file: h5py.File) -> bool:
    """Whether an HDF5 file has an entry of the definition."""
    return _entry(file) is not None


def _entry(file: h5py.File) -> h5py.Group | None:
    for entry in of_class(file, "NXentry"):
        definition = find(entry, "definition")
        if definition is not None and "ptycho" in text_of(definition[()]):
            return entry
    return None


def read_nexus(path: Path, file: h5py.File, settings: ScanConfig) -> RawScan:
    """What an NXcxi_ptycho file holds; its frames are read later, from the open file.

    Raises:
        InputError: no detector with frames, no positions, or an entry that cannot be used.
    """
    entry = _entry(file)
    assert entry is not None, "is_nexus said so"
    detector, frames = _detector(path, entry)
    moved = translations(path, entry, frames)
    rows, columns = detector_axes(path, detector)
    mask, probe = find(detector, "pixel_mask", "mask"), find(entry, *PROBES)
    pixel = pixel_of(path, detector)
    return RawScan(
        path=path,
        format="NXcxi_ptycho",
        frames=FrameStack(path, str(frames.name), parts_of(path, frames)),
        values="counts",
        positions=np.stack([-moved @ rows, -moved @ columns], axis=-1),
        positions_name="translations of the sample",
        positions_unit="m",
        probe=None if probe is None else complex_array(path, probe),
        probe_name="probe" if probe is None else str(probe.name),
        good=None if mask is None else unmasked(path, mask),
        wavelength_m=_wavelength(path, entry),
        distance_m=distance_of(path, detector),
        pixel_m=pixel,
        centre_px=_centre(path, detector, pixel),
        near_field=near_field_words(file),
        sources=files_of(path, [frames]),
    )


def _detector(path: Path, entry: h5py.Group) -> tuple[h5py.Group, h5py.Dataset]:
    for instrument in of_class(entry, "NXinstrument"):
        for detector in of_class(instrument, "NXdetector"):
            frames = find(detector, "data", "data_1")
            if frames is not None and frames.ndim > 2:
                return detector, frames
    raise MissingKeyError(f"{path}: Missing required key 'data' of three axes in an NXdetector of {entry.name}")


def translations(path: Path, entry: h5py.Group, frames: h5py.Dataset) -> NDArray[np.float64]:
    """(F, 3) metres by which the sample is moved at each frame.

    Raises:
        InputError: neither translations nor motors x and y, or some that do not fit the frames.
    """
    places = ("sample_1/geometry_1/translation", "data_1/translation", f"{frames.parent.name}/translation")
    found = find(entry, *places)
    if found is not None:
        return lengths(path, found)
    scan_shape = frames.shape[:-2]
    moved = np.zeros((*scan_shape, 3))
    for axis, (name, vector) in enumerate(MOTORS.items()):
        motor = _motor(path, entry, name)
        values = array_of(path, motor).astype(np.float64) * unit_m(path, motor)
        if values.ndim == 1 and len(scan_shape) == 2:  # the positions of one axis of a raster
            values = np.expand_dims(values, 1 - axis)
        try:
            along = np.broadcast_to(np.squeeze(values) if values.ndim > 2 else values, scan_shape)
        except ValueError:
            raise InputError(f"{path}: {motor.name} has shape {values.shape}; frames need {scan_shape}") from None
        direction = np.asarray(motor.attrs.get("vector", vector), dtype=np.float64)
        moved += along[..., None] * direction / np.linalg.norm(direction)
    return moved.reshape(-1, 3)


def _motor(path: Path, entry: h5py.Group, name: str) -> h5py.Dataset:
    groups = [moves for sample in of_class(entry, "NXsample") for moves in of_class(sample, "NXtransformations")]
    for group in [*groups, *of_class(entry, "NXdata")]:
        motor = find(group, name)
        if motor is not None:
            return motor
    raise MissingKeyError(f"{path}: Missing required key {name!r} in the NXtransformations of the sample")


def _wavelength(path: Path, entry: h5py.Group) -> float | None:
    """Of the beam; the source's energy counts only where it is a photon's, in joules, as in CXI."""
    for instrument in of_class(entry, "NXinstrument"):
        for beam in of_class(instrument, "NXbeam"):
            energy = energy_j(path, find(beam, *ENERGIES))
            if energy is not None:
                return wavelength_m(energy)
            wavelength = find(beam, "incident_wavelength")
            if wavelength is not None:
                return _length_of_light(path, wavelength)
        for source in of_class(instrument, "NXsource"):
            energy = energy_j(path, find(source, "energy"))
            if energy is not None and energy < LARGEST_ENERGY_J and not unit_of(source["energy"]).endswith("ev"):
                return wavelength_m(energy)
    return None


def _length_of_light(path: Path, dataset: h5py.Dataset) -> float | None:
    value = length_m(path, dataset)
    angstroms = value is not None and not unit_of(dataset) and value > LARGEST_WAVELENGTH_M
    return value * 1e-10 if angstroms and value is not None else value


def _centre(path: Path, detector: h5py.Group, pixel: Pair | None) -> Pair | None:
    """(row, column) of the beam in px; a length is one from the detector's first pixel."""
    found = []
    for axis, name in enumerate(("beam_center_y", "beam_center_x")):
        dataset = find(detector, name)
        value = None if dataset is None else number(path, dataset, name)
        if dataset is None or value is None:
            return None
        is_length = unit_of(dataset) in LENGTHS_M
        if is_length and pixel is None:
            return None
        found.append(value * unit_m(path, dataset) / pixel[axis] if is_length and pixel is not None else value)
    return found[0], found[1]
