"""What one run leaves on disk while it trains and when it ends. Files are the truth; all else reads them."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho.errors import InputError
from study.divergence import DivergenceRule

if TYPE_CHECKING:  # the driver writes records too, and needs no torch
    from ptycho_torch.telemetry import EvalRecord, StepRecord

SPEC_FILE = "spec.json"
STEPS_FILE = "steps.jsonl"
EVALS_FILE = "evals.jsonl"
LAYER_NORMS_FILE = "layer_norms.jsonl"
RESULT_FILE = "result.json"
PENDING_FILE = "result.pending.json"  # a result that counts as soon as those of its group are there
RECONSTRUCTION_FILE = "reconstruction.npz"
ERROR_FILE = "error.txt"
CHECKPOINT_FILE = "last.ckpt"
BEST_CHECKPOINT_FILE = "best.ckpt"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object as :func:`write_bytes` does."""
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or none of it, also after a power loss."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_results(folders: Sequence[Path], results: Sequence[Mapping[str, Any]]) -> None:
    """Write the results of runs that were trained together: all of them count or none, whatever happens meanwhile.

    Args:
        folders: the runs' folders, side by side.
        results: theirs.
    """
    for folder, result in zip(folders, results, strict=True):
        write_json(folder / PENDING_FILE, {"group": [other.name for other in folders], "result": result})
    for folder in folders:
        complete_result(folder)


def complete_result(folder: Path) -> None:
    """Let a run's result count if it was about to when its process died; a damaged file is as none."""
    match read_object(folder / PENDING_FILE):
        case {"group": [*names], "result": dict(result)}:
            group = [folder.parent / str(name) for name in names]
        case _:
            return
    if all((other / RESULT_FILE).exists() or (other / PENDING_FILE).exists() for other in group):
        write_json(folder / RESULT_FILE, result)
        (folder / PENDING_FILE).unlink()


def require_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: the file is missing, cannot be read, or holds anything else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_shared)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({error}); allowed: the file as the study wrote it"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds {type(value).__name__}; allowed: a JSON object")
    return value


def _shared(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names and texts are those of every other one that has them: a study has thousands."""
    return {sys.intern(name): sys.intern(value) if isinstance(value, str) else value for name, value in pairs}


def read_object(path: Path) -> dict[str, Any] | None:
    """As :func:`require_object`; None where that raises."""
    try:
        return require_object(path)
    except InputError:
        return None


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder last through a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keep_rows(path: Path, before: int) -> list[dict[str, Any]]:
    """Cut a file of records down to the steps before ``before``; the rows that are left."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if before > 0 and path.exists() else []
    whole = [(line, json.loads(line)) for line in lines if line.endswith("}\n")]
    kept = [(line, row) for line, row in whole if row["step"] < before]
    if kept:
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text("".join(line for line, _ in kept), encoding="utf-8")
        os.replace(temporary, path)
    else:
        path.unlink(missing_ok=True)
    return [row for _, row in kept]


def has_steps(folder: Path, steps: int) -> bool:
    """Whether a folder holds the records of that many steps at least."""
    path = folder / STEPS_FILE
    return path.exists() and path.read_bytes().count(b"}\n") >= steps


class RunRecorder:
    """Appends a training's records to its folder and feeds the divergence rule.

    Args:
        folder: the run's folder; files of an earlier, unfinished attempt are replaced.
        steps_done: where a checkpoint lets the training go on; what was recorded up to there is kept.
        rule: judges the run as it goes.
        stop_failed: end the training once the rule says that nothing can save it.
    """

    def __init__(self, folder: Path, rule: DivergenceRule, *, stop_failed: bool = True, steps_done: int = 0) -> None:
        self.rule = rule
        self.stop_failed = stop_failed
        self.steps: list[StepRecord] = []
        self.evals: list[EvalRecord] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        for name in (RECONSTRUCTION_FILE, ERROR_FILE):
            (folder / name).unlink(missing_ok=True)
        self._go_on(steps_done)

    def _go_on(self, steps_done: int) -> None:
        """Bring list, rule and files to where the training was after so many steps."""
        from ptycho_torch.telemetry import EvalRecord, StepRecord

        self.steps = [StepRecord(**row) for row in keep_rows(self._folder / STEPS_FILE, steps_done)]
        self.evals = [EvalRecord(**row) for row in keep_rows(self._folder / EVALS_FILE, steps_done and steps_done + 1)]
        keep_rows(self._folder / LAYER_NORMS_FILE, steps_done)
        told = 0
        for evaluation in self.evals:  # in the order in which the rule heard of them
            self._judge(self.steps[told : evaluation.step])
            told = evaluation.step
            self.rule.evaluation(evaluation.step, evaluation.val_loss, evaluation.amp_spread)
        self._judge(self.steps[told:])

    def _judge(self, records: Sequence[StepRecord]) -> None:
        for record in records:
            self.rule.step(record.step, record.update_ratio)

    def on_steps(self, records: Sequence[StepRecord]) -> bool:
        self.steps.extend(records)
        self._append(STEPS_FILE, [dataclasses.asdict(record) for record in records])
        self._judge(records)
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
