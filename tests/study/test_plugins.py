"""Algorithms, networks and faults of a user's own: from a file, by name, to the weights that they change."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest

from ptycho.config import plugins
from ptycho.config.algorithms import ALGORITHMS
from ptycho.config.plugins import load_plugins
from ptycho.errors import InputError
from study.data import DataFiles
from study.plan import Plan, make_plan
from study.settings import split_settings
from study.slurm import row
from study.slurm_task import training_of
from study.trainings import Training
from study.worker import execute_together, prepare_dataset

TOY = (
    *("--preset", "smoke", "--regime", "control", "--seeds", "1", "--N", "16", "--object-size", "48"),
    *("--n-lines", "20", "--max-steps", "4", "--eval-every", "4", "--validation-fraction", "0.2", "--workers", "1"),
)
PLUGIN = '''
import torch
from torch import nn
from ptycho.faults import register_fault
from ptycho_torch.plugins import register_clipping, register_generator

@register_clipping("freeze", threshold="not used", default=1.0, low=1.0, high=1.0)
def freeze(seen, state):
    """No gradient at all."""
    return torch.zeros_like(seen.norms)

@register_generator("tiny")
class Tiny(nn.Sequential):
    """One convolution."""
    def __init__(self, config):
        super().__init__(nn.Conv2d(config.gridsize**2, 2 * config.gridsize**2, 3, padding=1))

@register_fault("bright", rate=1.0, size=4.0, size_meaning="factor on the counts", low=1.0, high=10.0)
def bright(frame, size, rng):
    """The beam is too bright."""
    frame.counts[:] *= size
'''


pytestmark = [
    pytest.mark.usefixtures("forgotten_afterwards"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # from inside MLflow
]


def write(path: Path, text: str = PLUGIN) -> str:
    path.write_text(text)
    return str(path)


def plan(folder: Path, **settings: object) -> Plan:
    config, overrides = split_settings({"preset": "smoke", "regime": "control", "seeds": 1, **settings})
    return make_plan(config, overrides, "")


def test_a_study_trains_with_what_a_file_registers(call: Any, new_store: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py")
    more = ("--plugin", file, "--architecture", "tiny", "--fault", "bright:size=9", "--out", "out")
    done = call("shootout", *TOY, "--algo", "none", "--algo", "freeze", *more, cwd=tmp_path, store=new_store)
    assert done.returncode == 0, done.stderr
    steps, results = {}, {}
    for folder in (tmp_path / "out" / "runs").iterdir():
        spec = json.loads((folder / "spec.json").read_text())
        rows = (folder / "steps.jsonl").read_text().splitlines()
        steps[spec["algorithm"]] = [json.loads(row) for row in rows]
        results[spec["algorithm"]] = json.loads((folder / "result.json").read_text())
        assert spec["settings"]["plugin"] == [f"{file}#sha256={hashlib.sha256(PLUGIN.encode()).hexdigest()}"]
    assert all(row["update_ratio"] == 0 and row["grad_norm_postclip"] == 0 for row in steps["freeze"])
    assert all(row["update_ratio"] > 0 for row in steps["none"])
    assert all(row["grad_norm_preclip"] > 0 and row["clipped_fraction"] == 1 for row in steps["freeze"])
    assert results["freeze"]["realised"]["gradient_clip_algorithm"] == "freeze"
    assert results["freeze"]["realised"]["plugin"].startswith(file)
    assert results["none"]["n_parameters"] == 2 * 9 + 2  # the one convolution


def test_the_content_of_a_plugin_belongs_to_the_runs_that_use_it_and_to_no_other(tmp_path: Path) -> None:
    def ids(**settings: object) -> dict[str, str]:
        made = plan(tmp_path, **settings)
        specs = made.design.next_runs(made.overrides, [])
        return {spec.settings.gradient_clip_algorithm: spec.run_id for spec in specs}

    file = tmp_path / "mine.py"
    without = ids(algo=["none", "norm"])
    first = ids(algo=["none", "freeze"], plugin=write(file))
    moved = ids(algo=["none", "freeze"], plugin=write(tmp_path / "other.py", PLUGIN)) if file.unlink() is None else {}
    assert first["none"] == without["none"]
    assert moved == first
    changed = ids(algo=["none", "freeze"], plugin=write(tmp_path / "other.py", PLUGIN + "# changed\n"))
    assert changed["none"] == first["none"]
    assert changed["freeze"] != first["freeze"]


def test_a_plugin_is_loaded_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    count = f"with open({str(tmp_path / 'count')!r}, 'a') as file:\n    file.write('x')\n"
    (reference,) = load_plugins([write(tmp_path / "mine.py", PLUGIN + count)])
    assert load_plugins([str(tmp_path / "mine.py")]) == (reference,)
    assert (tmp_path / "count").read_text() == "x"
    assert load_plugins([write(tmp_path / "mine.py", PLUGIN + count + "#")]) != (reference,)
    assert (tmp_path / "count").read_text() == "xx"
    with pytest.raises(InputError, match="has changed since the study began"):
        load_plugins([reference])


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that announces a plugin with the algorithm ``melt``."""
    write(
        tmp_path / "an_installed_one.py",
        PLUGIN.replace("freeze", "melt").replace("tiny", "mini").replace("bright", "b"),
    )
    info = tmp_path / "installed-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nanything = an_installed_one\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "an_installed_one", raising=False)


@pytest.mark.usefixtures("installed")
def test_modules_and_entry_points_register_too(tmp_path: Path) -> None:
    write(tmp_path / "a_plugin_module.py", PLUGIN)
    assert plan(tmp_path, algo=["none", "melt"]).design.arms[1].algorithm == "melt"
    (reference,) = load_plugins(["a_plugin_module"])
    assert reference.startswith("a_plugin_module#sha256=")
    assert {"freeze", "melt"} <= set(ALGORITHMS)
    assert plugins.plugin_digests("melt", "hybrid", ["b:size=2"])


