"""The first law: every setting is proven where it acts.

For each setting of the training and of the network there is a pair of values, and something seen
in a real module or a real training of a few steps that differs between them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch

from ptycho.config.config import ModelConfig
from ptycho.errors import InputError
from ptycho_torch.config_params import TrainingConfig
from ptycho_torch.generators import build_generator, count_parameters
from study.grid_lines_torch_runner import run_torch_training
from study.run_config import TorchRunnerConfig
from study.run_frames import cached_baselines, load_splits
from study.run_training import Trained
from study.seeds import seeds_of


def train(cfg: TorchRunnerConfig) -> Trained:
    splits = load_splits(cfg)
    return run_torch_training(cfg, splits, cached_baselines(cfg, splits), seeds_of(cfg.seed), Path(cfg.output_dir))


def weights(trained: Trained) -> list[float]:
    return torch.cat(
        [torch.view_as_real(p).flatten() if p.is_complex() else p.flatten() for p in trained.module.parameters()]
    ).tolist()


def steps(trained: Trained) -> int:
    return len(trained.recorder.steps)


def rates(trained: Trained) -> list[float]:
    return [record.learning_rate for record in trained.recorder.steps]


def first_loss(trained: Trained) -> float:
    return trained.recorder.steps[0].loss


def second_loss(trained: Trained) -> float:
    return trained.recorder.steps[1].loss


def first_update(trained: Trained) -> float:
    return trained.recorder.steps[0].update_ratio


def norm_seen_by_the_optimizer(trained: Trained) -> float:
    return trained.recorder.steps[0].grad_norm_postclip


def validations(trained: Trained) -> list[int]:
    return [record.step for record in trained.recorder.evals]


def validation_batches(trained: Trained) -> list[int]:
    return list(trained.module.trainer.num_val_batches)


def finite_weights(trained: Trained) -> bool:
    return all(torch.isfinite(torch.tensor(weights(trained))))


def layer_norm_steps(trained: Trained) -> list[int]:
    path = Path(trained.module.sink._folder) / "layer_norms.jsonl"  # type: ignore[attr-defined]
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def checkpoints(trained: Trained) -> list[str]:
    return sorted(path.name for path in Path(trained.module.sink._folder).glob("*.ckpt"))  # type: ignore[attr-defined]


def threads(trained: Trained) -> int:
    return torch.get_num_threads()


class Knob(NamedTuple):
    """Two values of a setting, what to look at, and the settings under which it acts."""

    values: tuple[Any, Any]
    look: Callable[[Trained], Any]
    under: Mapping[str, Any] = MappingProxyType({})


NAN_FRAMES = {"fault": ("nan_frame:rate=1,onset=0",), "stop_failed": False, "max_steps": 2}
AGC = {"gradient_clip_algorithm": "agc", "gradient_clip_val": 1e-3}
COSINE = {"scheduler": "warmup_cosine", "max_steps": 4, "warmup_steps": 2}
PLATEAU = {"scheduler": "plateau", "max_steps": 8, "eval_every": 1, "learning_rate": 0.3, "plateau_patience": 0}

KNOBS: dict[str, Knob] = {
    "seed": Knob((0, 1), weights),
    "epochs": Knob((1, 2), steps, {"max_steps": None}),
    "max_steps": Knob((2, 3), steps),
    "batch_size": Knob((4, 5), first_loss),
    "infer_batch_size": Knob((2, 64), validation_batches),
    "learning_rate": Knob((1e-3, 2e-3), first_update),
    "optimizer": Knob(("adam", "sgd"), weights),
    "momentum": Knob((0.9, 0.5), weights, {"optimizer": "sgd", "max_steps": 3}),
    "weight_decay": Knob((0.0, 0.1), weights),
    "scheduler": Knob(("none", "warmup_cosine"), rates, {"max_steps": 4}),
    "warmup_steps": Knob((0, 2), rates, COSINE),
    "scheduler_floor": Knob((0.0, 0.5), rates, COSINE),
    "plateau_patience": Knob((0, 5), rates, PLATEAU),
    "plateau_factor": Knob((0.5, 0.1), rates, PLATEAU),
    "gradient_clip_val": Knob((1e-3, 1e-2), norm_seen_by_the_optimizer),
    "gradient_clip_algorithm": Knob(("norm", "agc"), norm_seen_by_the_optimizer, {"gradient_clip_val": 1e-3}),
    "gradient_clip_eps": Knob((1e-3, 10.0), norm_seen_by_the_optimizer, AGC),
    "gradient_clip_skip_last": Knob((False, True), norm_seen_by_the_optimizer, AGC),
    "gradient_clip_nonfinite": Knob(("propagate", "skip"), finite_weights, NAN_FRAMES),
    "accumulate_grad_batches": Knob((1, 2), second_loss),
    "torch_loss_mode": Knob(("mae", "poisson"), first_loss),
    "eval_every": Knob((1, 2), validations),
    "precision": Knob(("32-true", "bf16-mixed"), first_loss),
    "threads": Knob((1, 2), threads),
    "log_grad_norm": Knob((False, True), layer_norm_steps),
    "checkpoint_every": Knob((None, 1), checkpoints),
    "grad_norm_log_freq": Knob((1, 2), layer_norm_steps, {"log_grad_norm": True, "max_steps": 3}),
}
PROVEN_BELOW = {"device"}


def test_every_training_setting_has_its_proof() -> None:
    assert set(KNOBS) | PROVEN_BELOW == {f.name for f in dataclasses.fields(TrainingConfig)}


@pytest.mark.parametrize("name", KNOBS)
def test_a_training_setting_acts(name: str, toy_config: Callable[..., TorchRunnerConfig], tmp_path: Path) -> None:
    knob = KNOBS[name]
    seen = []
    for k, value in enumerate(knob.values):
        cfg = toy_config(**{**knob.under, name: value, "output_dir": str(tmp_path / str(k))})
        seen.append(knob.look(train(cfg)))
    torch.set_num_threads(1)
    assert seen[0] != seen[1]


def test_the_device_acts(toy_config: Callable[..., TorchRunnerConfig]) -> None:
    assert str(train(toy_config(device="cpu")).module.model.probe.device) == "cpu"
    if torch.cuda.is_available():
        assert train(toy_config(device="cuda")).module.device.type == "cuda"
    else:
        with pytest.raises(InputError, match="device: 'cuda', but torch finds no CUDA device"):
            train(toy_config(device="cuda"))


def parameters(config: ModelConfig) -> int:
    return count_parameters(build_generator(config))


def output(config: ModelConfig) -> list[float]:
    torch.manual_seed(0)
    patches = build_generator(config)(torch.linspace(0, 4, config.N**2).reshape(1, 1, config.N, config.N))
    return patches.abs().flatten().tolist()


def channels(config: ModelConfig) -> int:
    g = config.gridsize**2
    return build_generator(config)(torch.rand(1, g, config.N, config.N)).shape[1]


MODEL_KNOBS: dict[str, tuple[tuple[Any, Any], Callable[[ModelConfig], Any], dict[str, Any]]] = {
    "architecture": (("fno", "hybrid"), parameters, {}),
    "N": ((16, 32), lambda c: len(output(c)), {}),
    "gridsize": ((1, 2), channels, {}),
    "fno_modes": ((2, 3), parameters, {}),
    "fno_width": ((4, 6), parameters, {}),
    "fno_blocks": ((2, 3), parameters, {}),
    "fno_cnn_blocks": ((1, 2), parameters, {"architecture": "fno"}),
    "fno_input_transform": (("none", "sqrt"), output, {}),
    "generator_output_mode": (("real_imag", "amp_phase"), output, {}),
    "layerscale_init": ((1e-3, 1.0), output, {"architecture": "stable_hybrid"}),
}


def test_every_network_setting_has_its_proof() -> None:
    assert set(MODEL_KNOBS) == {f.name for f in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize("name", MODEL_KNOBS)
def test_a_network_setting_acts(name: str) -> None:
    values, look, under = MODEL_KNOBS[name]
    base = {"N": 16, "fno_width": 4, "fno_modes": 3, "fno_blocks": 2, **under}
    first, second = (look(ModelConfig(**{**base, name: value})) for value in values)
    assert first != second
