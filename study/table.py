"""The tidy tables of a study, read from the files its runs left: one row per run, per step, per evaluation.

A study folder holds ``study.json`` and one folder per run under ``runs/``. Nothing is judged here: the
outcome of a run is the word its own ``result.json`` says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ptycho.errors import InputError, unknown_name
from study.records import require_object
from study.step_table import StepTable, read_evals, write_steps

OUTCOMES = ("ok", "plateau", "failed", "oom", "error", "timeout", "killed")
JUDGED = ("ok", "plateau", "failed")
TEXT_COLUMNS = (
    *("run_id", "regime", "algorithm", "architecture", "optimizer", "outcome", "reason"),
    *("dataset_digest", "git_commit", "study_version"),
)
INTEGER_COLUMNS = ("replicate", "failed_at_step", "steps", "spikes", "ensemble_size", "n_parameters")
SEED_COLUMNS = ("seed_init", "seed_order", "seed_data")
RUN_COLUMNS = (
    *("run_id", "regime", "algorithm", "threshold", "architecture", "optimizer", "learning_rate", "replicate"),
    *("seed_init", "seed_order", "seed_data", "outcome", "reason", "failed_at_step", "steps", "wall_s"),
    *("val_loss_final", "val_loss_best", "baseline_constant", "baseline_mean_patch", "baseline_oracle"),
    *("amp_ssim", "phase_ssim", "amp_mae", "phase_mae", "frc50"),
    *("grad_norm_median", "grad_norm_p99", "grad_norm_max", "clipped_fraction", "stall_ratio", "update_ratio_p99"),
    *("spikes", "ensemble_size", "n_parameters", "dataset_digest", "git_commit", "study_version"),
)
REQUIRED = ("run_id", "regime", "algorithm", "replicate", "outcome")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Everything a study recorded, as tidy tables.

    Attributes:
        out: the study folder.
        study: what ``study.json`` says: study_id, preset, regimes, algorithms, control, ...
        runs: one row per finished run, the columns of ``RUN_COLUMNS`` first, in the order of the design.
        trace: the step records, on disk.
        settings: realised settings that all runs share.
        unfinished: folders of runs that have begun and left no result.
        attempts: trainings that were killed from outside and begun anew.
    """

    out: Path
    study: Mapping[str, Any]
    runs: pd.DataFrame
    trace: StepTable
    settings: Mapping[str, Any]
    unfinished: tuple[str, ...] = ()
    attempts: int = 0

    @property
    def control(self) -> str:
        """Name of the algorithm that the others are held against."""
        return str(self.study.get("control", "none"))

    @property
    def steps(self) -> pd.DataFrame:
        """One row per run and optimizer step, ``STEP_COLUMNS``; all of it is read anew into memory."""
        return self.trace.read()

    @property
    def evals(self) -> pd.DataFrame:
        """One row per run and evaluation, ``EVAL_COLUMNS``; all of it is read anew into memory."""
        return self.evals_of(self.runs["run_id"])

    def evals_of(self, runs: Iterable[str]) -> pd.DataFrame:
        """The evaluations of some runs.

        Raises:
            InputError: a damaged file.
        """
        return read_evals(self.out / "runs" / run_id for run_id in runs)


def collect(out: Path, into: Path | None = None) -> Tables:
    """Read a study folder; write ``runs.csv`` and ``steps.parquet`` into it, or ``into`` another one.

    Step records go from file to file in parts, so that memory does not grow with them.

    Raises:
        InputError: the folder is no study, or one of its files is damaged.
    """
    study = read_study(out)
    results, unfinished = _read_results(out, study.get("runs"))
    realised = {row["run_id"]: row.pop("realised", None) or _asked(out / "runs" / row["run_id"]) for row in results}
    shared, varying = _split_settings(realised)
    runs = _runs_frame(_in_design_order(results, study, realised), varying)
    folders = [out / "runs" / str(run_id) for run_id in runs["run_id"]]
    into = out if into is None else into
    with replacing(into / "runs.csv") as temporary:
        runs.to_csv(temporary, index=False)
    with replacing(into / "steps.parquet") as temporary:
        owners = write_steps(temporary, folders)
    return Tables(
        out=out,
        study=study,
        runs=runs,
        trace=StepTable(into / "steps.parquet", owners),
        settings=shared,
        unfinished=unfinished,
        attempts=sum(1 for _ in out.glob("attempts/*/result.json")),
    )


