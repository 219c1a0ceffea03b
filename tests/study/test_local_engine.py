"""The worker pool: runs end in real processes, some of them badly, and the others go on."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from ptycho.errors import InputError
from study.engines import Ended, Job
from study.local_engine import LocalEngine, default_workers
from study.pool import JobError, Worker, open_nursery

ENVIRONMENT = dict(os.environ)


def double(x: int) -> tuple[int, int]:
    return 2 * x, os.getpid()


def end_by(way: int) -> None:
    os.kill(os.getpid(), way)


def die_the_first_time(mark: str) -> str:
    if not Path(mark).exists():
        Path(mark).touch()
        end_by(signal.SIGKILL)
    return "survived"


def hang(_: int) -> None:
    time.sleep(3600)


def refuse(_: int) -> None:
    raise InputError("data: nothing there")


def loaded(name: str) -> bool:
    return name in sys.modules


def see(name: str) -> str | None:
    return os.environ.get(name)


def parent(_: int) -> int:
    return os.getppid()


def collected(_: int) -> tuple[int, bool]:
    return gc.get_freeze_count(), gc.isenabled()


def kill_the_parent_the_first_time(mark: str) -> str:
    path = Path(mark)
    if not path.exists():
        path.write_text(str(os.getpid()))
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(3600)
    return path.read_text()


def lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def ends(pid: int) -> bool:
    end = time.monotonic() + 20
    while lives(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not lives(pid)


@pytest.fixture(scope="module")
def engine():
    with LocalEngine(2, 1, None, {**ENVIRONMENT, "SEEN_BY_WORKERS": "yes"}, ()) as pool:
        yield pool


def by_key(ended: list[Ended]) -> dict[str, Ended]:
    return {item.job.key: item for item in ended}


def test_jobs_run_in_few_processes_that_are_reused(engine: LocalEngine) -> None:
    ended = by_key(list(engine.run([Job(str(k), double, (k,)) for k in range(8)])))
    assert [ended[str(k)].value[0] for k in range(8)] == [2 * k for k in range(8)]
    workers = {item.value[1] for item in ended.values()}
    assert os.getpid() not in workers
    assert len(workers) <= 2


def test_a_worker_that_is_killed_takes_only_its_run_with_it(engine: LocalEngine) -> None:
    jobs = [
        Job("a", double, (1,)),
        Job("dies", end_by, (signal.SIGKILL,)),
        *(Job(str(k), double, (k,)) for k in range(4)),
    ]
    ended = list(engine.run(jobs))
    deaths = [item for item in ended if item.job.key == "dies"]
    assert [(item.attempt, item.again) for item in deaths] == [(1, True), (2, True), (3, False)]
    assert {item.outcome.word for item in deaths if item.outcome} == {"killed"}
    assert all("was ended by SIGKILL" in item.message for item in deaths)
    others = [item for item in ended if item.job.key != "dies"]
    assert sorted(item.value[0] for item in others) == [0, 2, 2, 4, 6]


def test_a_run_that_is_killed_once_is_tried_again(engine: LocalEngine, tmp_path: Path) -> None:
    (job, again) = list(engine.run([Job("dies once", die_the_first_time, (str(tmp_path / "tried"),))]))
    assert job.again
    assert (again.value, again.attempt, again.outcome) == ("survived", 2, None)


@pytest.mark.parametrize("way", [signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE])
def test_a_crash_of_its_own_is_a_result(engine: LocalEngine, way: signal.Signals) -> None:
    (ended,) = list(engine.run([Job("crashes", end_by, (way,))]))
    assert ended.outcome is not None
    assert (ended.outcome.word, ended.again) == ("error", False)
    assert way.name in ended.message


def test_an_exit_is_a_result(engine: LocalEngine) -> None:
    (ended,) = list(engine.run([Job("exits", os._exit, (3,))]))
    assert ended.outcome is not None
    assert (ended.outcome.word, ended.message) == ("error", "worker process ended with exit code 3")


def test_an_unexpected_exception_comes_with_its_traceback(engine: LocalEngine) -> None:
    with pytest.raises(JobError, match=r"in double\n(.|\n)*TypeError: unsupported operand"):
        list(engine.run([Job("x", double, (None,))]))


@pytest.mark.parametrize("gpus", ["", "0"])
def test_workers_that_cannot_start_end_the_study(gpus: str, capfd: pytest.CaptureFixture[str]) -> None:
    environment: dict[str, Any] = {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": gpus, "NOT_TEXT": 3}
    with (
        LocalEngine(1, 1, None, environment, ()) as pool,
        pytest.raises(ChildProcessError, match="cannot be started: the last one ended with exit code 1"),
    ):
        list(pool.run([Job("x", double, (1,))]))
    assert not gpus or "str expected, not int" in capfd.readouterr().err  # a forked one writes where its origin does


def test_bad_input_found_in_a_worker_is_bad_input_here(engine: LocalEngine) -> None:
    with pytest.raises(InputError, match="data: nothing there"):
        list(engine.run([Job("x", refuse, (0,))]))


def test_workers_get_the_environment_they_are_given(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOT_FOR_WORKERS", "1")
    ended = by_key(
        list(engine.run([Job(n, see, (n,)) for n in ("SEEN_BY_WORKERS", "NOT_FOR_WORKERS", "OMP_NUM_THREADS")]))
    )
    assert ended["SEEN_BY_WORKERS"].value == "yes"
    assert ended["NOT_FOR_WORKERS"].value is None
    assert ended["OMP_NUM_THREADS"].value == "1"


def test_workers_come_from_one_process_that_ctrl_c_does_not_reach(engine: LocalEngine) -> None:
    handler = signal.getsignal(signal.SIGINT)
    jobs = [
        Job("loaded", collected, (0,)),
        Job("a", parent, (0,)),
        Job("dies", end_by, (signal.SIGSEGV,)),
        Job("b", parent, (0,)),
        Job("c", parent, (0,)),
    ]
    ended = by_key(list(engine.run(jobs)))
    (nursery,) = {ended[key].value for key in "abc"}
    assert psutil.Process(nursery).ppid() == os.getpid()
    left_alone, looked_at = ended["loaded"].value
    assert left_alone > 0, "objects that no collection looks at"
    assert looked_at, "those of a run are collected"
    ignored = re.search(r"SigIgn:\s+(\w+)", Path(f"/proc/{nursery}/status").read_text())
    assert ignored is not None
    assert int(ignored[1], 16) & 1 << (signal.SIGINT - 1)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_worker_is_not_forked_where_there_are_gpus() -> None:
    with LocalEngine(1, 1, None, {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": "0"}, ()) as pool:
        (ended,) = pool.run([Job("x", parent, (0,))])
    assert ended.value == os.getpid()


def test_a_worker_whose_origin_is_killed_dies_with_it_and_its_run_is_tried_again(
    engine: LocalEngine, tmp_path: Path
) -> None:
    mark = tmp_path / "tried"
    first, again = engine.run([Job("orphan", kill_the_parent_the_first_time, (str(mark),))])
    assert first.outcome is not None
    assert (first.outcome.word, first.again, again.value) == ("killed", True, mark.read_text())
    assert "of which nothing more is known" in first.message
    assert ends(int(again.value))


def test_a_worker_does_not_outlive_its_origin_though_the_driver_holds_on_to_it() -> None:
    assert open_nursery(1, ())
    worker = Worker.start(ENVIRONMENT, 1, (), fork=True)
    assert worker.pipe.poll(60)
    pid = worker.process.pid
    assert pid is not None
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    assert ends(pid)
    worker.end()


def test_a_hang_ends_at_the_time_limit() -> None:
    with LocalEngine(1, 1, 5.0, ENVIRONMENT, ()) as pool:
        ended = by_key(list(pool.run([Job("hangs", hang, (0,)), Job("after", double, (3,))])))
    outcome = ended["hangs"].outcome
    assert outcome is not None
    assert outcome.word == "timeout"
    assert ended["after"].value[0] == 6


def test_the_trainings_modules_are_loaded_before_the_first_job() -> None:
    with LocalEngine(1, 1, None, ENVIRONMENT) as pool:
        (ended,) = pool.run([Job("x", loaded, ("torch",))])
    assert ended.value


def test_workers_share_the_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert default_workers(1) == cores
    assert default_workers(10 * cores) == 1
