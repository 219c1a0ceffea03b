"""Toy frames and a toy network: small enough that a test can train for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ptycho.arrays import ScanSplits
from ptycho.cache import cached_grid_lines, load_split
from ptycho.config.config import DataConfig
from study.grid_lines_torch_runner import TorchRunnerConfig

TOY_DATA: dict[str, Any] = {
    "object_size": 48,
    "n_lines": 20,
    "nphotons": 1e5,
    "probe": "gaussian",
    "probe_defocus": 1.0,
    "outer_offset_train": 8,
    "outer_offset_test": 20,
    "validation_fraction": 0.2,
}
TOY_RUN: dict[str, Any] = {
    "N": 16,
    "fno_width": 4,
    "fno_modes": 3,
    "fno_blocks": 2,
    "batch_size": 4,
    "max_steps": 2,
    "eval_every": 2,
}


@pytest.fixture(scope="session")
def toy_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Cached training, validation and test frames of 16 px."""
    return cached_grid_lines(DataConfig(**TOY_DATA), 16, 1, 0, tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def toy_splits(toy_files: tuple[Path, Path, Path]) -> ScanSplits:
    train, validation, test = (load_split(path) for path in toy_files)
    return ScanSplits(train=train, validation=validation, test=test)


@pytest.fixture
def toy_config(toy_files: tuple[Path, Path, Path], tmp_path: Path):
    """Make a run's settings: the toy ones, with what a test changes."""
    train, validation, test = toy_files

    def make(**changes: Any) -> TorchRunnerConfig:
        paths = {"train_npz": str(train), "validation_npz": str(validation), "test_npz": str(test)}
        return TorchRunnerConfig(**{**TOY_RUN, **paths, "output_dir": str(tmp_path / "run"), **changes})

    return make
