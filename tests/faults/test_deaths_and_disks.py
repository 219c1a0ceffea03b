"""One study that everything happens to, and that ends with the numbers of one that nothing happened to.

Each fault is made while the study trains, once it has finished at least one run more; the tests go on in the
same folder, in order.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.processes import workers_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*path_separator.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
Until = Callable[[Callable[[], object]], None]
ALONE = ("--workers", "1")  # where a second worker would show nothing more
KILLS = int(os.environ.get("RANDOM_KILLS", "1"))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small disk of its own where that can be had, else a folder."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    yield folder
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def study(disk: Path, toy_study: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_study(tmp_path_factory.mktemp("study"), 10, out=disk / "out")


def needs_a_disk(disk: Path) -> None:
    if not disk.is_mount():
        pytest.skip("no disk of its own can be mounted here")


def test_a_killed_worker_is_replaced_and_its_training_tried_again_and_a_second_start_is_refused(
    study: Any, until: Until
) -> None:
    process = study.start()
    study.after_a_run(process)
    for worker in workers_of(process.pid):
        worker.kill()
    until(lambda: list(study.out.glob("attempts/*/result.json")))
    study.after_a_run(process)
    process.send_signal(signal.SIGSTOP)  # so that it is still at work, however slow the second one starts
    second = study.start()
    refused = second.communicate(timeout=240)[1]
    assert second.returncode == 2
    assert refused.count("\n") == 1
    assert "another process is sending this study's runs" in refused
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    status, stderr = study.end_of(process)
    assert (status, "Traceback" in stderr) == (130, False), stderr


def test_ctrl_c_finishes_cleanly(study: Any) -> None:
    process = study.start(*ALONE)
    study.after_a_run(process)
    process.send_signal(signal.SIGINT)
    status, stderr = study.end_of(process)
    assert (status, "Traceback" in stderr) == (130, False), stderr
    assert "interrupted; everything finished so far is kept" in stderr
    assert len(pd.read_csv(study.out / "runs.csv")) == len(study.results())
    assert not [run for run in study.stored() if run.info.status == "RUNNING"]


def test_ctrl_c_twice_ends_now(study: Any) -> None:
    process = study.start(*ALONE)
    study.after_a_run(process)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("stopping:"):
            break
    process.send_signal(signal.SIGINT)
    status, stderr = study.end_of(process)
    assert (status, "Traceback" in stderr) == (130, False), stderr


def test_a_full_disk_stops_the_study_with_one_line(study: Any, disk: Path) -> None:
    needs_a_disk(disk)
    process, kept = study.start(*ALONE), study.results()
    study.after_a_run(process)
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while process.poll() is None:
            try:
                file.write(b"\0" * 4096)
            except OSError:
                continue
    status, stderr = study.end_of(process)
    filler.unlink()
    assert status == 1, stderr
    assert "Traceback" not in stderr
    assert "No space left on device; everything finished so far is kept" in stderr
    assert kept.items() <= study.results().items()


def test_a_disk_that_turns_read_only_stops_the_study_with_one_line(study: Any, disk: Path) -> None:
    needs_a_disk(disk)
    process = study.start(*ALONE)
    study.after_a_run(process)
    # what is open for writing keeps a disk from being remounted, so the study is laid over itself
    subprocess.run(["mount", "--bind", str(study.out), str(study.out)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(study.out)], check=True)
    try:
        status, stderr = study.end_of(process)
    finally:
        subprocess.run(["umount", "--lazy", str(study.out)], check=True)
    assert status == 1, stderr
    assert "Traceback" not in stderr
    assert "Read-only file system; everything finished so far is kept" in stderr


def test_a_data_file_that_vanishes_stops_the_study_with_one_line(study: Any) -> None:
    process = study.start(*ALONE)
    study.after_a_run(process)
    for path in (study.out / "data").rglob("*.npz"):
        path.unlink()
    status, stderr = study.end_of(process)
    assert status == 2, stderr
    assert "Traceback" not in stderr
    assert ".npz" in stderr.splitlines()[-1]


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_driver_killed_at_a_random_moment(study: Any, kill: int) -> None:
    """``RANDOM_KILLS=20`` makes twenty of them."""
    process = study.start(*ALONE)
    try:
        process.wait(timeout=random.Random(kill).uniform(0.5, 12.0))
    except subprocess.TimeoutExpired:
        process.kill()
    status, _ = study.end_of(process)
    assert status in (0, -signal.SIGKILL)


def test_nothing_is_lost_and_nothing_is_doubled(study: Any, undisturbed: Any, call: Any) -> None:
    kept = study.results()
    study.here(call)
    assert kept.items() <= study.results().items()
    study.assert_same_numbers(undisturbed)
    for name in ("spec.json", "steps.jsonl", "evals.jsonl"):
        assert len(list(study.out.glob(f"runs/*/{name}"))) == 20
    assert not study.steps().duplicated(["run_id", "step"]).any()


def test_the_store_has_every_run_once_and_every_killed_attempt(study: Any) -> None:
    found = study.stored()
    assert not [run for run in found if run.info.status == "RUNNING"]
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    finished = [run.data.tags["study.run_id"] for run in children if run.info.status == "FINISHED"]
    assert sorted(finished) == sorted(study.results())
    assert len([run for run in found if "mlflow.parentRunId" not in run.data.tags]) == 1
    killed = {run.data.tags.get("study.attempt") for run in children if run.info.status == "KILLED"}
    kept = list(study.out.glob("attempts/*/spec.json"))
    assert {json.loads(path.read_text())["attempt"] for path in kept} <= killed
