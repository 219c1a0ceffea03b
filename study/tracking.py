"""The study in MLflow: one parent run, one child per training run, sent by the driver alone.

Trainings write files and know nothing of MLflow. The driver reads those files and sends what is
new; :meth:`Tracker.ship` may be called as often as one likes, and after any crash: what was sent is
noted beside the run, and what is sent twice is the same points, which the store keeps once.

This is the only module that imports MLflow.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import psutil

from ptycho.errors import InputError
from study.run_metrics import (
    arm_metrics,
    arm_name,
    eval_points,
    final_metrics,
    first_finite,
    window_points,
    windows,
)
from study.run_trace import read_records, restore_trace, write_trace
from study.tracking_notes import (
    RunNote,
    TrackingError,
    describe_run,
    describe_study,
    load_note,
    read_object,
    write_note,
)
from study.tracking_uri import EXPERIMENT, check_store, is_server, redact, resolve_tracking_uri, sqlite_file
from study.tracking_view import ARM_TAG, VIEW_QUERY, VIEW_TAG, view_state

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.git_utils import get_git_commit
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

__all__ = ["EXPERIMENT", "StudyRun", "Tracker", "TrackingError", "fetch_study", "resolve_tracking_uri"]

logger = logging.getLogger(__name__)
logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)  # a traceback of every failed attempt
STORE_ERRORS = (MlflowException, SQLAlchemyError, OSError)
BATCH = 1000
STALE_S = 900.0
LAUNCHED_BY = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
STATUS = {"ok": "FINISHED", "plateau": "FINISHED", "failed": "FINISHED", "killed": "KILLED"}
ENDED = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
# Retries are ours: MLflow's own would repeat a request that the server may have carried out, and hold up
# the study's end for minutes.
REQUESTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
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


def arms_of(study: Mapping[str, Any]) -> list[str]:
    """``<regime>/<algorithm>`` of every arm that a study's description names."""
    return [f"{r['name']}/{a['name']}" for r in study.get("regimes", ()) for a in study.get("algorithms", ())]


