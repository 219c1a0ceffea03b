"""``mlflow run``: every declared parameter reaches the command, and the literal command works."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptycho.errors import InputError
from study.mlflow_hook import runs_this_project

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
HOOKS = "mlflow.default_experiment_provider"
VALUES = {
    "algo": "agc", "threshold": "0.02", "preset": "smoke", "regime": "overload", "seeds": "3", "seed_offset": "2",
    "steps": "17", "architecture": "fno", "optimizer": "sgd", "learning_rate": "0.25", "data": "scan.npz",
    "workers": "2", "out": "somewhere",
}  # fmt: skip
FIELDS = {"steps": "max_steps"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "MLproject").read_text())


@pytest.fixture(scope="module")
def packaging() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def words(entry: Mapping[str, Any], given: Mapping[str, str]) -> list[str]:
    """The command's words as the shell sees them, filled in and quoted as MLflow does."""
    defaults = {k: v["default"] for k, v in entry["parameters"].items() if isinstance(v, dict)}
    return shlex.split(entry["command"].format(**{k: shlex.quote(v) for k, v in (defaults | given).items()}))


def parse(command: list[str]) -> dict[str, Any]:
    from study.shootout import build_parser

    assert command[:3] == ["python", "-m", "study.shootout"]
    return vars(build_parser().parse_args(command[3:]))


@pytest.mark.parametrize("name", ["main", "shootout"])
def test_every_declared_parameter_reaches_its_setting(project: dict[str, Any], name: str) -> None:
    entry = project["entry_points"][name]
    plain = parse(words(entry, {"algo": "none"}))
    for parameter in entry["parameters"]:
        changed = parse(words(entry, {"algo": "none", parameter: VALUES[parameter]}))
        field = FIELDS.get(parameter, parameter)
        value = changed.get(field)
        assert str(value[0] if isinstance(value, list) else value) == VALUES[parameter]
        assert changed != plain or parameter == "algo"


@pytest.mark.parametrize("name", ["main", "shootout"])
def test_what_is_not_given_is_left_to_the_study(project: dict[str, Any], name: str) -> None:
    parsed = parse(words(project["entry_points"][name], {"algo": "agc"}))
    expected = {"preset": "default"} | ({"algo": ["agc"], "out": "results/default-agc"} if name == "main" else {})
    assert parsed == expected


@pytest.mark.parametrize("text", ["agc; touch pwned", "$(touch pwned)", "`touch pwned`", "' -c 'x", "--help", "a\nb"])
def test_a_value_stays_one_word(project: dict[str, Any], text: str) -> None:
    entry = project["entry_points"]["main"]
    assert f"--algo={text}" in words(entry, {"algo": text})
    assert len(words(entry, {"algo": text})) == len(words(entry, {"algo": "agc"}))
    assert words(project["entry_points"]["report"], {"source": text})[-2:] == ["--", text]


def test_an_undeclared_parameter_is_refused(project: dict[str, Any]) -> None:
    command = words(project["entry_points"]["main"], {"algo": "agc"})
    with pytest.raises(InputError, match="unrecognized arguments: --foo 3"):
        parse([*command, "--foo", "3"])
    assert parse([*command, "--weight-decay", "0.1"])["weight_decay"] == 0.1


