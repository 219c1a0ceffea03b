"""What happens on a node of a Ray cluster: a training in a process of its own, beside the files that it needs.

A Ray task is one place of the local engine on another machine: it holds a worker process, hands it a job and
reports how that ended. Crashes, time limits and lack of memory are therefore told apart as they are everywhere.

Where the node does not see the study's folder, it works in a folder of its own: the frames come through Ray's
object store, once to each node, and what a training has written goes back with its result.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ptycho.errors import InputError
from study.engines import Ended, Job
from study.gpus import VISIBLE
from study.local_engine import LocalEngine
from study.records import write_bytes
from study.tracking_uri import worker_environment

SCRATCH = "STUDY_SCRATCH"  # names the node's own folder, and asks for it even where the study's is seen
Written = dict[str, bytes]  # a folder's files


class Order(NamedTuple):
    """What the driver sends to a node.

    Attributes:
        job: the job, with paths of the driver's machine.
        root: the study's folder there.
        mark: a file in it that only this study's driver has made.
        load, threads, time_limit_s: as ``LocalEngine`` has them.
    """

    job: Job
    root: Path
    mark: Path
    load: Sequence[str]
    threads: int
    time_limit_s: float | None


class Delivery(NamedTuple):
    """How a job ended, and what it wrote where the driver cannot see it: the files of each of its folders."""

    ended: Ended
    written: tuple[Written, ...] = ()


def work(order: Order, files: Mapping[Path, Any]) -> Delivery:
    """Do a job on this node.

    Args:
        order: the job and how to do it.
        files: what the job reads, each as a reference into the object store.
    """
    import ray

    load: Any = ray.get
    root = working_folder(order.root, order.mark)
    if root == order.root:
        return Delivery(run_once(order, order.job))
    for path, reference in files.items():
        fetch(moved(path, order.root, root), functools.partial(load, reference))
    job = moved(order.job, order.root, root)
    ended = run_once(order, job)._replace(job=order.job)
    return Delivery(ended, tuple(map(take_away, job.folders)))


def working_folder(root: Path, mark: Path) -> Path:
    """The study's folder as this node sees it, or its own instead."""
    scratch = os.environ.get(SCRATCH)
    if mark.exists() and not scratch:
        return root
    parent = Path(scratch or tempfile.gettempdir()) / f"stability-shootout-{os.getuid()}"
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    seen = parent.lstat()
    if seen.st_uid != os.getuid() or stat.S_IMODE(seen.st_mode) & 0o077:
        raise InputError(f"{parent}: open to others; allowed: a folder of one's own, or another {SCRATCH}")
    return parent / hashlib.sha256(str(root).encode()).hexdigest()[:16]


def moved(value: Any, old: Path, new: Path) -> Any:
    """A value in which every path under one folder is one under another, however deep in tuples."""
    if isinstance(value, Path):
        return new / value.relative_to(old) if value.is_relative_to(old) else value
    if isinstance(value, tuple):
        parts = [moved(part, old, new) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def fetch(path: Path, load: Callable[[], bytes]) -> None:
    """Write a file that is not there yet; of several processes that want it, one does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            write_bytes(path, load())


def take_away(folder: Path) -> Written:
    """The files of a folder, which is gone thereafter."""
    written = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}
    shutil.rmtree(folder, ignore_errors=True)
    return written


def put_back(folder: Path, written: Written) -> None:
    """Replace a folder by what another machine wrote, all of it or nothing."""
    if not written:
        return
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name, content in written.items():
        write_bytes(new / Path(name).name, content)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(new, folder)


# The worker process


class _Place(NamedTuple):
    """The worker of this Ray process, and what it was made for."""

    made_for: tuple[Any, ...]
    engine: LocalEngine


_places: list[_Place] = []  # at most one; kept from task to task, so that torch is imported once


def run_once(order: Order, job: Job) -> Ended:
    """One attempt at a job in the worker process that this Ray process holds."""
    with contextlib.closing(_place(order).run([job])) as ended:
        return next(ended)


def _place(order: Order) -> LocalEngine:
    made_for = (order.load, order.threads, order.time_limit_s, os.environ.get(VISIBLE))
    while _places and _places[0].made_for != made_for:  # another GPU, say
        _places.pop().engine.__exit__()
    if not _places:
        environment = worker_environment()
        _places.append(_Place(made_for, LocalEngine(1, order.threads, order.time_limit_s, environment, order.load)))
    return _places[0].engine