def read_study(out: Path) -> dict[str, Any]:
    """``study.json`` of a study folder.

    Raises:
        InputError: no such folder, no ``study.json``, or not the JSON that a study writes.
    """
    path = out / "study.json"
    if not path.is_file():
        raise InputError(f"{out}: no study.json there; allowed: a folder that a study has written")
    study = require_object(path)
    for key in ("regimes", "algorithms"):
        entries = study.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(e, dict) and "name" in e for e in entries):
            raise InputError(f"{path}: {key} is {entries!r}; allowed: a list of entries that each have a name")
    wanted = study.get("runs")
    if wanted is not None and not (isinstance(wanted, list) and all(isinstance(name, str) for name in wanted)):
        raise InputError(f"{path}: runs is {wanted!r}; allowed: a list of the runs' names")
    return study


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and else is removed.

    Raises:
        InputError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); allowed: a writable folder") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _read_results(out: Path, wanted: Sequence[str] | None) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Rows of the finished runs, and the names of folders without a result.

    ``wanted`` are the runs of the study's present design; earlier designs may have left others in the folder.
    """
    runs = out / "runs"
    folders = sorted(p for p in runs.iterdir() if p.is_dir()) if runs.is_dir() else []
    if wanted is not None:
        folders = [p for p in folders if p.name in set(wanted)]
    finished = [p for p in folders if (p / "result.json").is_file()]
    unfinished = tuple(p.name for p in folders if p not in set(finished) and (p / "spec.json").is_file())
    return [_read_result(folder) for folder in finished], unfinished


def _read_result(folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    row = require_object(path)
    row |= {key: None for key in INTEGER_COLUMNS if row.get(key) != row.get(key)}
    for key in REQUIRED:
        if row.get(key) is None:
            raise InputError(f"{path}: {key} is missing; allowed: a result with {', '.join(REQUIRED)}")
    if row["run_id"] != folder.name:
        raise InputError(f"{path}: run_id is {row['run_id']!r}; allowed: the name of its folder, {folder.name!r}")
    if row["outcome"] not in OUTCOMES:
        raise InputError(f"{path}: {unknown_name('outcome', row['outcome'], OUTCOMES)}")
    if not isinstance(row.get("realised") or {}, dict):
        raise InputError(f"{path}: realised is {row['realised']!r}; allowed: settings and their values")
    for key in RUN_COLUMNS:
        if row.get(key) is not None and (allowed := _allowed(key, row[key])):
            raise InputError(f"{path}: {key} is {row[key]!r}; allowed: {allowed}")
    return row


def _allowed(key: str, value: Any) -> str:
    """What a column allows instead of this value; empty where it allows it."""
    if key in TEXT_COLUMNS:
        return "" if isinstance(value, str) else "a text"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "a number"
    if key in INTEGER_COLUMNS and not (0 <= value < 2**63 and value == int(value)):
        return "a whole number from 0 on"
    return "a number above 0" if key == "learning_rate" and not value > 0 else ""


def _asked(folder: Path) -> dict[str, Any]:
    """The settings asked for, which stand in for the realised ones of a run that died before it had any."""
    path = folder / "spec.json"
    settings = require_object(path).get("settings") if path.is_file() else None
    return settings if isinstance(settings, dict) else {}


def _in_design_order(
    rows: Sequence[dict[str, Any]], study: Mapping[str, Any], realised: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Regime, what else makes a condition, arm, replicate: names as ``study.json`` lists them, numbers rising."""
    regimes = {r["name"]: i for i, r in reversed(list(enumerate(study.get("regimes", []))))}
    algorithms = {a["name"]: i for i, a in reversed(list(enumerate(study.get("algorithms", []))))}

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        regime, algorithm = row["regime"], row["algorithm"]
        place = (regimes.get(regime, len(regimes)), str(regime))
        settings = {**realised[row["run_id"]], **row}
        size, depth = (v if isinstance(v := settings.get(name), int | float) else 0.0 for name in ("N", "fno_blocks"))
        network = (
            size,
            str(row.get("architecture")),
            depth,
            str(row.get("optimizer")),
            row.get("learning_rate") or 0.0,
        )
        arm = (algorithms.get(algorithm, len(algorithms)), str(algorithm), row.get("threshold") or 0.0)
        return (*place, *network, *arm, row["replicate"], str(row["run_id"]))

    return sorted(rows, key=key)


def _split_settings(realised: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Settings with one value in all runs that know them, and per run those that differ between runs."""
    names = sorted({name for settings in realised.values() for name in settings})
    shared: dict[str, Any] = {}
    varying: dict[str, dict[str, Any]] = {run_id: {} for run_id in realised}
    for name in names:
        values = {run_id: settings[name] for run_id, settings in realised.items() if name in settings}
        if len({json.dumps(v, sort_keys=True) for v in values.values()}) == 1:
            shared[name] = next(iter(values.values()))
        else:
            for run_id, value in values.items():
                varying[run_id][name] = value
    return shared, varying


def _runs_frame(rows: Sequence[dict[str, Any]], varying: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row per run; what a result says beyond the fixed columns, and settings that vary, come after them."""
    complete = [{**varying[row["run_id"]], **row} for row in rows]
    extra = sorted({key for row in complete for key, value in row.items() if not isinstance(value, (dict, list))})
    columns = [*RUN_COLUMNS, *(key for key in extra if key not in RUN_COLUMNS)]
    frame = pd.DataFrame({key: [row.get(key) for row in complete] for key in columns}, dtype=object)
    for key in columns:
        if key in INTEGER_COLUMNS:
            frame[key] = pd.array(frame[key].tolist(), dtype="Int64")
        elif key in RUN_COLUMNS and key not in TEXT_COLUMNS and key not in SEED_COLUMNS:
            frame[key] = pd.to_numeric(frame[key]).astype(float)
        elif key not in RUN_COLUMNS:
            frame[key] = frame[key].infer_objects()
    return frame