def test_the_environment_is_that_of_the_package(project: dict[str, Any], packaging: dict[str, Any]) -> None:
    environment = yaml.safe_load((ROOT / project["python_env"]).read_text())
    assert environment["dependencies"] == packaging["dependencies"]
    assert packaging["entry-points"][HOOKS] == {"stability-shootout": "study.mlflow_hook:ShootoutExperimentProvider"}


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        ("mlflow run . -P algo=agc", True),
        ("/venv/bin/mlflow run -e shootout PROJECT", True),
        ("mlflow run file://PROJECT", True),
        ("-m run . -P algo=agc", True),
        ("mlflow --env-file x run .", True),
        ("mlflow run elsewhere", False),
        ("mlflow run https://host/repository", False),
        ("mlflow server .", False),
        ("mlflow", False),
        ("python run .", False),
    ],
)
def test_the_hook_knows_its_project(command: str, ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert runs_this_project(command.replace("PROJECT", str(ROOT)).split()) is ours


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, packaging: dict[str, Any]) -> dict[str, str]:
    """The environment of a shell after ``pip install -e .``: where it was not done, its entry points stand in."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {"OMP_NUM_THREADS": "1"}
    hooks = importlib.metadata.entry_points(group=HOOKS)
    if any(hook.value.startswith("study.mlflow_hook:") for hook in hooks):
        return environment
    site = tmp_path_factory.mktemp("site")
    info = site / "ptycho_stability_shootout-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ptycho-stability-shootout\nVersion: 0\n")
    lines = [f"{name} = {value}" for name, value in packaging["entry-points"][HOOKS].items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{HOOKS}]", *lines, ""]))
    return environment | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The project's folder as ``mlflow run`` sees it, in a place of its own."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("MLproject", "python_env.yaml"):
        shutil.copy(ROOT / name, folder)
    for package in ("ptycho", "ptycho_torch", "study"):
        (folder / package).symlink_to(ROOT / package)
    return folder


def mlflow_run(
    folder: Path, environment: Mapping[str, str], *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """``mlflow run`` as a shell would start it, without pyenv in reach and without an activated environment."""
    mlflow = Path(sys.executable).parent / "mlflow"
    path = {"PATH": "/usr/bin:/bin", "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    command = [str(mlflow), "run", ".", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**environment, **path, **more}, capture_output=True, text=True, timeout=300
    )


def recorded(folder: Path) -> list[tuple[str, str, str]]:
    """Experiment, name and state of every run in the folder's store, parents named by their study."""
    query = """select e.name, coalesce(t.value, r.name), r.status from runs r join experiments e using (experiment_id)
        left join tags t on t.run_uuid = r.run_uuid and t.key = 'study.preset' order by 2"""
    with sqlite3.connect(folder / "mlflow.db") as store:
        return store.execute(query).fetchall()


TOY = ("-P", "preset=smoke", "-P", "seeds=1", "-P", "steps=2", "-P", "regime=control", "-P", "workers=1")


def test_mlflow_run_trains_one_arm(checkout: Path, installed: dict[str, str]) -> None:
    done = mlflow_run(checkout, installed, "-P", "algo=agc", "-P", "learning_rate=1e-3", *TOY)
    assert done.returncode == 0, done.stdout + done.stderr
    experiment = "stability-shootout"
    assert recorded(checkout) == [(experiment, "control/agc/0", "FINISHED"), (experiment, "smoke", "FINISHED")]
    assert (checkout / "results" / "smoke-agc" / "report.html").is_file()


def test_a_mistake_ends_the_run_as_failed_in_one_line(
    checkout: Path, installed: dict[str, str], empty_store: Path
) -> None:
    """The environment is named, as it may be."""
    shutil.copy(empty_store, checkout / "mlflow.db")
    done = mlflow_run(checkout, installed, "-P", "algo=agd", "--env-manager", "local")
    assert done.returncode == 1
    assert "error: algo: unknown value 'agd'" in done.stderr
    assert "Traceback" not in done.stderr
    ((experiment, _, state),) = recorded(checkout)
    assert (experiment, state) == ("stability-shootout", "FAILED")


def test_an_unreachable_store_starts_nothing(checkout: Path, installed: dict[str, str]) -> None:
    uri = "http://me:secret@127.0.0.1:9"
    done = mlflow_run(checkout, installed, "-P", "algo=agc", MLFLOW_TRACKING_URI=uri)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: tracking URI: http://\*\*\*@127\.0\.0\.1:9 cannot be reached .*\n", done.stderr)
