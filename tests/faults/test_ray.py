"""A study on a real Ray cluster of two nodes, one of which is killed at work and does not see the study's folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ptycho.errors import InputError
from study.divergence import Outcome
from study.engines import Job
from study.local_engine import LocalEngine
from study.ray_engine import RayEngine, connect, import_ray
from study.ray_node import SCRATCH, fetch, moved, put_back, take_away, working_folder
from tests.processes import is_worker

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*path_separator.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class TwoNodes:
    """A Ray cluster on this machine: a head, and a second node with a folder of its own."""

    def __init__(self, scratch: Path) -> None:
        import_ray()
        from ray.cluster_utils import Cluster

        self.scratch = scratch
        args = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20}
        self.cluster = Cluster(initialize_head=True, head_node_args=args)
        self.second = self.cluster.add_node(**args, env_vars={SCRATCH: str(scratch)})

    def trainings_on_the_second(self) -> list[psutil.Process]:
        """The worker processes of the second node."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                here = process.environ().get(SCRATCH) == str(self.scratch)
                if here and is_worker(process):
                    found.append(process)
        return found

    def kill_the_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    made = TwoNodes(tmp_path_factory.mktemp("scratch"))
    yield made
    made.cluster.shutdown()


@pytest.fixture(scope="module")
def study(toy_study: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_study(tmp_path_factory.mktemp("study"), 5)


def test_a_node_that_is_killed_costs_nothing(
    nodes: TwoNodes, study: Any, undisturbed: Any, until: Callable[[Callable[[], object]], None]
) -> None:
    process = study.start("--engine", "ray", "--ray-address", nodes.cluster.address)
    study.after_a_run(process)
    until(lambda: nodes.trainings_on_the_second() or process.poll() is not None)
    study.after_a_run(process)
    trainings = nodes.trainings_on_the_second()  # one at work; Ray may keep another one waiting
    assert trainings
    for training in trainings:
        training.send_signal(signal.SIGSTOP)
    study.after_a_run(process)  # the next training of that node, at the latest, is at a standstill now
    kept = study.results()
    nodes.kill_the_second()
    for training in trainings:
        training.send_signal(signal.SIGCONT)
    until(lambda: not nodes.trainings_on_the_second())
    status, stderr = study.end_of(process)
    assert (status, "Traceback" in stderr) == (0, False), stderr
    assert kept.items() <= study.results().items(), "what had finished was run again"
    study.assert_same_numbers(undisturbed)


def test_the_lost_attempt_is_on_record(study: Any) -> None:
    (lost,) = study.out.glob("attempts/*/result.json")
    assert json.loads(lost.read_text())["outcome"] == "killed"
    assert "lost with its node" in json.loads(lost.read_text())["message"]
    states = [run.info.status for run in study.stored() if "mlflow.parentRunId" in run.data.tags]
    assert (states.count("FINISHED"), states.count("KILLED"), len(states)) == (10, 1, 11)


def test_a_node_without_the_folder_is_sent_the_frames_once_and_keeps_no_runs(nodes: TwoNodes) -> None:
    (cache,) = nodes.scratch.glob("*/*")
    assert list(cache.glob("data/*/train.npz"))
    assert len(list(cache.glob("runs/*"))) <= 1  # of the training that was killed


def test_the_driver_leaves_nothing_behind(study: Any) -> None:
    assert not list(study.out.glob(".seen-*"))


@pytest.fixture(scope="module")
def engine(nodes: TwoNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayEngine]:
    here = LocalEngine(1, 1, None, os.environ, ())
    root = tmp_path_factory.mktemp("root")
    with RayEngine(nodes.cluster.address, root, None, 1, 1.0, 4.0, here, ()) as made:
        yield made


def test_outcomes_are_those_of_the_local_engine(engine: RayEngine) -> None:
    jobs = [
        Job("crash", signal.raise_signal, (signal.SIGSEGV,)),
        Job("kill", signal.raise_signal, (signal.SIGKILL,)),
        Job("hang", signal.pause, ()),
        Job("exit", os._exit, (3,)),
        Job("fine", abs, (-1,)),
    ]
    ended = list(engine.run(jobs))
    assert [(e.attempt, e.again) for e in ended if e.job.key == "kill"] == [(1, True), (2, True), (3, False)]
    last = {e.job.key: e for e in ended}
    outcomes = {key: e.outcome for key, e in last.items()}
    words = {"crash": "error", "kill": "killed", "hang": "timeout", "exit": "error"}
    assert outcomes == {key: Outcome(word=word) for key, word in words.items()} | {"fine": None}
    assert last["fine"].value == 1
    assert last["crash"].message == "worker process was ended by SIGSEGV"


def test_a_job_that_needs_this_machine_runs_beside_the_driver(engine: RayEngine) -> None:
    (here,) = engine.run([Job("here", os.getppid, (), here=True)])
    (there,) = engine.run([Job("there", os.getppid, ())])
    drivers = [psutil.Process(ended.value).ppid() for ended in (here, there)]  # workers come from a process of theirs
    assert drivers[0] == os.getpid() != drivers[1]


def test_bad_input_found_on_a_node_is_bad_input_here(engine: RayEngine) -> None:
    with pytest.raises(InputError, match=r"^data: nothing there$") as caught:
        list(engine.run([Job("x", refuse, ())]))
    assert type(caught.value) is InputError


def refuse() -> None:
    raise InputError("data: nothing there")


def test_a_run_that_no_node_can_take_is_refused(engine: RayEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "threads", 1000)
    with pytest.raises(InputError, match=r"no node of .* has 1000 CPUs and 0 GPUs for one run; allowed"):
        list(engine.run([Job("x", abs, (-1,))]))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "127.0.0.1:99999"])
def test_an_address_without_a_cluster_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=f"ray_address: '{address}' .*; allowed: local, auto, HOST:PORT") as caught:
        connect(address, 1)
    assert "\n" not in str(caught.value)


def test_without_ray_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"engine: 'ray' needs Ray; pip install"):
        import_ray()


def test_paths_of_the_study_become_paths_of_the_node(tmp_path: Path) -> None:
    old, new = Path("/a/study"), Path("/b/node")
    job = Job("x", print, ((old / "runs/1", 3), Path("/elsewhere")), reads=(old / "data/f",))
    there = moved(job, old, new)
    assert there == Job("x", print, ((new / "runs/1", 3), Path("/elsewhere")), reads=(new / "data/f",))
    assert isinstance(there, Job)


def test_a_node_works_in_no_folder_that_others_can_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCRATCH, str(tmp_path))
    mine = working_folder(tmp_path / "study", tmp_path / "mark")
    assert mine.parent.stat().st_mode & 0o077 == 0
    mine.parent.chmod(0o777)
    with pytest.raises(InputError, match="open to others"):
        working_folder(tmp_path / "study", tmp_path / "mark")


def test_files_are_fetched_once_and_folders_taken_back(tmp_path: Path) -> None:
    asked = []
    for _ in range(2):
        fetch(tmp_path / "data" / "f", lambda: asked.append(1) or b"frames")
    assert (asked, (tmp_path / "data" / "f").read_bytes()) == ([1], b"frames")
    there, here = tmp_path / "there", tmp_path / "runs" / "here"
    there.mkdir()
    (there / "steps.jsonl").write_bytes(b"steps")
    here.mkdir(parents=True)
    (here / "old").touch()
    put_back(here, take_away(there))
    assert not there.exists()
    assert {path.name: path.read_bytes() for path in here.iterdir()} == {"steps.jsonl": b"steps"}
    put_back(here, take_away(there))
    assert here.exists(), "of a run that wrote nothing, nothing is taken away"
