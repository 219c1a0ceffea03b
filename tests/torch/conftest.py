"""Toy frames and a toy network: small enough that a test can train for real."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest

from ptycho.arrays import PtychoArrays, ScanSplits
from ptycho.cache import cached_grid_lines, load_split
from ptycho.config.config import DataConfig
from ptycho.faults import FaultyFrames
from ptycho_torch.config_params import ModelConfig, TrainingConfig
from ptycho_torch.dataset import evaluation_loader, training_loader
from ptycho_torch.losses import LossScale
from ptycho_torch.model import PtychoPINN_Lightning, build_model
from ptycho_torch.telemetry import EvalRecord, StepRecord
from study.run_config import TorchRunnerConfig
from study.run_training import make_trainer, planned_steps

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


class KeepingSink:
    """Keeps all records; ends the training once it has ``enough`` steps or validations."""

    def __init__(self, enough_steps: int | None = None, enough_evals: int | None = None) -> None:
        self.enough_steps, self.enough_evals = enough_steps, enough_evals
        self.steps: list[StepRecord] = []
        self.evals: list[EvalRecord] = []
        self.layer_norms: dict[int, dict[str, float]] = {}
        self.calls: list[str] = []

    def on_steps(self, records: Sequence[StepRecord]) -> bool:
        self.steps.extend(records)
        self.calls.append(f"{len(records)} steps")
        return self.enough_steps is not None and len(self.steps) >= self.enough_steps

    def on_eval(self, record: EvalRecord) -> bool:
        self.evals.append(record)
        self.calls.append("evaluation")
        return self.enough_evals is not None and len(self.evals) >= self.enough_evals

    def on_layer_norms(self, step: int, norms: dict[str, float]) -> None:
        self.layer_norms[step] = norms


@pytest.fixture
def toy_sink() -> type[KeepingSink]:
    return KeepingSink


class Fit(NamedTuple):
    """A training that ended."""

    module: PtychoPINN_Lightning
    trainer: L.Trainer
    sink: KeepingSink


@pytest.fixture
def toy_fit(toy_splits: ScanSplits):
    """Train the toy network for real, by the Trainer that a study uses."""

    def fit(
        *,
        callbacks: Sequence[L.Callback] = (),
        faults: Sequence[FaultyFrames] = (),
        train: PtychoArrays | None = None,
        network: dict[str, Any] | None = None,
        sink: KeepingSink | None = None,
        ckpt_path: Path | None = None,
        **settings: Any,
    ) -> Fit:
        config = TrainingConfig(**{"batch_size": 4, "max_steps": 3, "eval_every": 1000, "device": "cpu", **settings})
        sizes = {k: v for k, v in TOY_RUN.items() if k in ModelConfig.__dataclass_fields__}
        frames = toy_splits.train if train is None else train
        steps = training_loader(frames, faults, config.batch_size, 7, config.accumulate_grad_batches)
        kept = KeepingSink() if sink is None else sink
        module = PtychoPINN_Lightning(
            build_model(ModelConfig(**{**sizes, **(network or {})}), frames.probe, 0),
            config,
            LossScale.of(toy_splits.train),
            planned_steps(config, len(steps)),
            kept,
        )
        trainer = make_trainer(config)
        trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
        trainer.fit(module, steps, evaluation_loader(toy_splits.validation, 6), ckpt_path=ckpt_path, weights_only=True)
        return Fit(module, trainer, kept)

    return fit
