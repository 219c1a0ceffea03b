"""The training step under a real Trainer: the gradient that the optimizer sees, and when it sees it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from ptycho.arrays import ScanSplits
from ptycho.config.algorithms import ALGORITHMS
from ptycho.faults import inject, parse_fault
from ptycho_torch.config_params import ModelConfig
from ptycho_torch.dataset import training_loader
from ptycho_torch.generators import NETWORKS
from ptycho_torch.losses import LOSSES, LossScale
from ptycho_torch.model import build_model
from ptycho_torch.optimizers import warmup_cosine

ToyFit = Callable[..., Any]
TOY = ModelConfig(N=16, fno_width=4, fno_modes=3, fno_blocks=2)
TINY = {"architecture": "fno_vanilla", "fno_blocks": 1, "fno_width": 2}
PLAIN_SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1}


class GradientSeen(L.Callback):
    """Under manual optimization this hook runs within ``optimizer.step()``: what it sees is what the step takes."""

    def __init__(self) -> None:
        self.steps: list[list[Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.steps.append([p.grad.clone() for p in module.parameters()])


def weights(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(t.abs().double().square().sum()) for t in tensors))


def assert_close(found: list[Tensor], expected: list[Tensor], rtol: float = 1e-4, atol: float = 1e-7) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# the dispatch


def clip_by_hand(parameters: list[torch.nn.Parameter], algorithm: str, threshold: float | None) -> None:
    """The three rules as the task that began this project wrote them down, value clipping made fit for complex ones."""
    if threshold is None or threshold <= 0 or algorithm == "none":
        return
    if algorithm == "norm":
        torch.nn.utils.clip_grad_norm_(parameters, threshold)
    for p in parameters:
        assert p.grad is not None
        if algorithm == "value":
            (torch.view_as_real(p.grad) if p.is_complex() else p.grad).clamp_(-threshold, threshold)
        elif algorithm == "agc":
            bound = p.data.norm(2).clamp(min=1e-3) * threshold
            if p.grad.norm(2) > bound:
                p.grad.mul_(bound / p.grad.norm(2))


def gradient_by_hand(splits: ScanSplits, n_frames: int = 4) -> tuple[list[torch.nn.Parameter], float]:
    """The toy network with the gradient of its first batch, and that batch's loss; no Lightning, no clipper."""
    model = build_model(TOY, splits.train.probe, 0)
    batch = next(iter(training_loader(splits.train, (), n_frames, 7)))
    losses = LOSSES["mae"](model(batch.amplitude).intensity, batch.amplitude, LossScale.of(splits.train))
    losses.mean().backward()
    return list(model.parameters()), losses.mean().item()


@pytest.mark.parametrize(
    ("algorithm", "threshold", "acts"),
    [
        ("norm", 0.05, True),
        ("value", 1e-3, True),
        ("agc", 0.01, True),
        ("norm", 1e6, False),
        *((name, off, False) for name in ("norm", "value", "agc") for off in (None, 0.0, -1.0)),
        ("none", 0.05, False),
    ],
)
def test_the_optimizer_sees_the_gradient_that_the_algorithm_makes(
    toy_fit: ToyFit, toy_splits: ScanSplits, algorithm: str, threshold: float | None, acts: bool
) -> None:
    parameters, loss = gradient_by_hand(toy_splits)
    raw, start = [p.grad.clone() for p in parameters], [p.detach().clone() for p in parameters]
    clip_by_hand(parameters, algorithm, threshold)
    expected = [p.grad for p in parameters]
    assert any(p.is_complex() for p in parameters)
    assert equal(expected, raw) != acts

    seen = GradientSeen()
    fit = toy_fit(
        callbacks=[seen], max_steps=1, gradient_clip_algorithm=algorithm, gradient_clip_val=threshold, **PLAIN_SGD
    )
    assert_close(seen.steps[0], expected)
    assert_close(weights(fit.module), [w - 0.1 * g for w, g in zip(start, expected, strict=True)])
    (record,) = fit.sink.steps
    assert record.loss == pytest.approx(loss, rel=1e-6)
    assert record.grad_norm_preclip == pytest.approx(norm(raw), rel=1e-6)
    assert record.grad_norm_postclip == pytest.approx(norm(expected), rel=1e-5)
    assert (record.clipped_fraction > 0) == acts


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_recorded_is_what_the_optimizer_saw(toy_fit: ToyFit, toy_splits: ScanSplits, algorithm: str) -> None:
    """Frames overflow once the histories are warm, so that every algorithm acts at its default threshold."""
    seen, faults = GradientSeen(), inject(toy_splits.train, [parse_fault("overload:rate=1,onset=27")], seed=0)
    sink = toy_fit(
        callbacks=[seen],
        faults=faults,
        max_steps=30,
        torch_loss_mode="poisson",
        gradient_clip_algorithm=algorithm,
        gradient_clip_val=ALGORITHMS[algorithm].default or 1.0,  # type: ignore[index]
    ).sink
    stepped = [record for record in sink.steps if record.update_ratio > 0]
    assert len(stepped) == len(seen.steps)
    for record, gradients in zip(stepped, seen.steps, strict=True):
        assert record.grad_norm_postclip == pytest.approx(norm(gradients), rel=1e-5)
    clipped = [record for record in sink.steps if record.clipped_fraction > 0]
    assert bool(clipped) == (algorithm != "none")
    assert all(record.grad_norm_postclip < record.grad_norm_preclip for record in clipped)


