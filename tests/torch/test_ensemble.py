"""Members of an ensemble against the same trainings alone, by the Trainer that a study uses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ptycho.arrays import ScanSplits
from ptycho.config.algorithms import ALGORITHMS
from ptycho.errors import InputError
from ptycho.faults import FaultyFrames
from ptycho_torch.config_params import ModelConfig, TrainingConfig
from ptycho_torch.dataset import evaluation_loader, training_loader
from ptycho_torch.ensemble import EnsembleTrainer, Member
from ptycho_torch.generators import NETWORKS
from ptycho_torch.losses import LossScale
from ptycho_torch.model import PtychoPINN_Lightning, build_model
from ptycho_torch.telemetry import StepRecord
from study.run_training import make_trainer, planned_steps

NETWORK = {"N": 16, "fno_width": 4, "fno_modes": 3, "fno_blocks": 2, "fno_cnn_blocks": 1}
TRAINING = {"batch_size": 4, "max_steps": 6, "eval_every": 3, "device": "cpu", "learning_rate": 3e-3}
ROUNDING = {"rtol": 3e-4, "atol": 3e-6}
Run = dict[str, Any]


@pytest.fixture
def member(toy_splits: ScanSplits, toy_sink: Any):
    """Prepare a training; called twice it gives the same one twice."""

    def make(
        seed: int, network: Run | None = None, mask: Any = None, faults: Sequence[FaultyFrames] = (), **settings: Any
    ) -> Member:
        config = TrainingConfig(**{**TRAINING, **settings})
        train, validation = (dataclasses.replace(s, mask=mask) for s in (toy_splits.train, toy_splits.validation))
        steps = training_loader(train, faults, config.batch_size, seed, config.accumulate_grad_batches)
        module = PtychoPINN_Lightning(
            build_model(ModelConfig(**{**NETWORK, **(network or {})}), train.probe * (1 + 0.1 * seed), seed),
            config,
            LossScale.of(train.take(np.arange(4 + seed))),
            planned_steps(config, len(steps)),
            EndsAtNaN(),
        )
        return Member(module, steps, evaluation_loader(validation, 6))

    class EndsAtNaN(toy_sink):
        def on_steps(self, records: Sequence[StepRecord]) -> bool:
            super().on_steps(records)
            return any(not math.isfinite(record.update_ratio) for record in records)

    return make


def alone(member: Member) -> Member:
    trainer = make_trainer(member.module.training_config)
    trainer.fit(member.module, member.steps, member.validation)
    return member


def together(*members: Member) -> Sequence[Member]:
    EnsembleTrainer(members).fit()
    return members


def numbers(member: Member) -> np.ndarray:
    """All that a training recorded, row by row."""
    sink = member.module.sink
    steps = [dataclasses.astuple(record) for record in sink.steps]
    evals = [dataclasses.astuple(record) for record in sink.evals]
    return np.array([value for row in steps + evals for value in row])


def weights(member: Member) -> np.ndarray:
    parts = [torch.view_as_real(p) if p.is_complex() else p for p in member.module.model.parameters()]
    return torch.cat([p.detach().flatten() for p in parts]).numpy()


def assert_same(one: Member, other: Member, **tolerance: float) -> None:
    assert one.module.sink.calls == other.module.sink.calls
    np.testing.assert_allclose(numbers(one), numbers(other), **(tolerance or ROUNDING))
    np.testing.assert_allclose(weights(one), weights(other), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_members_are_what_they_are_alone_under_every_algorithm(member: Any, architecture: str) -> None:
    thresholds = {"norm": 0.05, "value": 1e-3, "agc": 1e-3, "agc_unit": 1e-3, "autoclip": 30.0, "adagc": 0.9}
    runs = [
        {
            "seed": k,
            "network": {"architecture": architecture},
            "gradient_clip_algorithm": name,
            "gradient_clip_val": thresholds.get(name, info.default),
            "gradient_clip_skip_last": k % 2 == 0,
        }
        for k, (name, info) in enumerate(ALGORITHMS.items())
    ]
    members = together(*(member(**run) for run in runs))
    for run, found in zip(runs, members, strict=True):
        assert_same(found, alone(member(**run)))
    clipped = {m.module.clipper.algorithm for m in members if m.module.sink.steps[-1].clipped_fraction > 0}
    assert {"norm", "value", "agc", "agc_unit"} <= clipped


def test_members_have_their_own_optimizers_rates_schedules_and_logs(member: Any) -> None:
    runs: list[Run] = [
        {"optimizer": "adam", "learning_rate": 1e-2, "momentum": 0.8},
        {"optimizer": "adamw", "weight_decay": 0.1, "scheduler": "warmup_cosine", "warmup_steps": 2},
        {"optimizer": "sgd", "learning_rate": 0.1, "scheduler": "plateau", "plateau_patience": 0},
        {"optimizer": "sgd", "weight_decay": 0.1, "log_grad_norm": True, "grad_norm_log_freq": 2},
    ]
    found = together(*(member(seed=k, **run) for k, run in enumerate(runs)))
    expected = [alone(member(seed=k, **run)) for k, run in enumerate(runs)]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    assert len({m.module.sink.steps[-1].learning_rate for m in found}) > 2
    logged, said = (members[-1].module.sink.layer_norms for members in (found, expected))
    assert logged.keys() == said.keys() == {0, 2, 4}
    for step, norms in logged.items():
        assert norms == pytest.approx(said[step], rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("loss", ["mae", "poisson"])
def test_accumulated_uneven_batches_masks_and_neighbours_of_amplitude_and_phase(
    member: Any, toy_splits: ScanSplits, loss: str
) -> None:
    mask = np.ones((16, 16), bool)
    mask[3:5, 7] = False
    run: Run = {
        "network": {"fno_input_transform": "sqrt", "generator_output_mode": "amp_phase"},
        "mask": mask,
        "torch_loss_mode": loss,
        "batch_size": 3,
        "accumulate_grad_batches": 4,  # the last batch of a pass is smaller
        "max_steps": None,
        "epochs": 2,
    }
    assert toy_splits.train.n_frames % 12
    for k, found in enumerate(together(member(seed=0, **run), member(seed=1, **run))):
        assert_same(found, alone(member(seed=k, **run)))


def test_a_member_that_dies_is_recorded_and_left_out_and_disturbs_no_other(member: Any, toy_splits: ScanSplits) -> None:
    dead = np.full((toy_splits.train.n_frames, *toy_splits.train.amplitude.shape[1:]), np.nan, np.float32)
    where = toy_splits.train.positions_px
    fault = FaultyFrames(onset=3, index=np.arange(len(dead)), amplitude=dead, positions_px=where)
    long = {"max_steps": 24, "eval_every": 8, "gradient_clip_algorithm": "agc_unit"}
    doomed = {**long, "seed": 1, "faults": [fault]}
    first, died, last = together(member(seed=0, **long), member(**doomed), member(seed=2, **long))
    assert len(died.module.sink.steps) == 8 < len(first.module.sink.steps)
    assert_same(died, alone(member(**doomed)))
    for survivor, other in zip((first, last), together(member(seed=0, **long), member(seed=2, **long)), strict=True):
        assert_same(survivor, other, rtol=1e-3, atol=1e-5)


def test_the_same_grouping_gives_the_same_bits(member: Any) -> None:
    one, other = (together(*(member(seed=k) for k in range(3))) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert (numbers(a) == numbers(b)).all()
        assert (weights(a) == weights(b)).all()


def test_a_layer_without_a_form_for_several_members_is_refused_in_one_line(member: Any) -> None:
    odd = member(seed=0)
    odd.module.model.generator.network.lift.append(nn.BatchNorm2d(4))
    with pytest.raises(InputError, match=r"^ensemble: BatchNorm2d has no form .*allowed: .*Conv2d.*$"):
        EnsembleTrainer([odd, odd])
