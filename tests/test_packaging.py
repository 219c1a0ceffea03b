"""The wheel and the source archive hold what they should; licences and CI are those of the project."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ptycho", "ptycho_torch", "study")
NOT_COPIED = (".git", ".venv", "*.egg-info", "build", "dist", "results", "mlflow.db*", "mlartifacts", ".*_cache")
OF_311 = re.compile(
    r"\b(hashlib\.file_digest|datetime\.UTC|ExceptionGroup|StrEnum|contextlib\.chdir|typing\.(Self|Never|LiteralString)|"
    r"from typing import [^\n]*\b(Self|Never|LiteralString|override|assert_never)\b|asyncio\.TaskGroup)"
)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive, made from a copy of the project by its own build backend."""
    folder = tmp_path_factory.mktemp("packaging")
    copy, dist = folder / "project", folder / "dist"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    dist.mkdir()
    build = f"from setuptools import build_meta as b; b.build_sdist({str(dist)!r}); b.build_wheel({str(dist)!r})"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return dist


def test_the_wheel_holds_the_packages_and_nothing_else(built: Path, project: dict[str, Any]) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, info}
    sources = {str(p.relative_to(ROOT)) for package in PACKAGES for p in (ROOT / package).rglob("*.py")}
    assert sources <= names
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "study" / "templates").iterdir()} <= names
    assert "stability-shootout = study.shootout:main" in entry_points
    assert "study.mlflow_hook:ShootoutExperimentProvider" in entry_points
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata.get("License-Expression") == "BSD-3-Clause"
    assert set(metadata.get_all("Provides-Extra") or ()) == set(project["optional-dependencies"])
    assert not any("://" in value for value in metadata.get_all("Project-URL") or ())


def test_the_source_archive_holds_all_that_tests_and_docs_need(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"Makefile", "constraints.txt", "MLproject", "python_env.yaml", "README.md", "LICENSE", ".ci/run"}
    for folder in ("tests", "docs", "notebooks", "benchmarks"):
        wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")}
    assert wanted <= names
    assert not [name for name in names if name.endswith((".pyc", ".db"))]


@pytest.mark.parametrize("package", [*PACKAGES, "tests", "docs", "benchmarks"])
def test_the_code_is_that_of_the_oldest_python(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        ast.parse(text, str(path), feature_version=(3, 10))
        if path != Path(__file__).resolve():
            assert not OF_311.search(text), path


# Licences ---------------------------------------------------------------------------------------


def needed(project: dict[str, Any]) -> dict[str, str]:
    """Each package that the project names, with the extra that needs it."""
    groups = {"always": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, str] = {}
    for group, requirements in groups.items():
        for requirement in requirements:
            name = re.match(r"[\w-]+", requirement)
            assert name is not None
            if name[0] != project["name"]:
                found.setdefault(name[0].lower(), group)
    return found


def licences() -> dict[str, tuple[str, str]]:
    """The table of the documentation: licence and extra of each package."""
    rows = re.findall(r"^\| ([\w-]+) \| ([\w ]+) \| (\w+) \|$", (ROOT / "docs" / "licences.md").read_text(), re.M)
    return {name: (licence, group) for name, licence, group in rows if name != "package"}


def test_every_dependency_has_its_licence_told(project: dict[str, Any]) -> None:
    assert {name: group for name, (_, group) in licences().items()} == needed(project)


@pytest.mark.parametrize("name", sorted(licences()))
def test_a_licence_is_the_one_that_the_package_states(name: str) -> None:
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed here")
    classifiers = [text for text in metadata.get_all("Classifier") or () if text.startswith("License")]
    stated = " ".join([metadata.get("License-Expression", ""), metadata.get("License", ""), *classifiers])
    licence, _ = licences()[name]
    assert licence in stated
    assert not re.search(r"\bA?GPL", f"{metadata.get('License-Expression', '')} {classifiers}")


# Continuous integration -------------------------------------------------------------------------


def test_the_workflow_runs_the_projects_own_script_on_every_python(project: dict[str, Any]) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    told = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert job["strategy"]["matrix"]["python"] == told
    assert told[0] == project["requires-python"].removeprefix(">=")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
