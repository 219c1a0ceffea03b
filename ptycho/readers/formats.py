"""The formats by name: how each is told by what is in the file, and what reads it.

A file's kind is told by its first bytes, never by its name alone: NPZ archives and HDF5 files.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptycho.config.config import ScanConfig
from ptycho.errors import InputError
from ptycho.npz import one_line, read_npz
from ptycho.readers.cxi import is_cxi, read_cxi
from ptycho.readers.hdf5 import open_hdf5
from ptycho.readers.nexus import is_nexus, read_nexus
from ptycho.readers.npz_scans import read_cached, read_ptychopinn, read_tike
from ptycho.readers.ptychodus import is_ptychodus, read_ptychodus
from ptycho.readers.ptyd import is_ptyd, read_ptyd
from ptycho.readers.raw import RawScan

log = logging.getLogger(__name__)
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
HDF5_SUFFIXES = (".cxi", ".h5", ".hdf5", ".hdf", ".nxs", ".ptyd")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NpzFormat:
    """One kind of NPZ archive.

    Attributes:
        marks: names of arrays, any of which means this format.
        keys: names of arrays that it reads.
        read: makes a raw scan of the file's arrays.
    """

    marks: tuple[str, ...]
    keys: tuple[str, ...]
    read: Callable[[Path, dict[str, Any]], RawScan]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hdf5Format:
    """One kind of HDF5 file.

    Attributes:
        has: what tells it, in words.
        told: whether an open file is of this kind.
        read: makes a raw scan of an open file, which stays open for its frames.
    """

    has: str
    told: Callable[[Any], bool]
    read: Callable[[Path, Any, ScanConfig], RawScan]


# In this order: a file is of the first format of which it holds a mark.
NPZ_FORMATS: dict[str, NpzFormat] = {
    "tike": NpzFormat(marks=("data", "scan"), keys=("data", "scan", "probe"), read=read_tike),
    "PtychoPINN": NpzFormat(
        marks=("diff3d", "xcoords", "ycoords"),
        keys=("diffraction", "diff3d", "xcoords", "ycoords", "probeGuess"),
        read=read_ptychopinn,
    ),
    "cached": NpzFormat(
        marks=("diffraction", "coords_nominal"), keys=("diffraction", "coords_nominal"), read=read_cached
    ),
}
HDF5_FORMATS: dict[str, Hdf5Format] = {
    "NXcxi_ptycho": Hdf5Format(has="an NXentry with the definition NXcxi_ptycho", told=is_nexus, read=read_nexus),
    "CXI": Hdf5Format(has="/entry_1/data_1/data", told=is_cxi, read=read_cxi),
    "ptychodus": Hdf5Format(has="/dp, or /probe_position_x_m", told=is_ptychodus, read=read_ptychodus),
    "PtyPy": Hdf5Format(has="/chunks/0/data", told=is_ptyd, read=read_ptyd),
}


@contextmanager
def open_scan(path: Path, settings: ScanConfig) -> Iterator[RawScan]:
    """A scan in any known format, as its file holds it; frames can be read as long as it is open.

    Raises:
        InputError: no known format, or something in the file that cannot be used.
    """
    if is_hdf5(path):
        with open_hdf5(path) as file:
            name = hdf5_format(path, file)
            _check_positions_file(name, settings)
            with in_one_line(path, name):
                raw = HDF5_FORMATS[name].read(path, file, settings)
            yield raw
    else:
        stored = read_npz(path, {key for form in NPZ_FORMATS.values() for key in form.keys})
        name = npz_format(path, stored)
        _check_positions_file(name, settings)
        with in_one_line(path, name):
            raw = NPZ_FORMATS[name].read(path, stored)
        yield raw


@contextmanager
def in_one_line(path: Path, name: str) -> Iterator[None]:
    """What NumPy says where an array is of a type or shape that no reader has thought of, as a user's mistake."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError, MemoryError) as error:
        log.debug("%s", path, exc_info=True)
        raise InputError(f"{path}: cannot be used as a scan of format {name} ({one_line(error)})") from None


def _check_positions_file(name: str, settings: ScanConfig) -> None:
    if settings.scan_positions is not None and name != "ptychodus":
        raise InputError(
            f"scan_positions: {settings.scan_positions} has no effect on a scan of format {name}; "
            "allowed: with an HDF5 file of frames in /dp"
        )


def is_hdf5(path: Path) -> bool:
    """Whether a file is, or by its name wants to be, an HDF5 file."""
    try:
        with path.open("rb") as file:
            if file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE:
                return True
    except OSError:
        pass  # whoever reads it says why
    return path.suffix.lower() in HDF5_SUFFIXES


def npz_format(path: Path, stored: dict[str, Any]) -> str:
    """The name of the format of an archive.

    Raises:
        InputError: it is of none.
    """
    for name, form in NPZ_FORMATS.items():
        if any(mark in stored for mark in form.marks):
            return name
    known = "; ".join(f"{name} has {', '.join(form.keys)}" for name, form in NPZ_FORMATS.items())
    raise InputError(f"{path}: not a known kind of scan; {known}")


def hdf5_format(path: Path, file: Any) -> str:
    """The name of the format of an open HDF5 file.

    Raises:
        InputError: it is of none.
    """
    for name, form in HDF5_FORMATS.items():
        if form.told(file):
            return name
    known = "; ".join(f"{name} has {form.has}" for name, form in HDF5_FORMATS.items())
    raise InputError(f"{path}: not a known kind of scan; {known}")
