"""The worker pool: runs end in real processes, some of them badly, and the others go on."""

from __future__ import annotations

import os
import signal
import time

import pytest

from ptycho.errors import InputError
from study.engine import Ended, Job, LocalEngine, default_workers
from study.tracking import worker_environment


def double(x: int) -> tuple[int, int]:
    return 2 * x, os.getpid()


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(_: int) -> None:
    time.sleep(3600)


def refuse(_: int) -> None:
    raise InputError("data: nothing there")


def see(name: str) -> str | None:
    return os.environ.get(name)


@pytest.fixture(scope="module")
def engine():
    with LocalEngine(2, 1, None, {**worker_environment(), "SEEN_BY_WORKERS": "yes"}) as pool:
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
    jobs = [Job("a", double, (1,)), Job("dies", die, (0,)), *(Job(str(k), double, (k,)) for k in range(4))]
    ended = by_key(list(engine.run(jobs)))
    assert len(ended) == 6
    outcome = ended["dies"].outcome
    assert outcome is not None
    assert outcome.word == "killed"
    assert "exit code" in ended["dies"].message
    assert all(item.outcome is None for key, item in ended.items() if key != "dies")


def test_bad_input_found_in_a_worker_is_bad_input_here(engine: LocalEngine) -> None:
    with pytest.raises(InputError, match="data: nothing there"):
        list(engine.run([Job("x", refuse, (0,))]))


def test_workers_get_the_environment_they_are_given(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOT_FOR_WORKERS", "1")
    ended = by_key(list(engine.run([Job(n, see, (n,)) for n in ("SEEN_BY_WORKERS", "NOT_FOR_WORKERS", "OMP_NUM_THREADS")])))
    assert ended["SEEN_BY_WORKERS"].value == "yes"
    assert ended["NOT_FOR_WORKERS"].value is None
    assert ended["OMP_NUM_THREADS"].value == "1"


def test_a_hang_ends_at_the_time_limit() -> None:
    with LocalEngine(1, 1, 1.0, worker_environment()) as pool:
        ended = by_key(list(pool.run([Job("hangs", hang, (0,)), Job("after", double, (3,))])))
    outcome = ended["hangs"].outcome
    assert outcome is not None
    assert outcome.word == "timeout"
    assert ended["after"].value[0] == 6


def test_workers_share_the_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert default_workers(1) == cores
    assert default_workers(10 * cores) == 1
