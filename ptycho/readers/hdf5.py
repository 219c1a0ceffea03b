"""HDF5 files read without trust: numbers with their units, names that may be missing, one clear error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho.errors import InputError
from ptycho.npz import MissingKeyError, check_size, one_line
from ptycho.readers.geometry import ELECTRON_VOLT_J, KEV_J

LENGTHS_M = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "μm": 1e-6, "micron": 1e-6, "nm": 1e-9,
             "angstrom": 1e-10, "a": 1e-10, "å": 1e-10}  # fmt: skip
ENERGIES_J = {"j": 1.0, "ev": ELECTRON_VOLT_J, "kev": KEV_J, "mev": 1e3 * KEV_J, "gev": 1e6 * KEV_J}
LARGEST_ENERGY_J = 1e-12  # 6 MeV: a number above this is no photon energy in joules
SMALLEST_ENERGY_EV = 50.0  # below this, a number without a unit is one of keV
HINTS = ("propagation", "propagator", "regime", "geometry_type", "definition")  # names whose text tells of a near field
MARKS = ("nearfield", "fresnel")
DAMAGED = (OSError, KeyError, RuntimeError, SystemError, UnicodeError)  # what h5py raises on damaged files


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file, open for reading.

    Raises:
        InputError: missing, damaged, or no HDF5 file.
    """
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        why = one_line(error) if h5py.is_hdf5(path) else "its first bytes are not those of one"
        raise InputError(f"{path}: not a readable HDF5 file ({why})") from None
    with file:
        try:
            yield file
        except DAMAGED as error:  # met by whatever looks into it
            raise InputError(f"{path}: damaged HDF5 file ({one_line(error)})") from None


def find(group: h5py.Group | None, *names: str) -> h5py.Dataset | None:
    """The first of ``names`` that is a dataset; a link that leads nowhere is none."""
    for name in names:
        found = None if group is None else group.get(name)
        if isinstance(found, h5py.Dataset):
            return found
    return None


def need(path: Path, group: h5py.Group, *names: str) -> h5py.Dataset:
    """As :func:`find`, where it must be there.

    Raises:
        MissingKeyError: none of them is.
    """
    found = find(group, *names)
    if found is None:
        raise MissingKeyError(f"{path}: Missing required key {names[0]!r}; found: {', '.join(sorted(group)) or 'none'}")
    return found


def array_of(path: Path, dataset: h5py.Dataset) -> NDArray[Any]:
    """A whole dataset.

    Raises:
        InputError: it cannot be read.
    """
    check_size(path, str(dataset.name), dataset.nbytes)
    try:
        return np.asarray(dataset[()])
    except (OSError, TypeError) as error:
        raise InputError(f"{path}: {dataset.name} cannot be read ({one_line(error)})") from None


def number(path: Path, value: Any, name: str) -> float | None:
    """The one number of a dataset or attribute; None for none. Where all numbers of an array are equal, that one.

    Raises:
        InputError: no number, or several different ones.
    """
    if value is None or (isinstance(value, h5py.Dataset) and text_of(value.attrs.get("type")) == "none"):
        return None
    array = np.asarray(array_of(path, value) if isinstance(value, h5py.Dataset) else value)
    if array.size == 0 or array.dtype.kind not in "fiu" or not np.all(array == array.flat[0]):
        raise InputError(f"{path}: {name} is {one_line(array)[:40]}; allowed: one number")
    return float(array.flat[0])


def length_m(path: Path, dataset: h5py.Dataset | None) -> float | None:
    """A length in metres; without a unit it is one of metres already."""
    if dataset is None:
        return None
    value = number(path, dataset, dataset.name)
    return None if value is None else value * unit_m(path, dataset)


def unit_m(path: Path, dataset: h5py.Dataset) -> float:
    """Metres in the unit of a dataset of lengths.

    Raises:
        InputError: an unknown unit.
    """
    unit = unit_of(dataset) or "m"
    if unit.rstrip("s") not in LENGTHS_M and unit not in LENGTHS_M:
        raise InputError(f"{path}: {dataset.name} has unit {unit!r}; allowed: {', '.join(LENGTHS_M)}")
    return LENGTHS_M.get(unit, LENGTHS_M.get(unit.rstrip("s"), math.nan))


def energy_j(path: Path, dataset: h5py.Dataset | None) -> float | None:
    """A photon energy in joules; without a unit, one as large as an X-ray's is in joules, eV or keV by its size.

    Raises:
        InputError: an unknown unit.
    """
    value = None if dataset is None else number(path, dataset, dataset.name)
    if dataset is None or not value:  # zero stands for unknown
        return None
    unit = unit_of(dataset)
    if not unit:
        unit = "j" if value < LARGEST_ENERGY_J else "ev" if value >= SMALLEST_ENERGY_EV else "kev"
    if unit not in ENERGIES_J:
        raise InputError(f"{path}: {dataset.name} has unit {unit!r}; allowed: J, eV, keV")
    return value * ENERGIES_J[unit]


def unit_of(dataset: h5py.Dataset) -> str:
    return text_of(dataset.attrs.get("units", dataset.attrs.get("unit", "")))


def text_of(value: Any) -> str:
    """Lower-case text of an attribute or a scalar, which may be bytes."""
    if isinstance(value, np.ndarray):
        value = value.flat[0] if value.size else ""
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")).strip().lower()


def near_field_words(file: h5py.Group) -> str:
    """What a file says of a near field, as ``name = text``; empty where it says nothing.

    Looked at are attributes and short texts by the names in ``HINTS``, wherever they stand.
    """
    found: list[str] = []

    def look(name: str, item: Any) -> None:
        said = {key: item.attrs[key] for key in HINTS if key in item.attrs}
        if isinstance(item, h5py.Dataset) and name.rpartition("/")[2] in HINTS and item.size == 1:
            said[name] = item[()]
        found.extend(f"{key} = {text}" for key, value in said.items() if is_near_field(text := text_of(value)))

    look("", file)
    file.visititems(look)
    return found[0] if found else ""


def is_near_field(text: str) -> bool:
    """Whether a text names a near field."""
    plain = "".join(letter for letter in text.lower() if letter.isalpha())
    return any(mark in plain for mark in MARKS)


def files_of(path: Path, datasets: Iterable[h5py.Dataset]) -> tuple[Path, ...]:
    """Every file that datasets lie in: behind links, and behind virtual datasets."""
    found = {path}
    for dataset in datasets:
        found.add(Path(dataset.file.filename))
        if dataset.is_virtual:
            found |= {path.parent / source.file_name for source in dataset.virtual_sources() if source.file_name != "."}
    return tuple(sorted(found))
