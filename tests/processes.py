"""The processes that a study starts, found from outside."""

from __future__ import annotations

import psutil


def is_worker(process: psutil.Process) -> bool:
    """Whether a process is one that trains: forked from the one that has loaded torch for all of them."""
    parent = process.parent()
    return parent is not None and "multiprocessing.forkserver" in " ".join(parent.cmdline())


def workers_of(pid: int) -> list[psutil.Process]:
    """The workers of the study that a process drives."""
    return [process for process in psutil.Process(pid).children(recursive=True) if is_worker(process)]
