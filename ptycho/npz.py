"""NPZ archives read without trust: no unpickling, and one clear error for anything that is wrong."""

from __future__ import annotations

import bz2
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import InputError

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
BZ2_BLOCK = 16 << 20
MAGIC = (b"PK", b"\x93NUMPY")  # of an archive, and of a bare array
LARGEST = 1e18  # its square is still a number in single precision


class MissingKeyError(InputError, KeyError):
    """An archive lacks a required array. Also a KeyError, as users of the earlier cache expect."""

    __str__ = InputError.__str__  # KeyError's own would quote the message


def read_npz(path: str | Path, keys: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read the arrays of an NPZ file, or of one compressed with bzip2 (``.npz.bz2``).

    Args:
        path: the file.
        keys: names to read where they exist; all of them without it. Others are not even decompressed.

    Raises:
        InputError: the file is missing, damaged, no NPZ archive, or holds pickled objects.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _read(path, _unpacked(path, file) if path.suffix == ".bz2" else file, keys)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: not a readable NPZ file, but a folder") from None
    except Exception as error:  # what parsers raise on foreign bytes is no closed set  # noqa: BLE001
        raise InputError(f"{path}: not a readable NPZ file ({one_line(error)})") from None


def check_size(path: str | Path, name: str, size_bytes: int) -> None:
    """Refuse what cannot fit into this machine's memory, before any of it is read.

    Raises:
        InputError: it is larger.
    """
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if size_bytes > most:
        raise InputError(
            f"{path}: {name} would take {size_bytes / 1e9:.4g} GB; allowed: half of this machine's memory, "
            f"{most / 1e9:.4g} GB"
        )


def require(path: str | Path, arrays: Arrays, keys: Iterable[str]) -> None:
    """Check that every one of ``keys`` was found.

    Raises:
        MissingKeyError: names the first missing key and the keys found.
    """
    for key in keys:
        if key not in arrays:
            raise MissingKeyError(f"{path}: Missing required key {key!r}; found: {', '.join(sorted(arrays)) or 'none'}")


def check_numbers(path: str | Path, key: str, array: NDArray[Any], *, nonnegative: bool = False) -> None:
    """Check that an array holds finite numbers, none so large that squares overflow, none below zero if that is asked.

    Raises:
        InputError: names file, key and what was found.
    """
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
        raise InputError(f"{path}: {key} has type {array.dtype}; allowed: numbers")
    if array.size == 0:
        raise InputError(f"{path}: {key} is empty, shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{path}: {key} has {np.count_nonzero(~np.isfinite(array))} values that are not finite")
    if np.abs(array).max() > LARGEST:
        raise InputError(f"{path}: {key} has values up to {np.abs(array).max():g}; allowed: up to {LARGEST:g}")
    if nonnegative and np.iscomplexobj(array):
        raise InputError(f"{path}: {key} is complex; allowed: real numbers, zero or above")
    if nonnegative and array.min() < 0:
        raise InputError(f"{path}: {key} has negative values (lowest {array.min():g}); allowed: zero or above")


def _unpacked(path: Path, file: BinaryIO) -> BinaryIO:
    """The content of a bzip2 file."""
    content = io.BytesIO()
    with bz2.open(file) as packed:
        while block := packed.read(BZ2_BLOCK):
            content.write(block)
            check_size(path, "its content", content.tell())
    content.seek(0)
    return content


def _read(path: Path, file: BinaryIO, keys: Iterable[str] | None) -> dict[str, NDArray[Any]]:
    if not file.read(6).startswith(MAGIC):  # NumPy would take it for a pickle, and say how to load it
        raise InputError(f"{path}: not a readable NPZ file; a scan is NPZ, CXI or another kind of HDF5")
    file.seek(0)
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise InputError(f"{path}: holds one bare array; allowed: an NPZ archive of named arrays")
    assert archive.zip is not None  # until it is closed
    members = {member.filename.removesuffix(".npy"): member.file_size for member in archive.zip.infolist()}
    names = archive.files if keys is None else [key for key in keys if key in members]
    check_size(path, "its arrays", sum(members[name] for name in names))
    return {name: _read_one(path, archive, name) for name in names}


def _read_one(path: Path, archive: Any, name: str) -> NDArray[Any]:
    try:
        array = archive[name]
    except Exception as error:  # as above  # noqa: BLE001
        raise InputError(f"{path}: {name} cannot be read ({one_line(error)})") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: {name} is not an array")
    return array


def one_line(value: object) -> str:
    """What somebody else's error or value says, on one line and not at length."""
    text = " ".join(str(value).split())[:200]
    return text or type(value).__name__
