"""Where the tracking store is: defaults, refusals, and no credentials in any message."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from ptycho.errors import InputError
from study.tracking_uri import (
    check_store,
    is_project,
    project_folder,
    redact,
    redact_text,
    resolve_tracking_uri,
    sqlite_file,
)


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_default_is_an_absolute_file_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_project(project_folder())
    assert resolve_tracking_uri() == f"sqlite:///{project_folder() / 'mlflow.db'}"


def test_flag_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert resolve_tracking_uri() == "http://host:5000"
    assert resolve_tracking_uri(f"sqlite:///{tmp_path}/a.db") == f"sqlite:///{tmp_path}/a.db"


def test_a_relative_file_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = resolve_tracking_uri("sqlite:///sub/a.db")
    assert uri == f"sqlite:///{tmp_path}/sub/a.db"
    assert sqlite_file(uri) == tmp_path / "sub" / "a.db"


@pytest.mark.parametrize(
    "uri",
    [
        "file:///tmp/mlruns",
        "mlruns",
        "/tmp/mlruns",
        "ftp://host/x",
        "sqlite://",
        "sqlite:///:memory:",
        "http://",
        "http://h:x",
    ],
)
def test_unusable_addresses_are_refused_in_one_line(uri: str) -> None:
    with pytest.raises(InputError, match=r"^--tracking-uri: .*allowed: sqlite:///FILE") as caught:
        resolve_tracking_uri(uri)
    assert "\n" not in str(caught.value)


def test_the_environments_name_is_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:/tmp/x")
    with pytest.raises(InputError, match=r"^MLFLOW_TRACKING_URI: "):
        resolve_tracking_uri()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:secret@host:5000/path", "http://***@host:5000/path"),
        ("postgresql+psycopg2://me:se@cret@db/name?password=secret", "postgresql+psycopg2://***@db/name?***"),
        ("sqlite:////data/a.db", "sqlite:////data/a.db"),
        ("sqlite:///a.db?key=secret", "sqlite:///a.db?***"),
        ("http://host", "http://host"),
        ("http://[bad:secret", "http:***"),
    ],
)
def test_redact(uri: str, shown: str) -> None:
    assert redact(uri) == shown


@pytest.mark.parametrize(
    "text",
    [
        "could not connect to postgresql://me:top/secret@db",
        "Max retries exceeded with url: /api/2.0/mlflow/runs/search?token=secret (Caused by nothing)",
        "postgresql+psycopg2://db/mlflow?user=me&password=secret refused",
        "http://me:sec@secret@host:5000/api 'http://host?key=secret'",
        'invalid dsn: "host=db PASSWORD=secret"',
        "API request to http://host/x?a=b&sslpassword=secret, failed",
    ],
)
def test_a_text_is_shown_without_credentials(text: str) -> None:
    assert "secret" not in redact_text(text)
    assert len(redact_text(text)) > 20


def test_an_unreachable_server_is_refused_within_seconds() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"http://\*\*\*@127.0.0.1:{port} cannot be reached") as caught:
        check_store(f"http://me:secret@127.0.0.1:{port}")
    assert time.monotonic() - start < 60, "not the minutes of MLflow's own retries"
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("something else entirely")
    with pytest.raises(InputError, match=r"a\.db is not a SQLite file"):
        check_store(f"sqlite:///{tmp_path}/a.db")
    assert (tmp_path / "a.db").read_text() == "something else entirely"


def test_a_file_in_an_impossible_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        check_store(f"sqlite:///{tmp_path}/file/a.db")