# accumulation


@pytest.mark.parametrize("algorithm", ["none", "norm", "value", "agc_unit", "autoclip"])
def test_accumulated_batches_are_one_big_batch_clipped_once(toy_fit: ToyFit, algorithm: str) -> None:
    """65 frames in steps of 24: two epochs end in a step of 17 frames, here as 8 + 8 + 1."""
    common = {"max_steps": 7, "gradient_clip_algorithm": algorithm, "gradient_clip_val": 0.01, **PLAIN_SGD}
    if algorithm == "autoclip":
        common["gradient_clip_val"] = 20.0
    in_parts, at_once = GradientSeen(), GradientSeen()
    parts = toy_fit(callbacks=[in_parts], batch_size=8, accumulate_grad_batches=3, **common)
    whole = toy_fit(callbacks=[at_once], batch_size=24, **common)
    assert len(in_parts.steps) == len(at_once.steps) == 7
    for one, other in zip(in_parts.steps, at_once.steps, strict=True):
        assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert_close(weights(parts.module), weights(whole.module), rtol=1e-4, atol=1e-6)
    for one, other in zip(parts.sink.steps, whole.sink.steps, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.clipped_fraction == pytest.approx(other.clipped_fraction)


def test_the_frames_of_a_short_last_step_weigh_the_same(toy_fit: ToyFit, toy_splits: ScanSplits) -> None:
    """5 frames as 4 + 1: the loss is the mean over frames, not the mean over batches."""
    train = toy_splits.train.take(np.arange(5))
    fit = toy_fit(train=train, max_steps=1, batch_size=4, accumulate_grad_batches=2)
    frames = torch.from_numpy(train.amplitude)
    with torch.no_grad():
        prediction = build_model(TOY, train.probe, 0)(frames)
    losses = LOSSES["mae"](prediction.intensity, frames, LossScale.of(toy_splits.train))
    assert fit.sink.steps[0].loss == pytest.approx(float(losses.mean()), rel=1e-6)


def test_no_gradient_is_left_behind(toy_fit: ToyFit) -> None:
    fit = toy_fit(max_steps=None, epochs=1, batch_size=8, accumulate_grad_batches=3)
    assert all(p.grad is None for p in fit.module.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_validation_leaves_the_training_alone(toy_fit: ToyFit, accumulate: int) -> None:
    """9 batches an epoch, so that with two to a step the batches and the steps do not keep pace."""
    common = {"max_steps": 14, "batch_size": 8, "accumulate_grad_batches": accumulate}
    often, never = toy_fit(eval_every=3, **common), toy_fit(eval_every=1000, **common)
    assert often.sink.steps == never.sink.steps
    assert equal(weights(often.module), weights(never.module))
    assert [record.step for record in often.sink.evals] == [3, 6, 9, 12, 14]


# rates and budgets


def test_the_cosine_drives_every_step(toy_fit: ToyFit) -> None:
    fit = toy_fit(
        **{**PLAIN_SGD, "gradient_clip_val": 0.1, "max_steps": 20},
        scheduler="warmup_cosine",
        warmup_steps=5,
        scheduler_floor=0.1,
        accumulate_grad_batches=2,
    )
    expected = [0.1 * warmup_cosine(step, 5, 20, 0.1) for step in range(20)]
    assert [record.learning_rate for record in fit.sink.steps] == pytest.approx(expected)
    moved = [record.update_ratio * record.weight_norm for record in fit.sink.steps]
    assert moved == pytest.approx([0.1 * rate for rate in expected], rel=2e-3)  # every gradient is clipped to 0.1


def test_a_plateau_lowers_the_rate_after_its_patience(toy_fit: ToyFit) -> None:
    """A rate so small that no validation is better than the one before by a part in 10**4."""
    sink = toy_fit(
        max_steps=8, eval_every=1, learning_rate=1e-6, scheduler="plateau", plateau_patience=1, plateau_factor=0.5
    ).sink
    rates = [record.learning_rate for record in sink.steps]
    assert rates == pytest.approx([1e-6] * 3 + [5e-7] * 2 + [2.5e-7] * 2 + [1.25e-7], rel=1e-9, abs=0)
    assert len(sink.evals) == 8


@pytest.mark.parametrize("steps", [1, 16, 17, 18, 40])
def test_a_budget_of_steps_is_met_exactly(toy_fit: ToyFit, steps: int) -> None:
    fit = toy_fit(max_steps=steps, epochs=1, network=TINY)
    assert fit.module.steps_done == fit.trainer.global_step == len(fit.sink.steps) == steps


@pytest.mark.parametrize(("epochs", "accumulate", "steps"), [(1, 1, 17), (2, 1, 34), (2, 2, 18), (3, 4, 15)])
def test_a_budget_of_epochs_is_met_exactly(toy_fit: ToyFit, epochs: int, accumulate: int, steps: int) -> None:
    """65 frames in batches of 4: 17 batches an epoch."""
    fit = toy_fit(max_steps=None, epochs=epochs, accumulate_grad_batches=accumulate, network=TINY)
    assert fit.module.steps_done == fit.module.total_steps == len(fit.sink.steps) == steps
    assert fit.trainer.current_epoch == epochs


def test_nothing_is_logged_through_lightning(toy_fit: ToyFit) -> None:
    trainer = toy_fit(eval_every=1).trainer
    assert (trainer.loggers, trainer.logged_metrics, trainer.callback_metrics) == ([], {}, {})


# half precision, and steps that are left out


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains(toy_fit: ToyFit, name: str, loss: str, precision: str) -> None:
    fit = toy_fit(network={"architecture": name}, torch_loss_mode=loss, precision=precision)
    assert all(math.isfinite(value) for record in fit.sink.steps for value in dataclasses.asdict(record).values())
    assert all(record.update_ratio > 0 for record in fit.sink.steps)
    assert all(p.isfinite().all() for p in fit.module.parameters())


@pytest.mark.parametrize(("algorithm", "threshold"), [("norm", 0.1), ("value", 1e-3), ("agc_unit", 0.01)])
def test_bf16_trains_and_clips(toy_fit: ToyFit, algorithm: str, threshold: float) -> None:
    fit = toy_fit(
        precision="bf16-mixed",
        max_steps=25,
        learning_rate=3e-3,
        gradient_clip_algorithm=algorithm,
        gradient_clip_val=threshold,
    )
    assert {p.dtype for p in fit.module.parameters()} == {torch.float32, torch.complex64}
    assert all(math.isfinite(value) for record in fit.sink.steps for value in (record.loss, record.grad_norm_preclip))
    assert all(0 < record.grad_norm_postclip < record.grad_norm_preclip for record in fit.sink.steps)
    losses = [record.loss for record in fit.sink.steps]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


@pytest.mark.parametrize("scheduler", ["none", "warmup_cosine"])
@pytest.mark.parametrize("onset", [0, 3])
def test_a_gradient_that_is_not_finite_leaves_everything_as_it_was(
    toy_fit: ToyFit, toy_splits: ScanSplits, onset: int, scheduler: str
) -> None:
    faults = inject(toy_splits.train, [parse_fault(f"nan_frame:rate=1,onset={onset}")], seed=0)
    seen, guarded = GradientSeen(), {"gradient_clip_nonfinite": "skip", "scheduler": scheduler}
    fit = toy_fit(callbacks=[seen], faults=faults, max_steps=6, **guarded)
    assert len(seen.steps) == onset
    start = weights(build_model(TOY, toy_splits.train.probe, 0))
    assert equal(weights(fit.module), start) == (onset == 0)
    if scheduler == "none" and onset:
        assert equal(weights(fit.module), weights(toy_fit(max_steps=onset, **guarded).module))
    left_out = fit.sink.steps[onset:]
    assert len(left_out) == 6 - onset
    for record in left_out:
        assert not math.isfinite(record.grad_norm_preclip)
        assert (record.update_ratio, record.grad_norm_postclip, record.clipped_fraction) == (0, 0, 1)


def test_a_step_left_out_by_the_running_median_changes_no_weight(toy_fit: ToyFit, toy_splits: ScanSplits) -> None:
    faults = inject(toy_splits.train, [parse_fault("overload:rate=1,size=1e4,onset=18")], seed=0)
    common = {"faults": faults, "gradient_clip_algorithm": "skip", "gradient_clip_val": 10.0}
    before, after = toy_fit(max_steps=18, **common), toy_fit(max_steps=20, **common)
    assert equal(weights(before.module), weights(after.module))
    assert [record.update_ratio > 0 for record in after.sink.steps] == [True] * 18 + [False] * 2
    states = [fit.trainer.optimizers[0].state_dict()["state"] for fit in (before, after)]
    assert all(torch.equal(states[0][k]["exp_avg"], states[1][k]["exp_avg"]) for k in states[0])
    unguarded = toy_fit(max_steps=20, **{**common, "gradient_clip_algorithm": "none"})
    assert not equal(weights(unguarded.module), weights(after.module))


def test_a_gradient_that_is_not_finite_kills_an_unguarded_training(toy_fit: ToyFit, toy_splits: ScanSplits) -> None:
    faults = inject(toy_splits.train, [parse_fault("nan_frame:rate=1,onset=1")], seed=0)
    fit = toy_fit(faults=faults, max_steps=3, gradient_clip_algorithm="value", gradient_clip_val=0.01)
    assert math.isfinite(fit.sink.steps[0].update_ratio)
    assert math.isnan(fit.sink.steps[1].update_ratio)
    assert not any(p.isfinite().all() for p in fit.module.parameters())
