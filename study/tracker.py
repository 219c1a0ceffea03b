"""The study in MLflow: one parent run, one child per training run, sent by the driver alone.

Trainings write files and know nothing of MLflow. The driver reads those files and sends what is
new; :meth:`Tracker.ship` may be called as often as one likes, and after any crash: what was sent is
noted beside the run, and what is sent twice is the same points, which the store keeps once.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from study.records import read_object
from study.run_metrics import Point, arm_metrics, arm_name
from study.tracking import StoredRun, deferring, git_commit, open_store, refusing
from study.tracking_notes import (
    RunNote,
    TrackingError,
    describe_run,
    describe_study,
    load_note,
    write_note,
)
from study.tracking_processes import kill, lock_folder, process_stamp, reap
from study.tracking_runs import finish_run, send_trace, status_of
from study.tracking_uri import check_store, is_server, redact
from study.tracking_view import ARM_TAG, VIEW_QUERY, VIEW_TAG, arms_of, view_state

logger = logging.getLogger(__name__)
ENDED = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
SPEC_KEYS = {"run_id", "name", "regime", "algorithm", "replicate"}
Ending = Literal["finished", "failed", "interrupted"]


class StudyRun(NamedTuple):
    """Where a study stands in the store: its experiment, its parent run, and one line that says how to look at it."""

    experiment_id: str
    run_id: str
    where: str


class Child(NamedTuple):
    """What the store says about a training run's own run."""

    run_id: str
    key: str
    attempt: str
    status: str
    outcome: str
    started_ms: int


