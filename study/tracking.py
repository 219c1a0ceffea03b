"""The tracking store, asked in plain values: the only module that imports MLflow.

Whoever calls chooses what an error of the store means: :func:`refusing` turns it into a user's mistake,
:func:`deferring` into something to be tried again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ptycho.errors import InputError
from study.run_metrics import Point
from study.tracking_notes import TrackingError
from study.tracking_uri import is_server, redact, redact_text, sqlite_file

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.git_utils import get_git_commit
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)  # a traceback of every failed attempt
STORE_ERRORS = (MlflowException, SQLAlchemyError, OSError)
BATCH = 1000
# Retries are ours: MLflow's own would repeat a request that the server may have carried out, and hold up
# the study's end for minutes.
REQUESTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class StoredRun(NamedTuple):
    """What the store says about a run."""

    run_id: str
    experiment_id: str
    status: str
    started_ms: int
    tags: Mapping[str, str]


class Store:
    """Runs of one store: make, find, send to, fetch from. Errors are MLflow's own."""

    def __init__(self, uri: str) -> None:
        self._client = MlflowClient(uri)

    # experiments

    def experiment(self, name: str) -> str | None:
        """The identity of an experiment; None where there is none by that name."""
        found = self._client.get_experiment_by_name(name)
        return None if found is None else str(found.experiment_id)

    def experiment_name(self, experiment_id: str) -> str:
        """The name of an experiment."""
        return str(self._client.get_experiment(experiment_id).name)

    def experiment_names(self) -> list[str]:
        """All of them, in order."""
        return sorted(experiment.name for experiment in self._client.search_experiments())

    def make_experiment(self, name: str, location: str | None) -> str:
        """The identity of an experiment, made where it is not there, even by another process meanwhile.

        Raises:
            InputError: the experiment was deleted.
        """
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=location))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise InputError(f"--experiment: {name!r} was deleted; allowed: restore it in MLflow, or another name")
        return str(found.experiment_id)

    def tag_experiment(self, experiment_id: str, key: str, value: str) -> None:
        """Set one tag of an experiment."""
        self._client.set_experiment_tag(experiment_id, key, value)

    # runs

    def run(self, run_id: str) -> StoredRun:
        """One run."""
        return _stored(self._client.get_run(run_id))

    def search(self, experiment_id: str, query: str) -> Iterator[StoredRun]:
        """The runs of an experiment that MLflow's ``query`` finds, the latest first."""
        token = None
        while True:
            page = self._client.search_runs(
                [experiment_id], query, max_results=BATCH, order_by=["attributes.start_time DESC"], page_token=token
            )
            yield from map(_stored, page)
            token = page.token
            if not token:
                return

    def children(self, experiment_id: str, parent: str) -> Iterator[StoredRun]:
        """The runs within a parent run, the latest first."""
        return self.search(experiment_id, f"tags.`mlflow.parentRunId` = '{parent}'")

    def create(self, experiment_id: str, name: str, tags: Mapping[str, str], started_ms: int) -> StoredRun:
        """A new run; tags without a value are left out."""
        given = {key: value for key, value in tags.items() if value}
        return _stored(self._client.create_run(experiment_id, run_name=name, tags=given, start_time=started_ms))

    def resume(self, run_id: str) -> None:
        """Say that a run goes on."""
        self._client.update_run(run_id, status="RUNNING")

    def end(self, run_id: str, status: str, ended_ms: int | None = None) -> None:
        """Say that a run has ended, now or at ``ended_ms``."""
        self._client.set_terminated(run_id, status=status, end_time=ended_ms)

    # what a run holds

    def send_points(self, run_id: str, points: Sequence[Point], started_ms: int) -> None:
        """Points of metrics; the time of each is that of step 0 and a millisecond per step."""
        metrics = [Metric(point.key, point.value, started_ms + point.step, point.step) for point in points]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + BATCH])

    def send_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Settings; what is no text is sent as JSON."""
        self._client.log_batch(run_id, params=[Param(key, _text(value)) for key, value in params.items()])

    def send_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def delete_tag(self, run_id: str, key: str) -> None:
        """Take a tag away."""
        self._client.delete_tag(run_id, key)

    def send_dataset(self, run_id: str, source: str, digest: str) -> None:
        """What a run was trained on: a file, or a simulation by name."""
        dataset = Dataset(name=Path(source).name, digest=digest, source_type="local", source=_text({"uri": source}))
        context = InputTag("mlflow.data.context", "training")
        self._client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags=[context])])

    def upload(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Put a file among a run's artifacts."""
        self._client.log_artifact(run_id, str(path), folder)

    def download(self, run_id: str, destination: Path) -> None:
        """All artifacts of a run."""
        self._client.download_artifacts(run_id, "", str(destination))


def open_store(uri: str, experiment: str) -> tuple[Store, str]:
    """A store and the experiment's identity in it; both are made where they are not there.

    Several processes that open a new SQLite store at once break it, hence a lock around this.

    Raises:
        InputError: the experiment was deleted.
    """
    for name, value in REQUESTS.items():
        os.environ.setdefault(name, value)
    file = sqlite_file(uri)
    with contextlib.ExitStack() as stack:
        if file is not None:
            lock = stack.enter_context(file.with_name(file.name + ".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        elif not is_server(uri):
            _connect_once(uri)
        store = Store(uri)
        location = None if file is None else (file.parent / "mlartifacts").as_uri()
        return store, store.make_experiment(experiment, location)


def experiment_id(uri: str, experiment: str) -> str:
    """The experiment's identity; made where it is not there.

    Raises:
        InputError: the store or the experiment cannot be used.
    """
    with refusing(uri):
        return open_store(uri, experiment)[1]


def git_commit() -> str:
    """The commit of the code that runs; empty outside of a checkout."""
    return str(get_git_commit(__file__) or "")


@contextlib.contextmanager
def refusing(uri: str) -> Iterator[None]:
    """Errors of the store become the one line that a user's mistake gets."""
    try:
        yield
    except (*STORE_ERRORS, ImportError) as error:
        raise InputError(f"tracking URI: {redact(uri)} cannot be used ({_reason(error)})") from None


@contextlib.contextmanager
def deferring() -> Iterator[None]:
    """Errors of the store mean: not now."""
    try:
        yield
    except STORE_ERRORS as error:
        raise TrackingError(f"MLflow did not take it: {_reason(error)}") from None


def _connect_once(uri: str) -> None:
    """One attempt at the database: MLflow itself would try for an hour."""
    engine = create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _stored(run: Run) -> StoredRun:
    info = run.info
    return StoredRun(info.run_id, info.experiment_id, info.status, info.start_time, run.data.tags)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return redact_text(lines[0])[:240]
