"""One worker process: started once, used for many jobs, gone as soon as the process that started it is gone.

On Linux workers are forked from one process, the nursery, that has loaded torch and Lightning for all of them: the
second worker, and one that replaces a dead one, is there at once. A process that is forked cannot use CUDA if
anything before has as much as looked for it, so a worker with a GPU is spawned, and so are all on other systems.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from ptycho.errors import InputError
from study.engines import Job

OOM_COUNTER = Path("/proc/vmstat")


class Answer(NamedTuple):
    """What a worker says: the value that a job returned, or the exception that it raised."""

    value: Any = None
    error: Exception | None = None


class WorkerDiedError(Exception):
    """A worker process is no more."""


class JobError(RuntimeError):
    """An exception that a job raised and nobody expects; its text is the traceback."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Worker:
    """A worker process as the driver sees it.

    Attributes:
        process: the process.
        pipe: the driver's end of the connection to it.
        ready: whether it has loaded what jobs need.
        job: what it works on, if anything.
        attempt: which start of this job that is, from 1.
        since: time of the monotonic clock at which the job was handed over.
        ooms: the kernel's count of out-of-memory kills at that time.
        gpu: the GPU that it sees, if it was given one.
    """

    process: multiprocessing.process.BaseProcess
    pipe: Connection
    ready: bool = False
    job: Job | None = None
    attempt: int = 0
    since: float = 0.0
    ooms: int = 0
    gpu: str | None = None

    @classmethod
    def start(
        cls, environment: Mapping[str, str], threads: int, load: Sequence[str], *, fork: bool, gpu: str | None = None
    ) -> Worker:
        """Start a process, forked from the nursery or new; it says when it is ready.

        Raises:
            WorkerDiedError: it is no more already.
        """
        context = multiprocessing.get_context("forkserver") if fork else multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, dict(environment), threads, tuple(load))
        process = context.Process(target=serve, args=arguments, name="study-worker", daemon=True)
        try:
            with _without_main():
                process.start()
        except (EOFError, ConnectionError):
            raise WorkerDiedError("the process that workers are forked from ended") from None
        theirs.close()
        return cls(process=process, pipe=ours, gpu=gpu)

    def hand_over(self, job: Job, attempt: int) -> None:
        """Start a job; a worker that has died meanwhile is found out when it is listened to."""
        self.job, self.attempt = job, attempt
        self.since, self.ooms = time.monotonic(), oom_kills()
        with contextlib.suppress(ConnectionError):
            self.pipe.send(job)

    @property
    def age_s(self) -> float:
        """Time since the job was handed over."""
        return time.monotonic() - self.since

    def listen(self) -> Answer | None:
        """What it says; None when it has nothing to say.

        Raises:
            WorkerDiedError: it is no more, and has left no answer.
        """
        gone = wait([self.process.sentinel], 0)  # asked first: what it said before it died is still in the pipe
        try:
            if self.pipe.poll():
                return self.pipe.recv()
        except (EOFError, OSError):
            gone = [self.process.sentinel]
        if gone:
            self.process.join()
            raise WorkerDiedError
        return None

    def end(self) -> None:
        """Kill the process, whatever it does, and wait until it is gone."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def open_nursery(threads: int, load: Sequence[str]) -> bool:
    """Have the nursery load modules, if it has not yet, without waiting for it; whether workers can come from it.

    A process has one nursery as long as it lives. How many threads numpy's libraries take is settled there.
    """
    global _nursery_threads
    if sys.platform != "linux" or _nursery_threads not in (None, threads):
        return False
    if _nursery_threads is None:
        forkserver.set_forkserver_preload(["study.collector_off", *load, "study.frozen"])
        _nursery_threads = threads
    with _changed(os.environ, thread_limits(threads)), _deaf_to_ctrl_c():
        forkserver.ensure_running()
    return True


_nursery_threads: int | None = None


def thread_limits(threads: int) -> dict[str, str]:
    """Environment variables that numerical libraries read when they are loaded."""
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))


@contextlib.contextmanager
def _changed(environment: MutableMapping[str, str], changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: environment.get(name) for name in changes}
    environment.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del environment[name]
            else:
                environment[name] = value


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Start a process that Ctrl-C does not reach; possible only from the main thread, harmless elsewhere."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def serve(pipe: Connection, environment: dict[str, str], threads: int, load: Sequence[str]) -> None:
    """A worker's life: load what trains, unless the nursery has, then take job after job until the driver hangs up.

    Ctrl-C reaches every process of a terminal; what it means is the driver's business.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_the_driver, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    os.environ.update(thread_limits(threads))
    for module in load:
        importlib.import_module(module)
    with contextlib.suppress(EOFError, ConnectionError):
        pipe.send(Answer())
        while True:
            _answer(pipe, pipe.recv())


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Let a spawned process leave the program's main file alone: jobs need nothing of it.

    It would run again there, and a script that calls a study would call it once more in every worker.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _answer(pipe: Connection, job: Job) -> None:
    try:
        answer = Answer(value=job.function(*job.arguments))
    except (InputError, OSError) as error:
        answer = Answer(error=error)
    except Exception:  # it is raised again in the driver  # noqa: BLE001
        answer = Answer(error=JobError(traceback.format_exc()))
    pipe.send(answer)


def _die_with_the_driver() -> None:
    """Or with the nursery, without which the driver would not hear of this process any more."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    ends = [driver.sentinel]
    with contextlib.suppress(AttributeError, OSError):  # before Linux 5.3, and elsewhere, nobody can be asked
        ends.append(os.pidfd_open(os.getppid()))
    wait(ends)
    os._exit(1)


def oom_kills() -> int:
    """How often the kernel has killed for want of memory, of the machine or a control group; 0 where it is silent."""
    with contextlib.suppress(OSError):
        for line in OOM_COUNTER.read_text(encoding="ascii").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
