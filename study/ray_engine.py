"""The engine for many machines: a study's jobs as tasks of a Ray cluster.

Ray places the tasks by the CPUs and GPUs that they declare and says when a node is lost; everything else is
ours: Ray itself tries nothing again, since each attempt has to be put on record before the next begins.
"""

from __future__ import annotations

import collections
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ptycho.errors import InputError
from study.divergence import Outcome
from study.engines import ATTEMPTS, LOAD, Ended, Job
from study.gpus import runs_on
from study.local_engine import LocalEngine, default_workers
from study.ray_node import Delivery, Order, put_back, work
from study.settings import RunSettings, StudyConfig

CONNECT_S = 10.0
AHEAD = 2  # tasks submitted for each that can run, so that no node waits for the driver


class Task(NamedTuple):
    """A job that Ray has, which start of it that is, the frames that go with it, and when it was submitted."""

    job: Job
    attempt: int
    files: Mapping[Path, Any]
    since: float


class RayEngine:
    """A Ray cluster; use it as a context manager.

    Args:
        address: "local" for a cluster on this machine alone, "auto" for the one that it belongs to, or HOST:PORT.
        root: the study's folder.
        workers: trainings at a time; None for as many as the cluster holds.
        threads, gpus: CPUs and share of a GPU that each is given.
        time_limit_s: longest time for one job; None for no limit.
        here: runs the jobs that need this machine.
        load: modules that a worker imports before its first job.
    """

    def __init__(
        self,
        address: str,
        root: Path,
        workers: int | None,
        threads: int,
        gpus: float,
        time_limit_s: float | None,
        here: LocalEngine,
        load: Sequence[str] = LOAD,
    ) -> None:
        self.address, self.root, self.workers, self.threads, self.gpus = address, root, workers, threads, gpus
        self._here, self._load, self._time_limit_s = here, load, time_limit_s
        self._mark = root / f".seen-{uuid.uuid4().hex}"

    @classmethod
    def of(cls, config: StudyConfig, settings: RunSettings, out: Path) -> RayEngine:
        """The cluster of a study.

        Raises:
            InputError: Ray is not installed.
        """
        here = LocalEngine.of(config, settings, most=default_workers(settings.threads))
        gpus = 0.0 if settings.device == "cpu" else config.gpus_per_run
        return cls(config.ray_address, out, config.workers, settings.threads, gpus, config.time_limit, here)

    def __enter__(self) -> RayEngine:
        self._ray = import_ray()
        self._mark.touch()
        connect(self.address, (self.workers or default_workers(self.threads)) * self.threads)
        if not self._ray.cluster_resources().get("GPU"):
            self.gpus = 0.0
        declared = self._ray.remote(
            num_cpus=self.threads,
            num_gpus=self.gpus,
            max_retries=0,
            max_calls=0,  # Ray ends a process that had a GPU after each task otherwise
        )
        self._task = declared(work)
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()
        self._mark.unlink(missing_ok=True)

    def run(self, jobs: Sequence[Job]) -> Iterator[Ended]:
        """Run jobs in order as the cluster has room for them; see :class:`study.engines.Engine`.

        Raises:
            InputError: no node has what a run takes.
        """
        if any(job.here for job in jobs):
            self._warm_up()
        with self._here:
            yield from self._here.run([job for job in jobs if job.here])
        waiting = collections.deque((job, 1) for job in jobs if not job.here)
        tasks: dict[Any, Task] = {}
        while waiting or tasks:
            while waiting and len(tasks) < self._most():
                job, attempt = waiting.popleft()
                files = self._files(job, tasks.values())
                tasks[self._submit(job, files)] = Task(job, attempt, files, time.monotonic())
            for reference in self._ray.wait(list(tasks))[0]:
                ended = self._receive(reference, tasks.pop(reference))
                yield ended
                if ended.again:
                    waiting.appendleft((ended.job, ended.attempt + 1))

    def _warm_up(self) -> None:
        """Have the nodes load torch while frames are made here."""
        for _ in range(self._most()):
            self._submit(Job("warm-up", int, ()), {})

    def _submit(self, job: Job, files: Mapping[Path, Any]) -> Any:
        order = Order(job, self.root, self._mark, self._load, self.threads, self._time_limit_s)
        return self._task.remote(order, files)

    def _most(self) -> int:
        """Tasks to have submitted; nodes may come and go meanwhile."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        room = sum(self._room(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes)
        if not room:
            raise InputError(
                f"ray_address: no node of {self.address} has {self.threads} CPUs and {self.gpus:g} GPUs for one run; "
                "allowed: fewer --threads, a smaller --gpus-per-run, or other nodes"
            )
        if self.workers is None or self.address == "local":  # a cluster of our own has no more CPUs than that
            return AHEAD * room
        return min(self.workers, room)

    def _room(self, cpus: float, gpus: float) -> int:
        by_cpus = int(cpus // self.threads)
        return min(by_cpus, runs_on(int(gpus), self.gpus)) if self.gpus else by_cpus

    def _files(self, job: Job, tasks: Iterable[Task]) -> Mapping[Path, Any]:
        """What a job reads, in the object store as long as a task has need of it."""
        there = {path: reference for task in tasks for path, reference in task.files.items()}
        return {path: there[path] if path in there else self._ray.put(path.read_bytes()) for path in job.reads}

    def _receive(self, reference: Any, task: Task) -> Ended:
        errors = self._ray.exceptions
        try:
            delivery: Delivery = self._ray.get(reference)
        except errors.RayTaskError as error:  # what the job raised, or what our own code on the node did
            raise error.cause from None
        except errors.OutOfMemoryError:
            return self._lost(task, Outcome(word="oom"), "ended by Ray for want of memory on its node")
        except errors.RayError as error:
            return self._lost(task, Outcome(word="killed"), f"lost with its node ({type(error).__name__})")
        for folder, written in zip(task.job.folders, delivery.written, strict=False):
            put_back(folder, written)
        ended = delivery.ended
        return ended._replace(attempt=task.attempt, again=ended.again and task.attempt < ATTEMPTS)

    def _lost(self, task: Task, outcome: Outcome, message: str) -> Ended:
        again = outcome.word == "killed" and task.attempt < ATTEMPTS
        return Ended(task.job, None, outcome, message, time.monotonic() - task.since, task.attempt, again)


def import_ray() -> Any:
    """Ray, without what it would say and send.

    Raises:
        InputError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns that this will be the default
    try:
        import ray
    except ImportError:
        raise InputError("engine: 'ray' needs Ray; pip install -e '.[ray]' in the checkout") from None
    return ray


def connect(address: str, cpus: int) -> None:
    """Start a cluster of so many CPUs on this machine, or join one.

    Raises:
        InputError: no cluster is there.
    """
    import ray

    require_answer(address)
    own: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False} if address == "local" else {}
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise InputError(
            f"ray_address: {address!r} cannot be reached ({why}); allowed: local, auto, HOST:PORT"
        ) from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own there


def require_answer(address: str) -> None:
    """Refuse a HOST:PORT at which nothing listens; Ray itself would try for minutes.

    Raises:
        InputError: nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"ray_address: {address!r} does not answer ({error}); allowed: local, auto, HOST:PORT"
        ) from None
