"""The frames of one run: its three splits, their digest, and the baselines that a training is held against."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ptycho.arrays import PtychoArrays, ScanSplits
from ptycho.cache import load_split
from ptycho.errors import InputError
from study.data import baselines_file
from study.records import write_json
from study.run_config import TorchRunnerConfig
from study.seeds import seeds_of

if TYPE_CHECKING:
    from ptycho_torch.baselines import Baselines

VALIDATION_FRACTION = 0.1


def load_cached_dataset(path: str | Path) -> PtychoArrays:
    """The frames of one cached split.

    Raises:
        InputError: a file that cannot be used; also a KeyError where a required key is missing.
    """
    return load_split(Path(path))


def load_splits(cfg: TorchRunnerConfig) -> ScanSplits:
    """The frames of a run.

    Raises:
        InputError: a file that cannot be used, or frames of another size than ``N`` or ``gridsize`` say.
    """
    train, test = load_cached_dataset(cfg.train_npz), load_cached_dataset(cfg.test_npz)
    if cfg.validation_npz is None:
        train, validation = keep_validation(train, seeds_of(cfg.seed).data)
    else:
        validation = load_cached_dataset(cfg.validation_npz)
    for path, arrays in ((cfg.train_npz, train), (cfg.test_npz, test)):
        expected = (cfg.gridsize**2, cfg.N, cfg.N)
        if arrays.amplitude.shape[1:] != expected:
            raise InputError(
                f"{path}: frames have shape {arrays.amplitude.shape[1:]}; "
                f"N={cfg.N} and gridsize={cfg.gridsize} need {expected}"
            )
    return ScanSplits(train=train, validation=validation, test=test)


def keep_validation(train: PtychoArrays, seed: int) -> tuple[PtychoArrays, PtychoArrays]:
    """The training frames without a tenth of them, and that tenth."""
    order = np.random.default_rng(seed).permutation(train.n_frames)
    kept = max(1, round(VALIDATION_FRACTION * train.n_frames))
    return train.take(np.sort(order[kept:])), train.take(np.sort(order[:kept]))


def cached_baselines(cfg: TorchRunnerConfig, splits: ScanSplits) -> Baselines:
    """The baselines of a run's dataset, computed once and kept beside the training frames."""
    from ptycho_torch.baselines import Baselines, compute_baselines

    path = baselines_file(Path(cfg.train_npz), cfg.torch_loss_mode)
    key = dataset_digest(splits)
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.pop("digest") == key:
            return Baselines(**kept)
    baselines = compute_baselines(splits, cfg.torch_loss_mode)
    write_json(path, {**dataclasses.asdict(baselines), "digest": key})
    return baselines


def dataset_digest(splits: ScanSplits) -> str:
    """One hash for the frames of all three splits."""
    parts = (splits.train.digest(), splits.validation.digest(), splits.test.digest())
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:32]
