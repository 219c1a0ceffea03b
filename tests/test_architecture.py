"""The import directions of the house: ptycho <- ptycho_torch <- study, and MLflow behind one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ptycho", "ptycho_torch", "study")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
OF_PTYCHO = {"ptycho", "numpy", "scipy", "skimage", "h5py"}
OF_PTYCHO_TORCH = {"ptycho", "ptycho_torch", "numpy", "scipy", "torch", "lightning"}


def imported(path: Path) -> Iterator[str]:
    """Every package that a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module).partition(".")[0]


def foreign(package: str, allowed: set[str]) -> dict[str, set[str]]:
    """Files of a package that import anything but the standard library and ``allowed``."""
    found = {
        str(path.relative_to(ROOT)): set(imported(path)) - allowed - sys.stdlib_module_names
        for path in (ROOT / package).rglob("*.py")
    }
    return {path: names for path, names in found.items() if names}


def loaded_after(*snippets: str) -> list[set[str]]:
    """Run snippets in one fresh interpreter; the top-level packages that are loaded after each."""
    report = "print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    code = "\n".join(["import sys", *(f"{snippet}\n{report}" for snippet in snippets)])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [set(line.split()[1:]) for line in done.stdout.splitlines() if line.startswith("LOADED")]


def import_all(package: str) -> str:
    names = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / package).rglob("*.py"))
    return "\n".join(f"import {'.'.join(name.parts).removesuffix('.__init__')}" for name in names)


def test_the_packages_are_here() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(PACKAGES)


def test_ptycho_stands_on_numpy_and_scipy_alone() -> None:
    assert foreign("ptycho", OF_PTYCHO) == {}


def test_ptycho_torch_adds_torch_and_lightning() -> None:
    assert foreign("ptycho_torch", OF_PTYCHO_TORCH) == {}
    assert not any("argparse" in imported(path) for path in (ROOT / "ptycho_torch").rglob("*.py"))


def test_study_imports_no_tests_and_no_notebooks() -> None:
    assert not any(
        {"tests", "notebooks", "benchmarks"} & set(imported(path)) for path in (ROOT / "study").rglob("*.py")
    )


def test_mlflow_is_imported_in_one_file() -> None:
    assert [path.relative_to(ROOT).as_posix() for path in MODULES if "mlflow" in imported(path)] == [
        "study/tracking.py"
    ]


def test_every_module_loads_and_brings_no_more_than_its_layer() -> None:
    ptycho, ptycho_torch, study = loaded_after(*(import_all(package) for package in PACKAGES))
    assert {"ptycho", "numpy"} <= ptycho
    assert not ptycho & {"torch", "lightning", "mlflow", "pandas", "matplotlib", "ptycho_torch", "study"}
    assert {"ptycho_torch", "torch", "lightning"} <= ptycho_torch
    assert not ptycho_torch & {"mlflow", "study"}
    assert {"study", "mlflow"} <= study


COMMANDS = ("shootout", "grid_lines_torch_runner", "report", "inspect", "sync")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_without_torch_and_without_mlflow(command: str) -> None:
    ask = f"""
import runpy
sys.argv = ["study.{command}", "--help"]
try:
    runpy.run_module("study.{command}", run_name="__main__")
except SystemExit as end:
    assert end.code in (0, None), end.code
else:
    raise AssertionError("no help")
"""
    (loaded,) = loaded_after(ask)
    assert "study" in loaded
    assert not loaded & {"torch", "lightning", "mlflow", "pandas", "matplotlib"}
