"""HDF5 of ptychodus, pty-chi and PtychoViT: frames in ``/dp``, the rest in a product file.

| in the file of frames | content |
|---|---|
| ``dp`` | (F, H, W) counts |
| ``bad_pixels``, ``valid_pixel_mask`` | (H, W); true is bad in the first, good in the second |

| in the same file or the product (``NAME_para.hdf5`` beside ``NAME_dp.hdf5``, or ``--scan-positions``) | content |
|---|---|
| ``probe_position_x_m``, ``probe_position_y_m`` | (F,) metres; y runs down the rows, x right along the columns |
| ``probe_position_indexes`` | (F,) the frame of each position, where it is a permutation of them |
| ``probe`` | (P, n, n), or (eigenprobes, P, n, n) of which the first is taken |

Numbers are attributes or datasets, by the names in the tables below. The size of an object pixel is that of the probe's
grid. Sources: ptychodus (``h5_product_file``, ``h5_diffraction_file``), pty-chi's examples and its page on position
mapping; the further names are those of beamline scripts (``lambda_nm``, ``det_distance_m``, ``ccd_pixel_um``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import ScanConfig
from ptycho.errors import InputError
from ptycho.npz import MissingKeyError
from ptycho.readers.cxi import complex_array, parts_of
from ptycho.readers.geometry import ELECTRON_VOLT_J, JOULE_METRES
from ptycho.readers.hdf5 import array_of, files_of, find, near_field_words, need, number, open_hdf5
from ptycho.readers.raw import FrameStack, Pair, RawScan

POSITIONS = ("probe_position_y_m", "probe_position_x_m")
ENERGIES_EV = {"probe_energy_eV": 1.0, "energy_eV": 1.0, "energy_ev": 1.0, "energy_keV": 1e3, "energy_kev": 1e3}
WAVELENGTHS_M = {"wavelength_m": 1.0, "lambda_m": 1.0, "lambda_nm": 1e-9, "wavelength_nm": 1e-9}
DISTANCES_M = {"detector_object_distance_m": 1.0, "detector_distance_m": 1.0, "det_distance_m": 1.0,
               "distance_m": 1.0, "z_m": 1.0}  # fmt: skip
PIXELS_M = {"detector_pixel_size_m": 1.0, "det_pixel_size_m": 1.0, "det_pixelsize_m": 1.0,
            "detector_pixel_size_um": 1e-6, "ccd_pixel_um": 1e-6}  # fmt: skip
OBJECT_PIXELS = (("pixel_height_m", "pixel_width_m"), ("pixel_size_m", "pixel_size_m"))


def is_ptychodus(file: h5py.File) -> bool:
    """Whether an HDF5 file has frames in ``/dp``, or a product's positions."""
    return find(file, "dp", *POSITIONS) is not None


def read_ptychodus(path: Path, file: h5py.File, settings: ScanConfig) -> RawScan:
    """What a file of frames and its product hold; the frames are read later, from the open file.

    Raises:
        InputError: no frames, no positions, or an entry that cannot be used.
    """
    frames = find(file, "dp")
    if frames is None:
        raise MissingKeyError(f"{path}: has positions, but no frames in /dp; give the file that has them as --data")
    with contextlib.ExitStack() as stack:
        other = None if settings.scan_positions is None else Path(settings.scan_positions)
        if other is None and find(file, *POSITIONS) is None:
            other = beside(path)
        product = file if other is None else stack.enter_context(open_hdf5(other))
        where = path if other is None else other
        probe = find(product, "probe") or find(file, "probe")
        wavelength = quantity(path, (product, file, frames), WAVELENGTHS_M)
        energy_ev = quantity(path, (product, file, frames), ENERGIES_EV)
        if wavelength is None and energy_ev:
            wavelength = JOULE_METRES / (energy_ev * ELECTRON_VOLT_J)
        side = quantity(path, (product, file, frames), PIXELS_M)
        modes = None if probe is None else first_eigenprobes(complex_array(where, probe))
        return RawScan(
            path=path,
            format="ptychodus",
            frames=FrameStack(path, "dp", parts_of(path, frames)),
            values="counts",
            positions=positions_of(where, product),
            positions_name=" and ".join(POSITIONS),
            positions_unit="m",
            probe=modes,
            good=_good(path, file),
            wavelength_m=wavelength,
            distance_m=quantity(path, (product, file, frames), DISTANCES_M),
            pixel_m=None if side is None else (side, side),
            object_pixel_m=_object_pixel(where, product, modes, frames.shape[-2:]),
            near_field=near_field_words(file) or near_field_words(product),
            sources=(*files_of(path, [frames]), *([] if other is None else [other])),
        )


def beside(path: Path) -> Path:
    """The product that belongs to a file of frames by its name.

    Raises:
        InputError: there is none.
    """
    stem = path.name.replace("_dp", "_para")
    found = path.with_name(stem)
    if stem == path.name or not found.exists():
        raise InputError(
            f"{path}: Missing required key {POSITIONS[0]!r}, and no NAME_para beside NAME_dp; "
            "give the file with the positions as --scan-positions"
        )
    return found


def positions_of(path: Path, product: h5py.Group) -> NDArray[np.float64]:
    """(F, 2) positions (y, x) in metres, in the order of the frames.

    Raises:
        InputError: a missing axis, or axes of different lengths.
    """
    y, x = (array_of(path, need(path, product, name)).ravel() for name in POSITIONS)
    if y.shape != x.shape:
        raise InputError(f"{path}: {y.size} {POSITIONS[0]}, but {x.size} {POSITIONS[1]}; allowed: one of each")
    positions = np.stack([y, x], axis=-1)
    indexes = find(product, "probe_position_indexes")
    order = np.arange(len(y)) if indexes is None else array_of(path, indexes).ravel()
    if not np.array_equal(np.sort(order), np.arange(len(y))):
        return positions
    return positions[np.argsort(order)]


def quantity(path: Path, places: Sequence[Any], names: Mapping[str, float]) -> float | None:
    """The first number by one of ``names``, as an attribute or a dataset of one of ``places``, times its factor."""
    for name, factor in names.items():
        for place in places:
            found = place.attrs.get(name)
            if found is None and isinstance(place, h5py.Group):
                found = find(place, name)
            value = number(path, found, name)
            if value is not None:
                return value * factor
    return None


def first_eigenprobes(probe: NDArray[Any]) -> NDArray[Any]:
    """The incoherent modes (P, n, n) of a probe that may be (eigenprobes, P, n, n): those of the first."""
    return probe[0] if probe.ndim == 4 else probe


def _good(path: Path, file: h5py.File) -> NDArray[np.bool_] | None:
    bad, valid = find(file, "bad_pixels"), find(file, "valid_pixel_mask")
    if bad is not None:
        return array_of(path, bad) == 0
    return None if valid is None else array_of(path, valid) != 0


def _object_pixel(path: Path, product: h5py.Group, probe: Any, frame: tuple[int, int]) -> Pair | None:
    """(row, column) side of an object pixel under a whole frame, from that of the probe's or object's grid."""
    datasets = [dataset for dataset in (find(product, "probe"), find(product, "object")) if dataset is not None]
    for dataset in datasets:
        for names in OBJECT_PIXELS:
            row, column = (number(path, dataset.attrs.get(name), name) for name in names)
            if row and column:
                grid = frame if probe is None else probe.shape[-2:]
                return row * grid[0] / frame[0], column * grid[1] / frame[1]
    return None
