"""The default engine: a pool of worker processes on this machine.

A worker is started once and reused. A run that kills its worker, or outlasts its time limit, ends with that as its
outcome, and the pool goes on with the next.

What the infrastructure killed is tried again; what ended by its own doing never is, since replacing
failures would bias the failure probability that the study is there to measure.
"""

from __future__ import annotations

import collections
import functools
import os
import signal
import time
from collections.abc import Generator, Mapping, Sequence
from multiprocessing.connection import wait

import psutil

from study.divergence import Outcome, OutcomeWord
from study.engines import ATTEMPTS, LOAD, Ended, Job
from study.gpus import VISIBLE, least_used, visible_gpus, workers_that_fit
from study.pool import Worker, WorkerDiedError, oom_kills, open_nursery
from study.settings import RunSettings, StudyConfig
from study.tracking_uri import worker_environment

STARTS = 3  # of a worker that dies before it is ready, in a row
NURSERY_DIED = 255  # exit code that Python gives a forked process of which nobody can tell any more
FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT}


class LocalEngine:
    """A pool of ``workers`` processes; use it as a context manager.

    Args:
        workers: trainings at a time.
        threads: CPU threads of each.
        time_limit_s: longest time for one job; None for no limit.
        environment: the environment of the workers.
        load: modules that a worker imports before its first job.
        gpus: names of GPUs to spread the workers over; each sees one of them.
    """

    def __init__(
        self,
        workers: int,
        threads: int,
        time_limit_s: float | None,
        environment: Mapping[str, str],
        load: Sequence[str] = LOAD,
        gpus: Sequence[str] = (),
    ) -> None:
        self.workers, self.threads, self.time_limit_s = workers, threads, time_limit_s
        self._environment, self._load, self._gpus = dict(environment), load, gpus
        self._pool: list[Worker] = []
        self._false_starts = 0

    @classmethod
    def of(cls, config: StudyConfig, settings: RunSettings, most: int) -> LocalEngine:
        """The workers of a study: no more than its first round can use."""
        gpus = () if settings.device == "cpu" else visible_gpus()
        workers = config.workers or default_workers(settings.threads, len(gpus), config.gpus_per_run)
        shared = gpus if config.gpus_per_run <= 1 else ()  # a run that takes several sees them all
        return cls(min(workers, most), settings.threads, config.time_limit, worker_environment(), gpus=shared)

    def __enter__(self) -> LocalEngine:
        if not self._open_nursery():
            self._fill(self.workers)  # they load torch all at once, also where the first jobs are few
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._pool:
            worker.end()
        self._pool = []

    def run(self, jobs: Sequence[Job]) -> Generator[Ended, None, None]:
        """Run jobs in order as workers come free; see :class:`study.engines.Engine`."""
        waiting = collections.deque((job, 1) for job in jobs)  # with the number of the attempt
        try:
            while waiting or self._busy:
                self._fill(len(waiting))
                for worker in self._idle[: len(waiting)]:
                    worker.hand_over(*waiting.popleft())
                for worker in self._stirring():
                    ended = self._look_at(worker) if worker in self._pool else None
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
            gpu = least_used(self._gpus, [worker.gpu for worker in self._pool])
            environment = self._environment if gpu is None else {**self._environment, VISIBLE: gpu}
            fork = self._open_nursery()
            try:
                self._pool.append(Worker.start(environment, self.threads, self._load, fork=fork, gpu=gpu))
            except WorkerDiedError as error:
                self._count_false_start(str(error))
                time.sleep(0.1)  # a process that is killed hangs up before it is known to be dead

    def _open_nursery(self) -> bool:
        return not self._sees_gpus and open_nursery(self.threads, self._load)

    @functools.cached_property
    def _sees_gpus(self) -> bool:
        return bool(self._gpus or visible_gpus(self._environment))

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
        code, message = worker.process.exitcode or 0, f"worker process {in_words(worker)}"
        if code == NURSERY_DIED:  # its siblings are dying; what works on a job is still heard of
            for sibling in [other for other in self._pool if other.job is None]:
                self._drop(sibling)
        if worker.job is None:
            if not worker.ready:
                self._count_false_start(f"the last one {in_words(worker)}")
            return None
        word: OutcomeWord = "killed" if -code in FROM_OUTSIDE or code == NURSERY_DIED else "error"
        if -code == signal.SIGKILL and oom_kills() > worker.ooms:
            word, message = "oom", f"{message}, for want of memory"
            for other in self._busy:
                other.ooms += 1
        again = word == "killed" and worker.attempt < ATTEMPTS
        return Ended(worker.job, None, Outcome(word=word), message, worker.age_s, worker.attempt, again)

    def _count_false_start(self, how: str) -> None:
        self._false_starts += 1
        if self._false_starts >= STARTS:
            raise ChildProcessError(f"worker processes cannot be started: {how}")


def in_words(worker: Worker) -> str:
    """How a worker process ended."""
    code = worker.process.exitcode or 0
    if code == NURSERY_DIED:
        return "is one of which nothing more is known"
    names = {s.value: s.name for s in signal.Signals}
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {names.get(-code, f'signal {-code}')}"


def default_workers(threads: int, gpus: int = 0, gpus_per_run: float = 1.0) -> int:
    """Trainings that fit this machine's free memory, its cores at ``threads`` each, and so many GPUs."""
    cores, memory_bytes = len(os.sched_getaffinity(0)), psutil.virtual_memory().available
    return workers_that_fit(cores, threads, memory_bytes, gpus, gpus_per_run)