class Tracker:
    """One study's way into the store. Not for use from two threads at once.

    Args:
        uri: the store's address, from :func:`resolve_tracking_uri`.
        experiment: name of the experiment.
        out: the study folder.
        traces: send every step as a parquet file, and the reconstruction, when a run ends.

    Raises:
        InputError: the store cannot be reached or used, or another process sends from this study folder.
    """

    def __init__(self, uri: str, experiment: str, out: Path, *, traces: bool = True) -> None:
        self.uri, self.experiment, self.out, self.traces = uri, experiment, out, traces
        self._adopted = os.environ.pop("MLFLOW_RUN_ID", None)
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
        check_store(uri)
        self._lock = lock_folder(out)
        with refusing(uri):
            self._store, self._experiment_id = open_store(uri, experiment)
        self._parent = ""
        self._study: Mapping[str, Any] = {}
        self._commit = ""
        self._children: dict[tuple[str, str], Child] | None = None

    def close(self) -> None:
        """Let another process send from this study folder."""
        self._lock.close()

    def open_study(self, study: Mapping[str, Any]) -> StudyRun:
        """Find or make the study's parent run, and end runs that a process left behind when it died.

        Under ``mlflow run`` the run that it made becomes the parent; a resumed study's children move there.

        Raises:
            InputError: the store refuses.
        """
        self._study = study
        self._commit = str(study.get("git_commit") or git_commit())
        with refusing(self.uri):
            if self._adopted:
                self._adopt(self._adopted)
            earlier = self._find_parents(study["study_id"])
            if not self._parent and earlier:
                self._parent = earlier[0].run_id
            if not self._parent:
                self._parent = self._create(str(study.get("title") or study["study_id"]), {}, now_ms()).run_id
            reap(self._store, self._experiment_id, ours=self._parent)
            self._take_over([run.run_id for run in earlier if run.run_id != self._parent])
            self._store.resume(self._parent)
            self._store.send_tags(self._parent, self._parent_tags())
            self._children = self._load_children()
            self._store.tag_experiment(self._experiment_id, VIEW_TAG, view_state(self._parent, arms_of(study)))
        write_note(self.out, self._study_note(finished=None))
        return StudyRun(self._experiment_id, self._parent, self._where())

    def beat(self) -> None:
        """Say that this process is alive.

        Raises:
            TrackingError: the store did not take it.
        """
        with deferring():
            self._store.send_tags(self._parent, {"study.heartbeat": f"{time.time():.0f}"})

    def ship(self, folder: Path) -> bool:
        """Send what is new in one run folder; True once the run has ended and everything is there.

        Raises:
            TrackingError: the store did not take it; call again later.
        """
        spec, result = read_object(folder / "spec.json"), read_object(folder / "result.json")
        if spec is None or not spec.keys() >= SPEC_KEYS:
            return False
        try:
            with deferring():
                note = self._note_of(folder, spec, result)
                if not note.complete:
                    send_trace(self._store, folder, note, final=result is not None)
                    if result is not None:
                        finish_run(self._store, folder, note, spec, result, traces=self.traces)
                    note.save(folder)
        except TrackingError:
            self._children = None  # a request may have been carried out although its answer was lost
            raise
        return note.complete

    def finish_study(self, ending: Ending, arms: Sequence[Mapping[str, Any]], artifacts: Sequence[Path]) -> bool:
        """Put the arms' numbers, the report, its figures and tables on the parent, and end it.

        Returns:
            Whether the store took it all; if not, ``python -m study.sync`` sends it later.
        """
        with contextlib.suppress(OSError):  # of a full disk, the store shall hear all the same
            write_note(self.out, self._study_note(finished=ending))
        try:
            with deferring():
                points = [Point(key=k, value=v, step=0) for k, v in arm_metrics(arms).items()]
                self._store.send_points(self._parent, points, now_ms())
                self._store.send_tags(self._parent, {"mlflow.note.content": describe_study(self._study, arms)})
                self._group_children(arms)
                for path in artifacts:
                    inside = path.resolve().relative_to(self.out.resolve()).parent.as_posix()
                    self._store.upload(self._parent, path, None if inside == "." else inside)
                self._end_children()
                self._store.end(self._parent, ENDED[ending])
        except TrackingError as error:
            logger.warning("%s; later: python -m study.sync %s", error, self.out)
            return False
        write_note(self.out, self._study_note(finished=ending) | {"complete": True})
        return True

    # parent

    def _group_children(self, arms: Sequence[Mapping[str, Any]]) -> None:
        """Tell arms of one regime and algorithm apart, now that it is known in what they differ."""
        named = {run_id: arm_name(arm) for arm in arms for run_id in arm.get("run_ids", ())}
        for run in self._store.children(self._experiment_id, self._parent):
            name = named.get(run.tags.get("study.run_id", ""))
            if name and name != run.tags.get(ARM_TAG):
                self._store.send_tags(run.run_id, {ARM_TAG: name})
        state = view_state(self._parent, list(dict.fromkeys(named.values())) or arms_of(self._study))
        self._store.tag_experiment(self._experiment_id, VIEW_TAG, state)

    def _end_children(self) -> None:
        """End what no training will end any more: the children of attempts that were given up."""
        for run in list(self._store.children(self._experiment_id, self._parent)):
            if run.status == "RUNNING":
                kill(self._store, run, "given up")

    def _find_parents(self, study_id: str) -> list[StoredRun]:
        query = "tags.`study.id` = '{}'".format(study_id.replace("'", ""))
        return list(self._store.search(self._experiment_id, query))

    def _adopt(self, run_id: str) -> None:
        self._experiment_id = self._store.run(run_id).experiment_id
        self.experiment = self._store.experiment_name(self._experiment_id)
        self._parent = run_id

    def _parent_tags(self) -> dict[str, str]:
        study = self._study
        return {
            "study.id": str(study["study_id"]),
            "study.version": str(study.get("study_version", "")),
            "study.preset": str(study.get("preset", "")),
            "study.process": process_stamp(),
            "study.heartbeat": f"{time.time():.0f}",
            "mlflow.note.content": describe_study(study),
        }

    def _take_over(self, parents: list[str]) -> None:
        for old in parents:
            for child in list(self._store.children(self._experiment_id, old)):
                self._store.send_tags(child.run_id, {"mlflow.parentRunId": self._parent})
            self._store.delete_tag(old, "study.id")
            note = f"Continued in run {self._parent}, to which its training runs have moved."
            self._store.send_tags(old, {"study.continued_in": self._parent, "mlflow.note.content": note})

    def _study_note(self, finished: Ending | None) -> dict[str, Any]:
        return {
            "store": redact(self.uri),
            "experiment": self.experiment,
            "experiment_id": self._experiment_id,
            "mlflow_run": self._parent,
            "finished": finished,
            "complete": False,
        }

    def _where(self) -> str:
        page = f"#/experiments/{self._experiment_id}/runs?{VIEW_QUERY}"
        if is_server(self.uri):
            return f"{redact(self.uri).rstrip('/')}/{page}"
        return f"mlflow server --backend-store-uri {redact(self.uri)}, then http://127.0.0.1:5000/{page}"

    # children

    def _load_children(self) -> dict[tuple[str, str], Child]:
        found = map(_child, self._store.children(self._experiment_id, self._parent))
        return {(child.key, child.attempt): child for child in found}

    def _note_of(self, folder: Path, spec: Mapping[str, Any], result: Mapping[str, Any] | None) -> RunNote:
        if self._children is None:
            self._children = self._load_children()
        attempt, store, note = str(spec.get("attempt", "")), redact(self.uri), load_note(folder)
        child = self._children.get((spec["run_id"], attempt))
        if child is None:
            child = self._create_child(folder, spec, attempt)
            self._children[child.key, attempt] = child
        if note is None or (note.store, note.mlflow_run) != (store, child.run_id):
            note = RunNote(store=store, mlflow_run=child.run_id, attempt=attempt, started_ms=child.started_ms)
            ended = result is not None and child.outcome == result.get("outcome")  # not one that was only given up
            note.complete = ended and child.status == status_of(child.outcome)
            note.save(folder)
        if not note.complete and child.status != "RUNNING":
            self._store.resume(child.run_id)
            self._children[child.key, attempt] = child._replace(status="RUNNING")
        return note

    def _create_child(self, folder: Path, spec: Mapping[str, Any], attempt: str) -> Child:
        tags = {
            "mlflow.parentRunId": self._parent,
            "mlflow.note.content": describe_run(spec, None),
            "study.run_id": spec["run_id"],
            "study.attempt": attempt,
            ARM_TAG: f"{spec['regime']}/{spec['algorithm']}",
            **{f"study.{name}": str(spec[name]) for name in ("regime", "algorithm", "replicate")},
            "study.threshold": "off" if spec.get("threshold") is None else f"{spec['threshold']:g}",
            "study.version": str(spec.get("study_version") or self._study.get("study_version", "")),
        }
        started_ms = int((folder / "spec.json").stat().st_mtime * 1000)
        return _child(self._create(spec["name"], tags, started_ms))

    def _create(self, name: str, tags: Mapping[str, str], started_ms: int) -> StoredRun:
        source = {
            "mlflow.source.name": "study.shootout",
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": self._commit,
            "mlflow.user": _user(),
        }
        return self._store.create(self._experiment_id, name, {**source, **tags}, started_ms)


def now_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def _child(run: StoredRun) -> Child:
    key, attempt, outcome = (run.tags.get(f"study.{name}", "") for name in ("run_id", "attempt", "outcome"))
    return Child(run.run_id, key, attempt, run.status, outcome, run.started_ms)


def _user() -> str:
    with contextlib.suppress(OSError, KeyError):
        return getpass.getuser()
    return ""