@pytest.mark.usefixtures("installed")
def test_runs_that_train_together_know_the_plugins_of_installed_packages(tmp_path: Path) -> None:
    toy = {"N": 16, "object_size": 48, "n_lines": 20, "max_steps": 2, "eval_every": 2, "validation_fraction": 0.2}
    made = plan(tmp_path, algo=["none", "melt"], **toy)
    specs = made.design.next_runs(made.overrides, [])
    files = prepare_dataset(specs[0], tmp_path / "data", (specs[0].settings.torch_loss_mode,))
    trainings = [Training(spec, files, tmp_path / spec.run_id, True) for spec in specs]
    process = multiprocessing.get_context("spawn").Process(target=execute_together, args=trainings)
    process.start()
    process.join()
    assert process.exitcode == 0
    results = [json.loads((training.folder / "result.json").read_text()) for training in trainings]
    assert [(result["algorithm"], result["ensemble_size"]) for result in results] == [("none", 2), ("melt", 2)]
    assert [result["run_id"] for result in results] == [training.folder.name for training in trainings]


def test_an_element_of_an_array_knows_what_a_file_registers(tmp_path: Path) -> None:
    made = plan(tmp_path, algo=["none", "freeze"], plugin=write(tmp_path / "mine.py"))
    files = DataFiles(*(tmp_path / f"{name}.npz" for name in DataFiles._fields))
    rows = [row(Training(spec, files, tmp_path, True)) for spec in made.design.next_runs(made.overrides, [])]
    del ALGORITHMS["freeze"]  # as in a process that has loaded nothing yet
    plugins._loaded.clear()
    read = [training_of(json.loads(json.dumps(it))) for it in rows]
    assert [training.spec.settings.gradient_clip_algorithm for training in read] == ["none", "freeze"]


HEAD = "from ptycho_torch.plugins import *\n"
MAKE = '@register_clipping("x", threshold="", default=1.0, low=1.0, high=2.0)\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 +", r"fails, line 1: SyntaxError"),
        ("\n1 / 0", r"fails, line 2: ZeroDivisionError: division by zero"),
        ("import not_there_at_all", r"fails, line 1: ModuleNotFoundError"),
        ("raise SystemExit(3)", r"fails, line 1: SystemExit: 3"),
        ("x = 1", r"registers nothing"),
        (HEAD + MAKE.replace('"x"', '"norm"') + "def f(s, t): return s.total * 0", r"'norm' is taken by the project"),
        (HEAD + MAKE.replace('"x"', '"No!"') + "def f(s, t): return s.total * 0", r"'No!' cannot be a name"),
        (HEAD + MAKE + "def f(s, t): return 1.0", r"x answers with float to two norms"),
        (HEAD + MAKE + "def f(s, t): return s.total", r"x answers with factors 5.0; allowed: from 0 to 1"),
        (HEAD + MAKE + "def f(s, t): return s.weights", r"x answers with NoneType"),
        (HEAD + MAKE.replace("clipping", "entrywise") + "def f(g, t): return g.sum()", r"makes \(\) of a \(2, 2\)"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load_plugins([write(tmp_path / "bad.py", text)])
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "bad.py") in str(raised.value)


def test_a_missing_plugin_is_one_line_on_the_command_line(call: Any, tmp_path: Path) -> None:
    for module in ("shootout", "grid_lines_torch_runner"):
        needed = ("--train-npz", "a", "--test-npz", "b", "--output-dir", "c") if "runner" in module else ()
        done = call(module, *needed, "--plugin", "nowhere.py", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: plugin: 'nowhere.py' is not there; allowed: a Python file (.py)")
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_two_files_cannot_have_the_same_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'freeze' is taken by .*one\.py"):
        load_plugins([write(tmp_path / "one.py"), write(tmp_path / "two.py", PLUGIN + "#")])


def test_what_only_this_process_knows_cannot_be_studied(tmp_path: Path) -> None:
    from ptycho_torch.plugins import register_entrywise

    namespace: dict[str, object] = {"__name__": "__main__"}
    exec("def here(gradient, threshold): return gradient", namespace)
    register_entrywise("here", threshold="", default=1.0, low=1.0, high=1.0)(namespace["here"])  # type: ignore[type-var]
    with pytest.raises(InputError, match="registered in this process alone"):
        plan(tmp_path, algo=["none", "here"])


def test_a_network_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    from ptycho.config.config import ModelConfig
    from ptycho_torch.generators import build_generator

    load_plugins([write(tmp_path / "mine.py", PLUGIN.replace("2 * config", "3 * config"))])
    with pytest.raises(InputError, match=r"architecture: tiny makes \(1, 3, 16, 16\) of frames \(1, 1, 16, 16\)"):
        build_generator(ModelConfig(architecture="tiny", N=16))


def test_a_users_threshold_range_is_swept_like_any_other(tmp_path: Path) -> None:
    wide = PLUGIN.replace("low=1.0, high=1.0)\ndef freeze", "low=0.5, high=8.0)\ndef freeze")
    config, overrides = split_settings({"preset": "thresholds", "algo": ["none", "freeze"], "seeds": 1})
    made = make_plan(config, {**overrides, "plugin": (write(tmp_path / "mine.py", wide),)}, "")
    runs = made.design.next_runs(made.overrides, [])
    tried = sorted({s.settings.gradient_clip_val for s in runs if s.settings.gradient_clip_algorithm == "freeze"})
    assert (tried[0], tried[-1]) == (0.5, 8.0)
    assert all(math.isfinite(t) for t in tried)
