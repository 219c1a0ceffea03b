"""The deployment of ``docs/deploy.md``: a tracking server on PostgreSQL, whose database is restarted midway.

Needs the system's PostgreSQL (``/usr/lib/postgresql/*/bin`` or on the path) and psycopg2.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*path_separator.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
PASSWORD = "of-the-test"


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's own programs."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb")
    return installed[-1].parent if installed else Path(found).parent if found else None


class Database:
    """A PostgreSQL of the test's own, on the loopback, with a password."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.uri = f"postgresql+psycopg2://mlflow:{PASSWORD}@127.0.0.1:{self.port}/postgres"
        (folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:  # PostgreSQL does not run as root
            shutil.chown(folder, "postgres")
            shutil.chown(folder / "password", "postgres")
        self._call("initdb", "-U", "mlflow", "-A", "scram-sha-256", "--pwfile", str(folder / "password"), "--no-sync")
        self.control("start")

    def control(self, action: str) -> None:
        """Start, stop or restart, as a crash does it."""
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        how = () if action == "start" else ("-m", "immediate")
        self._call("pg_ctl", "-w", *how, "-o", options, "-l", str(self.folder / "log"), action)

    def _call(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), "-D", str(self.folder / "data"), *arguments]
        user = "postgres" if os.geteuid() == 0 else None
        done = subprocess.run(
            command, cwd=self.folder, user=user, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.fixture
def database() -> Iterator[Database]:
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    made = Database(programs, folder)
    yield made
    made.control("stop")
    shutil.rmtree(folder)


def test_a_restarted_database_loses_nothing_and_doubles_nothing(
    database: Database, tracking_server: Callable[[str], str], toy_study: Any, call: Any, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    uri = f"http://{tracking_server(database.uri)}"
    study = toy_study(tmp_path / "study", 4)
    process = study.start("--tracking-uri", uri)
    study.after_a_run(process)
    database.control("restart")
    status, stderr = study.end_of(process)
    assert status == 0, stderr
    synced = call("sync", str(study.out), cwd=tmp_path)
    assert synced.stdout == f"{study.out}: everything is sent\n", synced.stderr

    client = MlflowClient(uri)
    found = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000)
    assert {run.info.status for run in found} == {"FINISHED"}
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    assert sorted(run.data.tags["study.run_id"] for run in children) == sorted(study.results())
    assert len(found) == len(children) + 1
    for run in children:
        points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")]
        assert len(points) == len(set(points)) == 4
        assert "steps.parquet" in {file.path for file in client.list_artifacts(run.info.run_id)}
    assert not [path for path in study.out.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
