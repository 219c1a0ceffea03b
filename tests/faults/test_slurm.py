"""An array job as Slurm would run it: the script that the study writes, with the number of an element."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptycho.errors import InputError
from study.local_engine import LocalEngine
from study.slurm import SlurmEngine
from study.slurm_task import is_over, training_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*path_separator.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ROOT = Path(__file__).resolve().parents[2]
SAVING = ("--max-steps", "300", "--eval-every", "150", "--checkpoint-every", "5")


def handed_over(study: Any, call: Any, *more: str) -> Path:
    """The script that the study's command has written."""
    study.here(call, "--engine", "slurm", *more)
    (script,) = study.out.glob("slurm/*.sh")
    return script


def element(script: Path, number: int, bin: Path | None = None) -> subprocess.Popen[str]:
    """One element of an array, at work."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SLURM_ARRAY_TASK_ID": str(number), "SLURM_JOB_ID": "77"}
    environment["PATH"] = f"{bin}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_study_through_an_array(toy_study: Any, undisturbed: Any, call: Any, tmp_path: Path) -> None:
    study = toy_study(tmp_path, 1)
    script = handed_over(study, call)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text()
    assert re.findall(r"^#SBATCH --(\S+)", text, re.MULTILINE) == [
        *(f"job-name=shootout-{text.partition('shootout-')[2][:8]}", "array=0-1%2", "cpus-per-task=1", "requeue"),
        *("open-mode=append", f'output="{study.out}/slurm/%A_%a.log"', "signal=B:USR1@120"),
    ]
    done = element(script, 1)
    assert done.wait(300) == 0, done.communicate()[1]
    ((one, written),) = study.results().items()
    again = [element(script, number) for number in (1, 0)]
    assert [process.wait(300) for process in again] == [0, 0]
    assert study.results()[one] == written, "what had finished was run again"
    study.here(call, "--engine", "slurm")
    study.assert_same_numbers(undisturbed)
    states = [run.info.status for run in study.stored()]
    assert states == ["FINISHED"] * 3


@pytest.fixture(scope="module")
def saving(toy_study: Any, call: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A study whose runs save checkpoints, and its script."""
    study = toy_study(tmp_path_factory.mktemp("saving"), 1)
    return study, handed_over(study, call, *SAVING)


def test_an_element_that_slurm_ends_goes_on_from_its_checkpoint(
    saving: tuple[Any, Path], tmp_path: Path, until: Callable[[Callable[[], object]], None]
) -> None:
    study, script = saving
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho $@ > {shlex.quote(str(tmp_path / 'asked'))}\n")
    scontrol.chmod(0o755)
    process = element(script, 0, tmp_path)
    until(lambda: list(study.out.glob("runs/*/last.ckpt")) or process.poll() is not None)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(300) == 130, process.communicate()[1]
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    (folder,) = study.out.glob("runs/*")
    begun, before = json.loads((folder / "spec.json").read_text()), (folder / "steps.jsonl").read_text().splitlines()
    assert not (folder / "result.json").exists()
    again = element(script, 0)
    assert again.wait(300) == 0, again.communicate()[1]
    assert json.loads((folder / "spec.json").read_text()) == begun, "the same attempt"
    steps = [json.loads(line)["step"] for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert len(before) < len(steps)
    assert steps == sorted(set(steps))
    assert not list(study.out.glob("attempts/*"))


def test_a_run_that_is_ended_without_a_checkpoint_begins_anew_at_most_twice(saving: tuple[Any, Path]) -> None:
    study, script = saving
    training = json.loads(script.with_suffix(".json").read_text())["trainings"][1]
    folder = Path(training["folder"])
    for _ in range(3):  # as left behind by a machine that was lost
        folder.mkdir(parents=True)
        (folder / "spec.json").write_text("{}")
        is_over(study.out, training_of(training))
    assert json.loads((folder / "result.json").read_text())["outcome"] == "killed"
    assert len(list(study.out.glob("attempts/*/result.json"))) == 3


@pytest.mark.parametrize("number", ["", "2", "-1", "x"])
def test_a_number_that_no_element_has_is_refused(
    call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: str
) -> None:
    array = {"out": str(tmp_path), "elements": 2, "threads": 1, "time_limit_s": None, "trainings": []}
    (tmp_path / "array.json").write_text(json.dumps(array))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", number)
    done = call("slurm_task", "array.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: SLURM_ARRAY_TASK_ID: {number!r}; allowed: 0 to 1, as Slurm sets it\n",
    )


@pytest.mark.parametrize("name", ["a\nscancel -u me", 'a"b', "a%j", "a\\b"])
def test_a_folder_that_would_be_more_than_a_path_in_the_script_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"out: .* cannot stand in a Slurm script"):
        SlurmEngine(tmp_path / name, None, 1, 0, None, LocalEngine(1, 1, None, {}, ())).__enter__()


@pytest.mark.parametrize(("said", "queued"), [("77_1 shootout", True), ("", False)])
def test_a_study_that_slurm_still_has_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, queued: bool
) -> None:
    engine = SlurmEngine(tmp_path, None, 1, 0, None, LocalEngine(1, 1, None, {}, ()))
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\n[ "$*" = "--noheader --name {engine.name}" ] && echo "{said}"\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    if not queued:
        engine.__enter__()
        return
    with pytest.raises(InputError, match=f"Slurm still has jobs named {engine.name}"):
        engine.__enter__()


def test_a_slurm_that_gives_no_answer_is_not_taken_for_an_empty_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(InputError, match=r"engine: squeue gives no answer \(slurm_load_jobs error: .*\)"):
        SlurmEngine(tmp_path, None, 1, 0, None, LocalEngine(1, 1, None, {}, ())).__enter__()
