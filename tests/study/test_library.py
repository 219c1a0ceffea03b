"""Studies from Python: a plain script runs one, and what it found is read again. One real study at toy size."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from ptycho.errors import InputError
from study import StudyResult, load_study, shootout
from study.settings import split_settings

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json
from pathlib import Path

import numpy as np
from study import load_study, shootout

result = shootout(
    "smoke", algo=["none", "agc=0.02"], seeds=1, regime="control", out=Path("out"), workers=1, N=np.int64(16),
    object_size=48, n_lines=20, fno_width=4, fno_modes=3, fno_blocks=2, max_steps=6, eval_every=3, learning_rate="1e-3",
)
fetched = load_study("stability-shootout")
said = {
    "repr": repr(result), "report": str(result.report), "word": result.verdict.word, "fetched": str(fetched.out),
    "same": bool(fetched.table["val_loss_final"].equals(result.table["val_loss_final"])),
}
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> tuple[Path, dict[str, Any]]:
    """The folder in which a script without any guard ran a study, and what it printed."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "script.py").write_text(SCRIPT)
    shutil.copy(empty_store, folder / "s.db")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 's.db'}"}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_a_script_gets_its_result_back(ran: tuple[Path, dict[str, Any]]) -> None:
    folder, said = ran
    assert said["repr"].startswith("StudyResult(")
    assert "2 runs" in said["repr"]
    assert Path(said["report"]) == folder / "out" / "report.html"
    assert said["word"] == json.loads((folder / "out" / "summary.json").read_text())["verdict"]["word"]


def test_mlflow_gives_the_same_study(ran: tuple[Path, dict[str, Any]]) -> None:
    folder, said = ran
    assert said["same"]
    assert (folder / said["fetched"]) != folder / "out"


def test_a_study_is_loaded_in_one_line(ran: tuple[Path, dict[str, Any]]) -> None:
    result = load_study(ran[0] / "out")
    assert isinstance(result, StudyResult)
    assert dict(zip(result.table["algorithm"], result.table["threshold"].fillna(0), strict=True)) == {
        "none": 0,
        "agc": 0.02,
    }
    assert result.steps["run_id"].value_counts().tolist() == [6, 6]
    assert set(result.arms["label"]) == {"none", "agc"}
    assert result.arms["n"].tolist() == [1, 1]
    assert result.report == ran[0] / "out" / "report.html"
    assert result.verdict.headline


def test_figures_are_matplotlib_figures(ran: tuple[Path, dict[str, Any]]) -> None:
    result = load_study(ran[0] / "out")
    assert isinstance(result.figure("loss"), Figure)
    drawn = result.figures("loss", "gradient_norm")
    assert set(drawn) == {"loss_01_control", "gradient_norm_01_control"}
    with pytest.raises(InputError, match=r"figure: unknown value 'lost'; known: .*loss_01_control"):
        result.figure("lost")


def test_the_study_says_how_it_was_called(ran: tuple[Path, dict[str, Any]]) -> None:
    command = json.loads((ran[0] / "out" / "study.json").read_text())["command"]
    assert command.startswith("shootout(preset='smoke', algo=['none', 'agc=0.02'], seeds=1, regime='control'")


def test_tables_may_be_written_elsewhere(ran: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    from study.table import collect

    before = {path: path.stat().st_mtime_ns for path in (ran[0] / "out").iterdir()}
    tables = collect(ran[0] / "out", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (ran[0] / "out").iterdir()} == before
    assert len(pd.read_csv(tmp_path / "runs.csv")) == len(tables.runs) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learnin_rate": 0.1}, "learnin_rate: no such setting; did you mean 'learning_rate'"),
        ({"seed": 3}, "seed: an arm or the number of seeds says this; did you mean 'seeds'"),
        ({"seeds": 0}, "seeds: 0 is out of range; allowed: at least 1"),
        ({"algo": ["agd"]}, "algo: unknown value 'agd'"),
        ({"learning_rate": "fast"}, "learning_rate: 'fast' is not a number"),
        ({"regime": 3}, "regime: 3 is not a tuple of strings"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        shootout("smoke", out=tmp_path / "out", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no study\.json there"):
        load_study(tmp_path)


def test_settings_of_the_study_and_of_its_runs_are_told_apart() -> None:
    config, overrides = split_settings({"preset": "smoke", "threshold": False, "fault": "zinger", "max_steps": "off"})
    assert (config.preset, config.threshold) == ("smoke", None)
    assert overrides == {"fault": ("zinger",), "max_steps": None}


def test_the_function_and_the_command_share_a_name_in_either_order() -> None:
    code = """
import importlib, sys, types
first, second = sys.argv[1:]
for name in (first, second):
    if name == "module":
        from study.shootout import build_parser, main
        import study.shootout
    else:
        from study import shootout
        assert isinstance(shootout, types.FunctionType), shootout
assert shootout is study.shootout is __import__("study").shootout
assert importlib.import_module("study.shootout").build_parser is build_parser
"""
    for order in (("function", "module"), ("module", "function")):
        done = subprocess.run([sys.executable, "-c", code, *order], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