def worker_environment() -> dict[str, str]:
    """The environment for a training process: nothing in it makes MLflow write into the study's parent run."""
    return {name: value for name, value in os.environ.items() if name not in LAUNCHED_BY}


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
        for name, value in REQUESTS.items():
            os.environ.setdefault(name, value)
        check_store(uri)
        self._lock = _lock_folder(out)
        with _refusing(uri):
            self._client, self._experiment_id = open_store(uri, experiment)
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
        self._commit = str(study.get("git_commit") or get_git_commit(__file__) or "")
        with _refusing(self.uri):
            if self._adopted:
                self._adopt(self._adopted)
            earlier = self._find_parents(study["study_id"])
            if not self._parent and earlier:
                self._parent = earlier[0].info.run_id
            if not self._parent:
                self._parent = self._create(str(study.get("title") or study["study_id"]), {}, now_ms()).info.run_id
            reap(self._client, self._experiment_id, ours=self._parent)
            self._take_over([run.info.run_id for run in earlier if run.info.run_id != self._parent])
            self._client.update_run(self._parent, status="RUNNING")
            self._send_tags(self._parent, self._parent_tags())
            self._children = self._load_children()
            self._client.set_experiment_tag(self._experiment_id, VIEW_TAG, view_state(self._parent, arms_of(study)))
        write_note(self.out, self._study_note(finished=None))
        return StudyRun(self._experiment_id, self._parent, self._where())

    def beat(self) -> None:
        """Say that this process is alive.

        Raises:
            TrackingError: the store did not take it.
        """
        with _deferring():
            self._client.set_tag(self._parent, "study.heartbeat", f"{time.time():.0f}")

    def ship(self, folder: Path) -> bool:
        """Send what is new in one run folder; True once the run has ended and everything is there.

        Raises:
            TrackingError: the store did not take it; call again later.
        """
        spec, result = read_object(folder / "spec.json"), read_object(folder / "result.json")
        if spec is None or not spec.keys() >= SPEC_KEYS:
            return False
        try:
            with _deferring():
                note = self._note_of(folder, spec, result)
                if not note.complete:
                    self._send_trace(folder, note, final=result is not None)
                    if result is not None:
                        self._finish_child(folder, note, spec, result)
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
            with _deferring():
                at = now_ms()
                metrics = [Metric(k, v, at, 0) for k, v in arm_metrics(arms).items()]
                self._send_metrics(self._parent, metrics)
                self._send_tags(self._parent, {"mlflow.note.content": describe_study(self._study, arms)})
                self._group_children(arms)
                for path in artifacts:
                    inside = path.resolve().relative_to(self.out.resolve()).parent.as_posix()
                    self._client.log_artifact(self._parent, str(path), None if inside == "." else inside)
                self._end_children()
                self._client.set_terminated(self._parent, status=ENDED[ending])
        except TrackingError as error:
            logger.warning("%s; later: python -m study.sync %s", error, self.out)
            return False
        write_note(self.out, self._study_note(finished=ending) | {"complete": True})
        return True

    # parent

    def _group_children(self, arms: Sequence[Mapping[str, Any]]) -> None:
        """Tell arms of one regime and algorithm apart, now that it is known in what they differ."""
        named = {run_id: arm_name(arm) for arm in arms for run_id in arm.get("run_ids", ())}
        for run in _search(self._client, self._experiment_id, _children_of(self._parent)):
            name = named.get(run.data.tags.get("study.run_id", ""))
            if name and name != run.data.tags.get(ARM_TAG):
                self._client.set_tag(run.info.run_id, ARM_TAG, name)
        state = view_state(self._parent, list(dict.fromkeys(named.values())) or arms_of(self._study))
        self._client.set_experiment_tag(self._experiment_id, VIEW_TAG, state)

    def _end_children(self) -> None:
        """End what no training will end any more: the children of attempts that were given up."""
        query = f"{_children_of(self._parent)} and attributes.status = 'RUNNING'"
        for run in list(_search(self._client, self._experiment_id, query)):
            _kill(self._client, run, "given up")

    def _find_parents(self, study_id: str) -> list[Run]:
        query = f"tags.`study.id` = '{_quoted(study_id)}'"
        return list(_search(self._client, self._experiment_id, query))

    def _adopt(self, run_id: str) -> None:
        self._experiment_id = self._client.get_run(run_id).info.experiment_id
        self.experiment = self._client.get_experiment(self._experiment_id).name
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
            for child in _search(self._client, self._experiment_id, _children_of(old)):
                self._client.set_tag(child.info.run_id, "mlflow.parentRunId", self._parent)
            self._client.delete_tag(old, "study.id")
            note = f"Continued in run {self._parent}, to which its training runs have moved."
            self._send_tags(old, {"study.continued_in": self._parent, "mlflow.note.content": note})

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
        found = map(_child, _search(self._client, self._experiment_id, _children_of(self._parent)))
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
            note.complete = result is not None and child.status == status_of(child.outcome)
            note.save(folder)
        if not note.complete and child.status != "RUNNING":
            self._client.update_run(child.run_id, status="RUNNING")
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

    def _create(self, name: str, tags: Mapping[str, str], started_ms: int) -> Run:
        source = {
            "mlflow.source.name": "study.shootout",
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": self._commit,
            "mlflow.user": _user(),
        }
        every = {k: v for k, v in {**source, **tags}.items() if v}
        return self._client.create_run(self._experiment_id, run_name=name, tags=every, start_time=started_ms)

    def _send_trace(self, folder: Path, note: RunNote, *, final: bool) -> None:
        steps = folder / "steps.jsonl"
        if steps.exists() and steps.stat().st_size < note.steps_offset:
            note.steps_offset = note.evals_offset = 0  # the training began anew
        while records := read_records(steps, note.steps_offset):
            note.first = first_finite(records, note.first)
            at_end = final and not read_records(steps, records[-1].end)
            groups = list(windows(records, final=at_end))
            if not groups:
                break
            self._send_points(note, [p for group in groups for p in window_points(group, note.first)])
            note.steps_offset = groups[-1][-1].end
        while records := read_records(folder / "evals.jsonl", note.evals_offset):
            note.first = first_finite(records, note.first)
            self._send_points(note, [p for record in records for p in eval_points(record, note.first)])
            note.evals_offset = records[-1].end

    def _send_points(self, note: RunNote, points: Sequence[Any]) -> None:
        metrics = [Metric(p.key, p.value, note.started_ms + p.step, p.step) for p in points]
        self._send_metrics(note.mlflow_run, metrics)

    def _finish_child(self, folder: Path, note: RunNote, spec: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        run_id, step = note.mlflow_run, int(result.get("steps") or 0)
        self._send_inputs(run_id, spec, result)
        metrics = [Metric(k, v, note.started_ms + step, step) for k, v in final_metrics(result).items()]
        self._send_metrics(run_id, metrics)
        self._client.log_batch(run_id, params=[Param(k, _text(v)) for k, v in (result.get("realised") or {}).items()])
        outcome = {f"study.{name}": result.get(name) for name in ("outcome", "reason", "failed_at_step")}
        tags = {k: str(v) for k, v in outcome.items() if v not in (None, "")}
        self._send_tags(run_id, tags | {"mlflow.note.content": describe_run(spec, result)})
        self._upload_run(folder, run_id)
        ended_ms = int((folder / "result.json").stat().st_mtime * 1000)
        self._client.set_terminated(run_id, status=status_of(result.get("outcome")), end_time=ended_ms)
        note.complete = True

    def _send_inputs(self, run_id: str, spec: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        digest = str(result.get("dataset_digest") or "")[:36]
        if not digest:
            return
        source = str((spec.get("settings") or {}).get("data") or "grid-lines simulation")
        dataset = Dataset(name=Path(source).name, digest=digest, source_type="local", source=_text({"uri": source}))
        context = InputTag("mlflow.data.context", "training")
        self._client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags=[context])])

    def _upload_run(self, folder: Path, run_id: str) -> None:
        for name in ("spec.json", "result.json", "evals.jsonl", "error.txt"):
            if (folder / name).is_file():
                self._client.log_artifact(run_id, str(folder / name))
        if not self.traces:
            return
        if (folder / "reconstruction.npz").is_file():
            self._client.log_artifact(run_id, str(folder / "reconstruction.npz"))
        with tempfile.TemporaryDirectory() as temporary:
            trace = write_trace(folder / "steps.jsonl", Path(temporary) / "steps.parquet")
            if trace is not None:
                self._client.log_artifact(run_id, str(trace))

    # sending

    def _send_metrics(self, run_id: str, metrics: Sequence[Metric]) -> None:
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + BATCH])

    def _send_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self._client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])


