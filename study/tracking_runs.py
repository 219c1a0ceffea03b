"""One training run on its way from its files into the store."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from study.run_metrics import Point, eval_points, final_metrics, first_finite, window_points, windows
from study.run_trace import read_records, write_trace
from study.tracking import Store
from study.tracking_notes import RunNote, describe_run

STATUS = {"ok": "FINISHED", "plateau": "FINISHED", "failed": "FINISHED", "killed": "KILLED"}


def status_of(outcome: str | None) -> str:
    """The state in which a run with this outcome ends: divergence is a result, so it is FINISHED."""
    return STATUS.get(outcome or "", "FAILED")


def send_trace(store: Store, folder: Path, note: RunNote, *, final: bool) -> None:
    """Send the steps and validations that the store has not got; a last, unfinished window only when ``final``."""
    steps = folder / "steps.jsonl"
    if steps.exists() and steps.stat().st_size < note.steps_offset:
        note.steps_offset = note.evals_offset = 0  # the training began anew
    while records := read_records(steps, note.steps_offset):
        note.first = first_finite(records, note.first)
        at_end = final and not read_records(steps, records[-1].end)
        groups = list(windows(records, final=at_end))
        if not groups:
            break
        store.send_points(
            note.mlflow_run, [p for group in groups for p in window_points(group, note.first)], note.started_ms
        )
        note.steps_offset = groups[-1][-1].end
    while records := read_records(folder / "evals.jsonl", note.evals_offset):
        note.first = first_finite(records, note.first)
        store.send_points(
            note.mlflow_run, [p for record in records for p in eval_points(record, note.first)], note.started_ms
        )
        note.evals_offset = records[-1].end


def finish_run(
    store: Store, folder: Path, note: RunNote, spec: Mapping[str, Any], result: Mapping[str, Any], *, traces: bool
) -> None:
    """Send what is known at the end of a run: scores, realised settings, outcome, files; and end it."""
    run_id, step = note.mlflow_run, int(result.get("steps") or 0)
    _send_inputs(store, run_id, spec, result)
    points = [Point(key=k, value=v, step=step) for k, v in final_metrics(result).items()]
    store.send_points(run_id, points, note.started_ms)
    store.send_params(run_id, result.get("realised") or {})
    outcome = {f"study.{name}": result.get(name) for name in ("outcome", "reason", "failed_at_step")}
    tags = {k: str(v) for k, v in outcome.items() if v not in (None, "")}
    store.send_tags(run_id, tags | {"mlflow.note.content": describe_run(spec, result)})
    _upload(store, folder, run_id, traces=traces)
    ended_ms = int((folder / "result.json").stat().st_mtime * 1000)
    store.end(run_id, status_of(result.get("outcome")), ended_ms)
    note.complete = True


def _send_inputs(store: Store, run_id: str, spec: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    digest = str(result.get("dataset_digest") or "")[:36]
    if digest:
        source = str((spec.get("settings") or {}).get("data") or "grid-lines simulation")
        store.send_dataset(run_id, source, digest)


def _upload(store: Store, folder: Path, run_id: str, *, traces: bool) -> None:
    for name in ("spec.json", "result.json", "evals.jsonl", "error.txt"):
        if (folder / name).is_file():
            store.upload(run_id, folder / name)
    if not traces:
        return
    if (folder / "reconstruction.npz").is_file():
        store.upload(run_id, folder / "reconstruction.npz")
    with tempfile.TemporaryDirectory() as temporary:
        trace = write_trace(folder / "steps.jsonl", Path(temporary) / "steps.parquet")
        if trace is not None:
            store.upload(run_id, trace)
