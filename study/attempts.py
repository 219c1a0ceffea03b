"""What becomes of a training that was killed: its record is kept, and it begins anew or goes on."""

from __future__ import annotations

import itertools
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from study.design import RunSpec
from study.divergence import Outcome
from study.records import CHECKPOINT_FILE, RESULT_FILE, SPEC_FILE, sync_folder, write_json
from study.result import identity_row, outcome_row

ATTEMPTS = "attempts"


def run_folders(out: Path) -> list[Path]:
    """The folders of every training that a study has begun, killed attempts included."""
    return sorted(path.parent for name in ("runs", ATTEMPTS) for path in out.glob(f"{name}/*/{SPEC_FILE}"))


def record_loss(folder: Path, spec: RunSpec, outcome: Outcome, wall_s: float, message: str) -> dict[str, Any]:
    """Write the result of a run whose process could not write one; returns it."""
    if not (folder / SPEC_FILE).exists():
        begin(folder, spec)
    result = {**identity_row(spec.identity()), **outcome_row(outcome), "wall_s": wall_s, "message": message}
    write_json(folder / RESULT_FILE, result)
    return result


def begin(folder: Path, spec: RunSpec) -> None:
    """Make the run's folder ready for a training: empty, unless a checkpoint in it says where to go on."""
    if (folder / CHECKPOINT_FILE).exists() and not (folder / RESULT_FILE).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / SPEC_FILE, {**spec.identity(), "attempt": uuid.uuid4().hex})


def set_aside(out: Path, spec: RunSpec, wall_s: float, message: str) -> None:
    """Record an attempt as killed and move it out of the way of the next one.

    With a checkpoint the next one is the same training, which goes on; nothing is moved. Failures are
    never replaced without a trace: each attempt stays a run of its own, here and in MLflow.
    """
    folder = out / "runs" / spec.run_id
    if (folder / CHECKPOINT_FILE).exists():
        return
    record_loss(folder, spec, Outcome(word="killed"), wall_s, message)
    kept = out / ATTEMPTS
    kept.mkdir(exist_ok=True)
    target = next(path for k in itertools.count(1) if not (path := kept / f"{spec.run_id}-{k}").exists())
    os.replace(folder, target)
    sync_folder(kept)


def attempts_of(out: Path, spec: RunSpec) -> int:
    """How often a run was killed from outside."""
    return len(list((out / ATTEMPTS).glob(f"{spec.run_id}-*")))


def set_aside_unfinished(out: Path, spec: RunSpec) -> None:
    """Record what the study left unfinished when it was ended."""
    folder = out / "runs" / spec.run_id
    if (folder / SPEC_FILE).exists() and not (folder / RESULT_FILE).exists():
        set_aside(out, spec, wall_s=0.0, message="the study was ended before this training")