def open_store(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """A client of the store, and the experiment's identity; store and experiment are made where they are not there.

    Several processes that open a new SQLite store at once break it, hence a lock around this.

    Raises:
        InputError: the experiment was deleted.
    """
    file = sqlite_file(uri)
    with contextlib.ExitStack() as stack:
        if file is not None:
            lock = stack.enter_context(file.with_name(file.name + ".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        elif not is_server(uri):
            _connect_once(uri)
        client = MlflowClient(uri)
        return client, _experiment_id(client, experiment, file)


def experiment_id(uri: str, experiment: str) -> str:
    """The experiment's identity; made where it is not there.

    Raises:
        InputError: the store or the experiment cannot be used.
    """
    with _refusing(uri):
        return open_store(uri, experiment)[1]


def _connect_once(uri: str) -> None:
    """One attempt at the database: MLflow itself would try for an hour."""
    engine = create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _experiment_id(client: MlflowClient, name: str, file: Path | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None if file is None else (file.parent / "mlartifacts").as_uri()
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise InputError(f"--experiment: {name!r} was deleted; allowed: restore it in MLflow, or another name")
    return found.experiment_id


def reap(client: MlflowClient, experiment_id: str, ours: str) -> list[str]:
    """End the runs, still RUNNING in the store, whose study's process is no more; the children of ``ours`` too."""
    running = list(_search(client, experiment_id, "attributes.status = 'RUNNING'"))
    parents = {run.info.run_id: run for run in running if "study.process" in run.data.tags}
    alive = {run_id for run_id, run in parents.items() if run_id != ours and is_alive(run.data.tags)}
    stale = [run for run_id, run in parents.items() if run_id != ours and run_id not in alive]
    stale += [
        run
        for run in running
        if "study.run_id" in run.data.tags and run.data.tags.get("mlflow.parentRunId") not in alive
    ]
    for run in stale:
        _kill(client, run, "its process died")
    return [run.info.run_id for run in stale]


def _kill(client: MlflowClient, run: Run, why: str) -> None:
    client.set_tag(run.info.run_id, "study.reaped", why)
    if "study.run_id" in run.data.tags and "study.outcome" not in run.data.tags:
        client.set_tag(run.info.run_id, "study.outcome", "killed")
    client.set_terminated(run.info.run_id, status="KILLED")


def process_stamp() -> str:
    """This process, told apart from a later one with the same number."""
    me = psutil.Process()
    return f"{socket.gethostname()}|{me.pid}|{me.create_time():.0f}"


def is_alive(tags: Mapping[str, str]) -> bool:
    """Whether a study's process still works: by its number on this machine, by its heartbeat on another."""
    host, pid, born = tags["study.process"].split("|")
    if host == socket.gethostname():
        try:
            return abs(psutil.Process(int(pid)).create_time() - float(born)) < 2
        except psutil.NoSuchProcess:
            return False
    return abs(time.time() - float(tags.get("study.heartbeat", 0))) < STALE_S


def fetch_study(experiment_or_run: str, uri: str, destination: Path) -> Path:
    """Rebuild a study folder from what the store has of it, so that the report can be made again.

    Args:
        experiment_or_run: an experiment's name (its latest study), or the identity of a parent run.
        uri: the store's address.
        destination: folder to write into, new or empty.

    Raises:
        InputError: no such experiment or study, the store cannot be used, or the folder holds something.
    """
    if destination.exists() and any(destination.iterdir()):
        raise InputError(f"{destination}: holds something already; allowed: a new or empty folder")
    check_store(uri)
    with _refusing(uri):
        client = MlflowClient(uri)
        parent = _find_study(client, experiment_or_run)
        destination.mkdir(parents=True, exist_ok=True)
        client.download_artifacts(parent.info.run_id, "", str(destination))
        for run in list(_search(client, parent.info.experiment_id, _children_of(parent.info.run_id))):
            _fetch_run(client, run, destination / "runs" / Path(run.data.tags["study.run_id"]).name)
    return destination


def _fetch_run(client: MlflowClient, run: Run, folder: Path) -> None:
    """Rebuild a run's folder; of several attempts the latest that ended counts, and comes first."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    client.download_artifacts(run.info.run_id, "", str(folder))
    restore_trace(folder / "steps.parquet", folder / "steps.jsonl")
    if not (folder / "result.json").exists():
        shutil.rmtree(folder)


def _find_study(client: MlflowClient, name: str) -> Run:
    if re.fullmatch("[0-9a-f]{32}", name):
        return client.get_run(name)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        known = ", ".join(sorted(e.name for e in client.search_experiments()))
        raise InputError(f"experiment: {name!r} is not in the store; known: {known}")
    for run in _search(client, experiment.experiment_id, "tags.`study.id` != ''"):
        return run
    raise InputError(f"experiment: {name!r} holds no study")


def status_of(outcome: str | None) -> str:
    """The state in which a run with this outcome ends: divergence is a result, so it is FINISHED."""
    return STATUS.get(outcome or "", "FAILED")


def now_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def _child(run: Run) -> Child:
    tags, info = run.data.tags, run.info
    key, attempt, outcome = (tags.get(f"study.{name}", "") for name in ("run_id", "attempt", "outcome"))
    return Child(info.run_id, key, attempt, info.status, outcome, info.start_time)


def _children_of(parent: str) -> str:
    return f"tags.`mlflow.parentRunId` = '{parent}'"


def _search(client: MlflowClient, experiment_id: str, query: str) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs(
            [experiment_id], query, max_results=BATCH, order_by=["attributes.start_time DESC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _lock_folder(out: Path) -> IO[str]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".tracking.lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{out}: another process is sending this study's runs to MLflow; wait for its end") from None
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); allowed: a writable folder") from None
    return lock


def _user() -> str:
    with contextlib.suppress(OSError, KeyError):
        return getpass.getuser()
    return ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    return text.replace("'", "")


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"//[^/@\s]*@", "//***@", lines[0])[:240]


@contextlib.contextmanager
def _refusing(uri: str) -> Iterator[None]:
    try:
        yield
    except (*STORE_ERRORS, ImportError) as error:
        raise InputError(f"tracking URI: {redact(uri)} cannot be used ({_reason(error)})") from None


@contextlib.contextmanager
def _deferring() -> Iterator[None]:
    try:
        yield
    except STORE_ERRORS as error:
        raise TrackingError(f"MLflow did not take it: {_reason(error)}") from None
