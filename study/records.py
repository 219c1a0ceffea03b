"""What one run leaves on disk while it trains and when it ends. Files are the truth; all else reads them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptycho_torch.telemetry import EvalRecord, StepRecord
from study.divergence import DivergenceRule

SPEC_FILE = "spec.json"
STEPS_FILE = "steps.jsonl"
EVALS_FILE = "evals.jsonl"
LAYER_NORMS_FILE = "layer_norms.jsonl"
RESULT_FILE = "result.json"
RECONSTRUCTION_FILE = "reconstruction.npz"
ERROR_FILE = "error.txt"
CHECKPOINT_FILE = "last.ckpt"
BEST_CHECKPOINT_FILE = "best.ckpt"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object so that a reader sees all of it or none of it, also after a power loss."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder last through a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RunRecorder:
    """Appends a training's records to its folder and feeds the divergence rule.

    Args:
        folder: the run's folder; files of an earlier, unfinished attempt are replaced.
        rule: judges the run as it goes.
        stop_failed: end the training once the rule says that nothing can save it.
    """

    def __init__(self, folder: Path, rule: DivergenceRule, *, stop_failed: bool = True) -> None:
        self.rule = rule
        self.stop_failed = stop_failed
        self.steps: list[StepRecord] = []
        self.evals: list[EvalRecord] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        for name in (STEPS_FILE, EVALS_FILE, LAYER_NORMS_FILE, RECONSTRUCTION_FILE, ERROR_FILE):
            (folder / name).unlink(missing_ok=True)

    def on_steps(self, records: Sequence[StepRecord]) -> bool:
        self.steps.extend(records)
        self._append(STEPS_FILE, [dataclasses.asdict(record) for record in records])
        for record in records:
            self.rule.step(record.step, record.update_ratio)
        return self._hopeless()

    def on_eval(self, record: EvalRecord) -> bool:
        self.evals.append(record)
        self._append(EVALS_FILE, [dataclasses.asdict(record)])
        self.rule.evaluation(record.step, record.val_loss, record.amp_spread)
        return self._hopeless()

    def on_layer_norms(self, step: int, norms: dict[str, float]) -> None:
        self._append(LAYER_NORMS_FILE, [{"step": step, "norms": norms}])

    def _hopeless(self) -> bool:
        return self.stop_failed and self.rule.beyond_recovery

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        with (self._folder / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
