"""Where runs execute: a pool of worker processes on this machine.

A worker is spawned once and reused, so that torch is imported once per worker. A run that kills its
worker, or outlasts its time limit, ends with that as its outcome, and the pool goes on with the next.

What the infrastructure killed is tried again; what ended by its own doing never is, since replacing
failures would bias the failure probability that the study is there to measure.
"""

from __future__ import annotations

import collections
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import psutil

from study.divergence import Outcome, OutcomeWord
from study.pool import Job, Worker, WorkerDiedError, oom_kills

__all__ = ["Ended", "Job", "LocalEngine", "default_workers"]

ATTEMPTS = 3  # of a run whose worker is killed from outside
STARTS = 3  # of a worker that dies before it is ready, in a row
FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT}
MEMORY_PER_WORKER = 1 << 30  # of a small training; torch alone takes a third of it


class Ended(NamedTuple):
    """How a job ended: what it returned, or the outcome of the run that took its worker down.

    Attributes:
        job: the job.
        value: what it returned.
        outcome: how the run ended whose worker died; None where the job returned.
        message: the same in words.
        wall_s: time from the job's start.
        attempt: which start of the job this was, from 1.
        again: it will be started once more, so this is not its end.
    """

    job: Job
    value: Any = None
    outcome: Outcome | None = None
    message: str = ""
    wall_s: float = 0.0
    attempt: int = 1
    again: bool = False


class LocalEngine:
    """A pool of ``workers`` processes; use it as a context manager.

    Args:
        workers: trainings at a time.
        threads: CPU threads of each.
        time_limit_s: longest time for one job; None for no limit.
        environment: the environment of the workers.
        load: modules that a worker imports before its first job.
    """

    def __init__(
        self,
        workers: int,
        threads: int,
        time_limit_s: float | None,
        environment: Mapping[str, str],
        load: Sequence[str] = ("study.grid_lines_torch_runner",),
    ) -> None:
        self.workers, self.threads, self.time_limit_s = workers, threads, time_limit_s
        self._environment, self._load = dict(environment), load
        self._pool: list[Worker] = []
        self._false_starts = 0

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._pool:
            worker.end()
        self._pool = []

    def run(self, jobs: Sequence[Job]) -> Iterator[Ended]:
        """Run jobs in order as workers come free; yield each as it ends.

        A job whose worker was killed from outside is yielded with ``again`` and started once more, up to
        ``ATTEMPTS`` times. An exception that a job raises is raised here: runs turn theirs into outcomes
        themselves, so what comes through is a mistake in the input, in this program, or a disk that fails.

        Raises:
            OSError: workers cannot be started.
        """
        waiting = collections.deque((job, 1) for job in jobs)  # with the number of the attempt
        try:
            while waiting or self._busy:
                self._fill(len(waiting))
                for worker in self._idle[: len(waiting)]:
                    worker.hand_over(*waiting.popleft())
                for worker in self._stirring():
                    ended = self._look_at(worker)
                    if ended is not None:
                        yield ended
                        if ended.again:
                            waiting.appendleft((ended.job, ended.attempt + 1))
        finally:
            for worker in self._busy:
                self._drop(worker)

    @property
    def _busy(self) -> list[Worker]:
        return [worker for worker in self._pool if worker.job is not None]

    @property
    def _idle(self) -> list[Worker]:
        return [worker for worker in self._pool if worker.ready and worker.job is None]

    def _fill(self, waiting: int) -> None:
        while len(self._pool) < self.workers and len(self._pool) - len(self._busy) < waiting:
            self._pool.append(Worker.start(self._environment, self.threads, self._load))

    def _drop(self, worker: Worker) -> None:
        worker.end()
        self._pool.remove(worker)

    def _stirring(self) -> list[Worker]:
        """Workers that have something to say, have died or are out of time; waits until there is one."""
        timeout = None
        if self.time_limit_s is not None and self._busy:
            timeout = max(0.0, min(self._left(worker) for worker in self._busy))
        found = set(wait([x for worker in self._pool for x in (worker.pipe, worker.process.sentinel)], timeout))
        return [
            worker
            for worker in self._pool
            if worker.pipe in found or worker.process.sentinel in found or self._left(worker) <= 0
        ]

    def _left(self, worker: Worker) -> float:
        if self.time_limit_s is None or worker.job is None:
            return float("inf")
        return worker.since + self.time_limit_s - time.monotonic()

    def _look_at(self, worker: Worker) -> Ended | None:
        try:
            answer = worker.listen()
        except WorkerDiedError:
            return self._bury(worker)
        job = worker.job
        if job is None:
            worker.ready, self._false_starts = answer is not None, 0
            return None
        if answer is None:
            return self._cut_off(worker, job) if self._left(worker) <= 0 else None
        worker.job = None
        if answer.error is not None:
            raise answer.error
        return Ended(job, value=answer.value, wall_s=worker.age_s, attempt=worker.attempt)

    def _cut_off(self, worker: Worker, job: Job) -> Ended:
        self._drop(worker)
        message = f"longer than {self.time_limit_s:g} s"
        return Ended(job, None, Outcome(word="timeout"), message, worker.age_s, worker.attempt)

    def _bury(self, worker: Worker) -> Ended | None:
        """What the death of a worker means for its job."""
        self._drop(worker)
        if worker.job is None:
            self._count_false_start(worker)
            return None
        code, message = worker.process.exitcode or 0, f"worker process {in_words(worker)}"
        word: OutcomeWord = "killed" if -code in FROM_OUTSIDE else "error"
        if -code == signal.SIGKILL and oom_kills() > worker.ooms:
            word, message = "oom", f"{message}, for want of memory"
            for other in self._busy:
                other.ooms += 1
        again = word == "killed" and worker.attempt < ATTEMPTS
        return Ended(worker.job, None, Outcome(word=word), message, worker.age_s, worker.attempt, again)

    def _count_false_start(self, worker: Worker) -> None:
        self._false_starts += not worker.ready
        if self._false_starts >= STARTS:
            raise ChildProcessError(f"worker processes cannot be started: the last one {in_words(worker)}")


def in_words(worker: Worker) -> str:
    """How a worker process ended."""
    code = worker.process.exitcode or 0
    names = {s.value: s.name for s in signal.Signals}
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {names.get(-code, f'signal {-code}')}"


def default_workers(threads: int) -> int:
    """Trainings that fit this machine's cores at ``threads`` each, and its memory; at least one."""
    cores = len(os.sched_getaffinity(0)) // threads
    return max(1, min(cores, psutil.virtual_memory().available // MEMORY_PER_WORKER))
