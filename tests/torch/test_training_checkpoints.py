"""A run that is killed in the middle goes on from its checkpoint, and nobody can tell from its numbers."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ptycho.errors import InputError
from study.grid_lines_torch_runner import run_grid_lines_torch
from study.records import RunRecorder
from study.run_config import TorchRunnerConfig

ROOT = Path(__file__).resolve().parents[2]
RUN = {"max_steps": 205, "eval_every": 5, "gradient_clip_algorithm": "zclip", "gradient_clip_val": 2.5}
RECORDS = ("steps.jsonl", "evals.jsonl", "layer_norms.jsonl")
TRAIN = """
import json, sys
from study.grid_lines_torch_runner import run_grid_lines_torch
from study.run_config import TorchRunnerConfig
run_grid_lines_torch(TorchRunnerConfig(**json.loads(sys.argv[1]) | {"fault": (), "plugin": ()}))
"""
RunConfig = Callable[..., TorchRunnerConfig]


def train_and_kill(cfg: TorchRunnerConfig, steps: int) -> None:
    """Train in a process of its own, and end it without a word once it has recorded so many steps."""
    records, settings = Path(cfg.output_dir) / "steps.jsonl", json.dumps(dataclasses.asdict(cfg))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", TRAIN, settings], cwd=ROOT, env=environment) as process:
        while not records.exists() or records.read_text().count("\n") < steps:
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()


def numbers(result: dict[str, Any]) -> str:
    own = ("wall_s", "run_id", "git_commit")
    kept = {k: v for k, v in result.items() if k not in own}
    kept["realised"] = {k: v for k, v in result["realised"].items() if k != "checkpoint_every"}
    return json.dumps(kept)  # NaN equals NaN in it


def test_a_killed_run_goes_on_bit_for_bit(toy_config: RunConfig, tmp_path: Path) -> None:
    changes = {**RUN, "log_grad_norm": True, "grad_norm_log_freq": 3}
    whole = run_grid_lines_torch(toy_config(**changes, output_dir=str(tmp_path / "whole")))
    cfg = toy_config(**changes, checkpoint_every=4, output_dir=str(tmp_path / "killed"))
    train_and_kill(cfg, 30)
    held = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["training"]
    assert held["steps_done"] >= 28
    assert not (tmp_path / "killed" / "result.json").exists()
    resumed = run_grid_lines_torch(cfg)
    assert numbers(resumed) == numbers(whole)
    for name in RECORDS:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert resumed["wall_s"] > held["wall_s"]
    assert sorted(path.name for path in (tmp_path / "killed").glob("*.ckpt*")) == ["best.ckpt", "last.ckpt"]


def test_a_checkpoint_of_another_training_is_left_alone(toy_config: RunConfig) -> None:
    cfg = toy_config(max_steps=4, checkpoint_every=2)
    first = run_grid_lines_torch(cfg)
    folder = Path(cfg.output_dir)
    (folder / "result.json").unlink()
    other = run_grid_lines_torch(toy_config(max_steps=4, checkpoint_every=2, learning_rate=2e-3))
    assert other["steps"] == 4
    assert other["val_loss_final"] != first["val_loss_final"]
    assert len((folder / "steps.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("damage", ["a step is missing", "the run had ended"])
def test_what_is_not_whole_begins_anew(toy_config: RunConfig, damage: str) -> None:
    cfg = toy_config(max_steps=7, checkpoint_every=3)
    first, folder = run_grid_lines_torch(cfg), Path(cfg.output_dir)
    if damage == "a step is missing":
        (folder / "result.json").unlink()
        (folder / "steps.jsonl").write_text("".join((folder / "steps.jsonl").read_text().splitlines(keepends=True)[:2]))
    assert numbers(run_grid_lines_torch(cfg)) == numbers(first)
    assert len((folder / "steps.jsonl").read_text().splitlines()) == 7


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_malicious_checkpoint_is_refused_and_does_nothing(toy_config: RunConfig, tmp_path: Path) -> None:
    cfg = toy_config(max_steps=3, checkpoint_every=1)
    Path(cfg.output_dir).mkdir(parents=True)
    path = Path(cfg.output_dir) / "last.ckpt"
    for write in (lambda bad: path.write_bytes(pickle.dumps(bad)), lambda bad: torch.save({"training": bad}, path)):
        write(Malicious(tmp_path / "pwned"))
        with pytest.raises(InputError, match=r"last.ckpt: no checkpoint of a training .*allowed: remove it"):
            run_grid_lines_torch(cfg)
    assert not (tmp_path / "pwned").exists()


def test_the_rule_hears_again_what_it_had_heard(toy_config: RunConfig, tmp_path: Path) -> None:
    cfg = toy_config(max_steps=15, eval_every=5)
    run_grid_lines_torch(cfg)
    heard: list[tuple[str, int]] = []

    class Listening:
        beyond_recovery = False

        def step(self, step: int, _: float) -> None:
            heard.append(("step", step))

        def evaluation(self, step: int, *_: float) -> None:
            heard.append(("evaluation", step))

    RunRecorder(Path(cfg.output_dir), Listening(), steps_done=12)  # type: ignore[arg-type]
    steps = [("step", k) for k in range(12)]
    assert heard == [*steps[:5], ("evaluation", 5), *steps[5:10], ("evaluation", 10), *steps[10:]]
