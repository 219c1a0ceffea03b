"""Checkpoints of a running training: the last one and the best one, each complete or not there."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from ptycho.errors import InputError
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.telemetry import EvalRecord


class Progress(NamedTuple):
    """What a checkpoint says of its training: whose it is, optimizer steps done, seconds spent on them."""

    key: str
    steps_done: int
    wall_s: float


class Checkpoints(L.Callback):
    """Saves every so many optimizer steps, behind the validation of that step where there is one.

    A training that goes on from ``last`` equals one that never stopped, to the last bit; there are never
    more than two files.

    Args:
        last: file of the latest state.
        best: file of the state with the lowest validation loss.
        every: optimizer steps between two states.
        key: whose training it is.
        evals: the training's validations, as they grow.
        wall_s: seconds that earlier starts of the training took.
    """

    def __init__(
        self, last: Path, best: Path, every: int, key: str, evals: Sequence[EvalRecord], wall_s: float = 0.0
    ) -> None:
        self.last, self.best, self.every, self.key, self.evals = last, best, every, key, evals
        self._earlier_s, self._start = wall_s, time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, PtychoPINN_Lightning)
        if module.steps_done % module.training_config.eval_every:
            self._save_if_due(trainer, module)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        losses = [record.val_loss for record in self.evals if math.isfinite(record.val_loss)]
        if losses and self.evals[-1].val_loss == min(losses):
            self._save(trainer, self.best)
        self._save_if_due(trainer, module)

    def _save_if_due(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if _steps_done(module) % self.every == 0 and not trainer.should_stop:  # that it ends is not in the state
            self._save(trainer, self.last)

    @staticmethod
    def _save(trainer: L.Trainer, path: Path) -> None:
        temporary = path.with_name(f"{path.name}.tmp")
        trainer.save_checkpoint(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        spent_s = self._earlier_s + time.perf_counter() - self._start
        checkpoint["training"] = Progress(self.key, _steps_done(module), spent_s)._asdict()


def _sync(path: Path) -> None:
    """Make a file, or what was renamed in a folder, last through a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _steps_done(module: L.LightningModule) -> int:
    assert isinstance(module, PtychoPINN_Lightning)
    return module.steps_done


def read_progress(path: Path) -> Progress:
    """What a checkpoint says of its training; it is loaded without unpickling anything but tensors and numbers.

    Raises:
        InputError: it is damaged, or holds anything else.
    """
    try:
        return Progress(**torch.load(path, map_location="cpu", weights_only=True)["training"])
    except Exception as error:  # a damaged file raises what it will  # noqa: BLE001
        kind = type(error).__name__
        raise InputError(f"{path}: no checkpoint of a training ({kind}); allowed: remove it, to begin anew") from None
