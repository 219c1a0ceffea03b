"""NPZ archives read without trust: no unpickling, and one clear error for anything that is wrong."""

from __future__ import annotations

import bz2
import io
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import InputError

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


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
            return _read(path, io.BytesIO(bz2.decompress(file.read())) if path.suffix == ".bz2" else file, keys)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable NPZ file ({_one_line(error)})") from None


def require(path: str | Path, arrays: Arrays, keys: Iterable[str]) -> None:
    """Check that every one of ``keys`` was found.

    Raises:
        MissingKeyError: names the first missing key and the keys found.
    """
    for key in keys:
        if key not in arrays:
            raise MissingKeyError(f"{path}: Missing required key {key!r}; found: {', '.join(sorted(arrays)) or 'none'}")


def check_numbers(path: str | Path, key: str, array: NDArray[Any], *, nonnegative: bool = False) -> None:
    """Check that an array holds finite numbers, and none below zero where that is asked.

    Raises:
        InputError: names file, key and what was found.
    """
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
        raise InputError(f"{path}: {key} has type {array.dtype}; allowed: numbers")
    if array.size == 0:
        raise InputError(f"{path}: {key} is empty, shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{path}: {key} has {np.count_nonzero(~np.isfinite(array))} values that are not finite")
    if nonnegative and np.iscomplexobj(array):
        raise InputError(f"{path}: {key} is complex; allowed: real numbers, zero or above")
    if nonnegative and array.min() < 0:
        raise InputError(f"{path}: {key} has negative values (lowest {array.min():g}); allowed: zero or above")


def _read(path: Path, file: Any, keys: Iterable[str] | None) -> dict[str, NDArray[Any]]:
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise InputError(f"{path}: holds one bare array; allowed: an NPZ archive of named arrays")
    names = archive.files if keys is None else [key for key in keys if key in archive.files]
    return {name: _read_one(path, archive, name) for name in names}


def _read_one(path: Path, archive: Any, name: str) -> NDArray[Any]:
    try:
        array = archive[name]
    except UNREADABLE as error:
        raise InputError(f"{path}: {name} cannot be read ({_one_line(error)})") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: {name} is not an array")
    return array


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
