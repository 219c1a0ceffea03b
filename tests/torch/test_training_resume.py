"""A training that goes on from a checkpoint equals one that never stopped, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from ptycho.arrays import ScanSplits
from ptycho.config.algorithms import ALGORITHMS
from ptycho.faults import inject, parse_fault
from ptycho_torch.train_utils import GradientClipper

ToyFit = Callable[..., Any]
STATEFUL = [name for name, info in ALGORITHMS.items() if info.stateful]
STEPS, SAVED = 33, 28  # 17 steps an epoch; behind the warm-ups but adagc's
ADAGC_STEPS, ADAGC_SAVED = 108, 104
TINY = {"architecture": "fno_vanilla", "fno_blocks": 1, "fno_width": 2}


class SaveAt(L.Callback):
    """Writes a checkpoint at one step: after its batch, at the end of its validation or of its epoch."""

    def __init__(self, path: Path, step: int, moment: str = "batch") -> None:
        self.path, self.step, self.moment = path, step, moment

    def _save(self, trainer: L.Trainer, module: Any, moment: str) -> None:
        if moment == self.moment and module.steps_done == self.step and not trainer.validating:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        self._save(trainer, module, "batch")

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self._save(trainer, module, "epoch")

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if self.moment == "validation" and module.steps_done == self.step:
            trainer.save_checkpoint(self.path)


def same_weights(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.module.parameters(), other.module.parameters(), strict=True))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_goes_on_as_if_it_had_never_stopped(
    toy_fit: ToyFit, toy_splits: ScanSplits, tmp_path: Path, algorithm: str
) -> None:
    """Frames overflow after the checkpoint, where every algorithm has to act."""
    steps, saved = (ADAGC_STEPS, ADAGC_SAVED) if algorithm == "adagc" else (STEPS, SAVED)
    settings = {
        "faults": inject(toy_splits.train, [parse_fault(f"overload:rate=0.5,onset={saved + 2}")], seed=0),
        "max_steps": steps,
        "gradient_clip_algorithm": algorithm,
        "gradient_clip_val": ALGORITHMS[algorithm].default or 1.0,  # type: ignore[index]
        "torch_loss_mode": "poisson",
        "network": TINY,
    }
    path = tmp_path / "checkpoint.ckpt"
    whole = toy_fit(callbacks=[SaveAt(path, saved)], **settings)
    resumed = toy_fit(ckpt_path=path, **settings)
    assert same_weights(whole, resumed)
    assert resumed.sink.steps == whole.sink.steps[saved:]
    assert any(record.clipped_fraction > 0 for record in resumed.sink.steps) == (algorithm != "none")

    if algorithm in STATEFUL:  # and without its history it would not have
        checkpoint = torch.load(path, weights_only=True)
        module = resumed.module
        fresh = GradientClipper(module.model, algorithm=algorithm, threshold=module.gradient_clip_val)
        torch.save({**checkpoint, "clipper": fresh.state_dict()}, path)
        assert not same_weights(whole, toy_fit(ckpt_path=path, **settings))


@pytest.mark.parametrize(
    ("step", "moment"),
    [(4, "batch"), (9, "batch"), (9, "epoch"), (10, "batch"), (18, "epoch"), (5, "validation"), (15, "validation")],
)
def test_wherever_it_stopped(toy_fit: ToyFit, tmp_path: Path, step: int, moment: str) -> None:
    """9 steps an epoch, of two batches each, the last of 1 frame."""
    settings = {
        "max_steps": 20,
        "accumulate_grad_batches": 2,
        "eval_every": 5,
        "optimizer": "sgd",
        "scheduler": "warmup_cosine",
        "warmup_steps": 6,
        "network": TINY,
    }
    path = tmp_path / "checkpoint.ckpt"
    whole = toy_fit(callbacks=[SaveAt(path, step, moment)], **settings)
    resumed = toy_fit(ckpt_path=path, **settings)
    assert same_weights(whole, resumed)
    assert resumed.sink.steps == whole.sink.steps[step:]
    assert resumed.sink.evals == [record for record in whole.sink.evals if record.step > step]


def test_a_plateau_keeps_its_patience(toy_fit: ToyFit, tmp_path: Path) -> None:
    settings = {"max_steps": 9, "eval_every": 1, "learning_rate": 1e-6, "scheduler": "plateau", "plateau_patience": 3}
    path = tmp_path / "checkpoint.ckpt"
    whole = toy_fit(callbacks=[SaveAt(path, 3, "validation")], **settings)
    resumed = toy_fit(ckpt_path=path, **settings)
    assert resumed.sink.steps == whole.sink.steps[3:]
    assert len({record.learning_rate for record in resumed.sink.steps}) == 2


@pytest.mark.parametrize("budget", [{"max_steps": 20}, {"max_steps": None, "epochs": 2}])
def test_a_spent_budget_is_not_overdrawn(toy_fit: ToyFit, tmp_path: Path, budget: dict[str, Any]) -> None:
    path = tmp_path / "checkpoint.ckpt"
    whole = toy_fit(network=TINY, **budget)
    whole.trainer.save_checkpoint(path)
    resumed = toy_fit(network=TINY, ckpt_path=path, **budget)
    assert resumed.module.steps_done == whole.module.steps_done
    assert resumed.sink.steps == []
    assert same_weights(whole, resumed)


def test_a_larger_budget_goes_on(toy_fit: ToyFit, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.ckpt"
    toy_fit(max_steps=20, network=TINY).trainer.save_checkpoint(path)
    resumed = toy_fit(max_steps=25, network=TINY, ckpt_path=path)
    assert same_weights(resumed, toy_fit(max_steps=25, network=TINY))
    assert [record.step for record in resumed.sink.steps] == list(range(20, 25))


def test_no_record_is_lost_between_a_checkpoint_and_what_follows(toy_fit: ToyFit, tmp_path: Path) -> None:
    """A training that is killed right after its checkpoint has handed on every step up to it."""
    handed_on: list[int] = []

    class Look(SaveAt):
        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, module, *args)
            if module.steps_done == self.step:
                handed_on.extend(record.step for record in module.sink.steps)

    toy_fit(callbacks=[Look(tmp_path / "checkpoint.ckpt", 7)], max_steps=9)
    assert handed_on == list(range(7))


@pytest.mark.parametrize("algorithm", ["agc_unit", "autoclip"])
@pytest.mark.parametrize("scheduler", ["none", "warmup_cosine", "plateau"])
def test_a_checkpoint_holds_tensors_and_plain_values_only(
    toy_fit: ToyFit, tmp_path: Path, algorithm: str, scheduler: str
) -> None:
    path = tmp_path / "checkpoint.ckpt"
    fit = toy_fit(eval_every=1, gradient_clip_algorithm=algorithm, gradient_clip_val=10.0, scheduler=scheduler)
    fit.trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["steps_done"] == 3
    assert checkpoint["clipper"]["algorithm"] == algorithm
    assert len(checkpoint["lr_schedulers"]) == (scheduler != "none")
    assert "hyper_parameters" not in checkpoint


def test_a_checkpoint_of_another_algorithm_is_refused(toy_fit: ToyFit, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.ckpt"
    toy_fit(gradient_clip_algorithm="zclip", gradient_clip_val=2.5).trainer.save_checkpoint(path)
    with pytest.raises(ValueError, match="clipper state: of algorithm 'zclip'; allowed here: 'skip'"):
        toy_fit(gradient_clip_algorithm="skip", gradient_clip_val=10.0, ckpt_path=path, max_steps=5)
