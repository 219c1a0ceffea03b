"""A toy study as its users run it, with means to hurt it: real processes, real files, a real store."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
TOY = (
    *("--preset", "smoke", "--regime", "overload", "--algo", "none", "--algo", "agc", "--N", "16"),
    *("--object-size", "48", "--n-lines", "20", "--fno-width", "4", "--fno-modes", "3", "--fno-blocks", "2"),
    *("--max-steps", "40", "--eval-every", "10", "--validation-fraction", "0.2", "--workers", "2"),
    *("--ensemble", "1"),  # so that runs end one after the other
)
DEADLINE_S = 240.0
MAY_VARY = ["wall_s", "git_commit"]
REPLICATES = 10
MARK = "STUDY_UNDER_TEST"


class ToyStudy:
    """A study's folder and store, and the command that works on them.

    Args:
        folder: where both are.
        seeds: replicates; a study has two runs of each.
        out, store: the folder of its records and its store, if they are elsewhere.
        empty: a store to begin with where there is none; without it, the study makes its own.
    """

    def __init__(
        self, folder: Path, seeds: int, out: Path | None = None, store: Path | None = None, empty: Path | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.seeds, self.mark = folder, seeds, uuid.uuid4().hex
        self.out, self.store = out or folder / "out", store or folder / "store.db"
        if empty is not None and not self.store.exists():
            shutil.copy(empty, self.store)

    def start(self, *more: str) -> subprocess.Popen[str]:
        """The command, at work."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", MARK: self.mark}
        environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{self.store}"
        with interruptible():
            return subprocess.Popen(
                [sys.executable, "-m", "study.shootout", *self.arguments(*more)],
                cwd=self.folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )

    def arguments(self, *more: str) -> list[str]:
        """What the command is called with."""
        return [*TOY, "--seeds", str(self.seeds), "--out", str(self.out), *more]

    def here(self, call: Callable[..., subprocess.CompletedProcess[str]], *more: str) -> str:
        """The command, to its end, in this process, which has loaded what it needs; its stderr."""
        done = call("shootout", *self.arguments(*more), cwd=self.folder, store=self.store)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def finish(self, *more: str) -> None:
        """The command, to its end."""
        process = self.start(*more)
        assert self.end_of(process)[0] == 0, self.stderr

    def end_of(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Exit status and stderr once the command has ended, and nothing of it is left."""
        _, self.stderr = process.communicate(timeout=DEADLINE_S)
        until(lambda: not self.processes())
        return process.returncode, self.stderr

    def processes(self) -> list[psutil.Process]:
        """Every process of the command that lives."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def results(self) -> dict[str, int]:
        """Finished runs, with the time at which each was written."""
        return {path.parent.name: path.stat().st_mtime_ns for path in self.out.glob("runs/*/result.json")}

    def after_a_run(self, process: subprocess.Popen[str]) -> None:
        """Wait until the command has finished a run more, and goes on."""
        before = set(self.results())
        until(lambda: set(self.results()) - before or process.poll() is not None)
        assert process.poll() is None, process.communicate()[1]

    def numbers(self) -> pd.DataFrame:
        """The table of runs without what may differ between two studies of the same numbers."""
        return pd.read_csv(self.out / "runs.csv").drop(columns=MAY_VARY)

    def assert_same_numbers(self, whole: ToyStudy) -> None:
        """That its runs and their steps are those of a study of as many or more replicates, bit for bit."""
        runs = self.numbers()
        assert len(runs) == 2 * self.seeds
        for found, every in ((runs, whole.numbers()), (self.steps(), whole.steps())):
            expected = every[every["run_id"].isin(set(runs["run_id"]))].reset_index(drop=True)[found.columns]
            pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=False)

    def steps(self) -> pd.DataFrame:
        """The table of steps."""
        return pd.read_parquet(self.out / "steps.parquet")

    def stored(self) -> list[Any]:
        """Every MLflow run in the store."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.store}")
        return list(client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=5000))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Start processes that hear Ctrl-C, also where this one was started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def until(condition: Callable[[], object]) -> None:
    """Wait for what will certainly come."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def toy_study(empty_store: Path) -> Callable[..., ToyStudy]:
    """Make a toy study, whose store has its tables unless it is said to be new."""
    return functools.partial(ToyStudy, empty=empty_store)


@pytest.fixture(scope="session", name="until")
def _until() -> Callable[[Callable[[], object]], None]:
    return until


@pytest.fixture(scope="session")
def undisturbed(made_once: Any, toy_study: Callable[..., ToyStudy]) -> ToyStudy:
    """A study of ten replicates to which nothing happens; all look at one, and none changes it."""
    return toy_study(made_once("undisturbed", lambda folder: toy_study(folder, REPLICATES).finish()), REPLICATES)


@pytest.fixture
def tracking_server(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Start a real tracking server, with its artifact proxy, on a store; its address without the scheme."""
    started = []

    def start(store: str) -> str:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"),
            *("--port", address.partition(":")[2], "--artifacts-destination", str(tmp_path / "artifacts")),
        ]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment["MLFLOW_BACKEND_STORE_URI"] = store
        with (tmp_path / "server.log").open("w") as log:
            started.append(
                subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True)
            )
        until(lambda: answers(address))
        return address

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def answers(address: str) -> bool:
    """Whether a tracking server is up."""
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=1):
            return True
    except OSError:
        return False
