"""Where runs execute: a pool of worker processes on this machine.

A worker is spawned once and reused, so that torch is imported once per worker. A run that kills its
worker, or outlasts its time limit, ends with that as its outcome, and the pool goes on with the next.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import TimeoutError as RunTimeout
from typing import Any, NamedTuple

from pebble import ProcessExpired, ProcessPool

from study.divergence import Outcome

POLL_S = 0.5


class Job(NamedTuple):
    """One call in a worker: ``function(*arguments)``, all of it picklable and small."""

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Ended(NamedTuple):
    """How a job ended: what it returned, or the outcome of the run that took its worker down."""

    job: Job
    value: Any = None
    outcome: Outcome | None = None
    message: str = ""
    wall_s: float = 0.0


class LocalEngine:
    """A pool of ``workers`` processes; use it as a context manager.

    Args:
        workers: trainings at a time.
        threads: CPU threads of each.
        time_limit_s: longest time for one job; None for no limit.
        environment: the environment of the workers.
    """

    def __init__(self, workers: int, threads: int, time_limit_s: float | None, environment: Mapping[str, str]) -> None:
        self.workers, self.time_limit_s = workers, time_limit_s
        self._pool = ProcessPool(
            max_workers=workers,
            initializer=start_worker,
            initargs=(dict(environment), threads),
            context=multiprocessing.get_context("spawn"),
        )

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self._pool.close()
        else:
            self._pool.stop()
        self._pool.join()

    def run(self, jobs: Sequence[Job], on_wait: Callable[[], None] = lambda: None) -> Iterator[Ended]:
        """Run jobs in order as workers come free; yield each as it ends.

        An exception that a job raises is raised here: runs turn theirs into outcomes themselves, so
        what comes through is a mistake in the input or in this program.
        """
        started = {job.key: time.monotonic() for job in jobs}
        futures: dict[Future[Any], Job] = {
            self._pool.schedule(job.function, args=job.arguments, timeout=self.time_limit_s): job for job in jobs
        }
        pending: set[Future[Any]] = set(futures)
        while pending:
            done, pending = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
            on_wait()
            for future in done:
                job = futures[future]
                try:
                    yield Ended(job, value=future.result())
                except RunTimeout:
                    yield self._lost(job, Outcome(word="timeout"), f"longer than {self.time_limit_s:g} s", started)
                except ProcessExpired as error:
                    message = f"worker process ended with exit code {error.exitcode}"
                    yield self._lost(job, Outcome(word="killed"), message, started)

    @staticmethod
    def _lost(job: Job, outcome: Outcome, message: str, started: Mapping[str, float]) -> Ended:
        return Ended(job, outcome=outcome, message=message, wall_s=time.monotonic() - started[job.key])


def start_worker(environment: dict[str, str], threads: int) -> None:
    """Prepare a fresh worker: its environment, its threads, and torch loaded once for all its runs."""
    os.environ.clear()
    os.environ.update(environment)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    import torch

    import study.grid_lines_torch_runner  # noqa: F401

    torch.set_num_threads(threads)


def default_workers(threads: int) -> int:
    """Trainings that fit this machine's cores at ``threads`` each; at least one."""
    return max(1, len(os.sched_getaffinity(0)) // threads)
