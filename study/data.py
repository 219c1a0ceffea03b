"""The frames of a run as cached files: simulated or read from a scan, made once, found again by their key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from ptycho.cache import cached_grid_lines, save_split
from ptycho.config.config import DataConfig, ScanConfig
from ptycho.config.settings import project
from ptycho.errors import InputError
from ptycho.readers import read_scan, scan_sources, split_scan
from study.seeds import seeds_of
from study.settings import RunSettings


class DataFiles(NamedTuple):
    """Cached splits of one dataset."""

    train: Path
    validation: Path
    test: Path


def baselines_file(train: Path, loss: str) -> Path:
    """Where the baselines of a dataset are kept: beside its training frames."""
    return train.with_suffix(f".baselines-{loss}.json")


def prepare_data(settings: RunSettings, folder: Path) -> DataFiles:
    """The cached frames that a run needs, made if they are not there.

    Raises:
        InputError: a scan that cannot be used, or frames of another size than ``N``.
    """
    seed = seeds_of(settings.seed).data
    if settings.data is None:
        config = DataConfig(**project(settings, DataConfig))
        return DataFiles(*cached_grid_lines(config, settings.N, settings.gridsize, seed, folder))
    return _cached_scan(settings, seed, folder)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            return digest.hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); allowed: a scan's file") from None


def scan_frame_size(path: Path, scan: ScanConfig) -> int:
    """N of a scan's frames as they are handed on; reads and so checks the whole scan.

    Raises:
        InputError: the file cannot be used.
    """
    return read_scan(path, settings=scan).frame_size_px


def _cached_scan(settings: RunSettings, seed: int, folder: Path) -> DataFiles:
    path, scan = Path(str(settings.data)), ScanConfig(**project(settings, ScanConfig))
    files = DataFiles(*(folder / f"scan-{_key(settings, scan, path, seed)}-{name}.npz" for name in DataFiles._fields))
    if not all(file.exists() for file in files):
        arrays = read_scan(path, settings.gridsize, settings.nphotons, scan)
        if arrays.frame_size_px != settings.N:
            raise InputError(f"N: {settings.N} px, but the frames of {path} have {arrays.frame_size_px} px")
        splits = split_scan(arrays, settings.validation_fraction, settings.test_fraction, seed)
        folder.mkdir(parents=True, exist_ok=True)
        for file, part in zip(files, (splits.train, splits.validation, splits.test), strict=True):
            save_split(file, part, {"source": path.name, "seed": seed})
    return files


def _key(settings: RunSettings, scan: ScanConfig, path: Path, seed: int) -> str:
    """A hash of all that decides the frames of a real scan: its files, and how they are read and split."""
    said = {
        "files": [file_digest(file) for file in scan_sources(path, scan)],
        "scan": dataclasses.asdict(scan),
        "gridsize": settings.gridsize,
        "nphotons": settings.nphotons,
        "fractions": (settings.validation_fraction, settings.test_fraction),
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
