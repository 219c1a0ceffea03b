"""Processes that send: one per study folder; what a dead one left RUNNING in the store is ended, a living one's not."""

from __future__ import annotations

import fcntl
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import psutil

from ptycho.errors import InputError
from study.tracking import Store, StoredRun

STALE_S = 900.0


def reap(store: Store, experiment_id: str, ours: str) -> list[str]:
    """End the runs, still RUNNING in the store, whose study's process is no more; the children of ``ours`` too."""
    running = list(store.search(experiment_id, "attributes.status = 'RUNNING'"))
    parents = {run.run_id: run for run in running if "study.process" in run.tags}
    alive = {run_id for run_id, run in parents.items() if run_id != ours and is_alive(run.tags)}
    stale = [run for run_id, run in parents.items() if run_id != ours and run_id not in alive]
    stale += [run for run in running if "study.run_id" in run.tags and run.tags.get("mlflow.parentRunId") not in alive]
    for run in stale:
        kill(store, run, "its process died")
    return [run.run_id for run in stale]


def kill(store: Store, run: StoredRun, why: str) -> None:
    """End a run that no training will end any more."""
    tags = {"study.reaped": why}
    if "study.run_id" in run.tags and "study.outcome" not in run.tags:
        tags["study.outcome"] = "killed"
    store.send_tags(run.run_id, tags)
    store.end(run.run_id, "KILLED")


def process_stamp() -> str:
    """This process, told apart from a later one with the same number."""
    me = psutil.Process()
    return f"{socket.gethostname()}|{me.pid}|{me.create_time():.0f}"


def is_alive(tags: Mapping[str, str]) -> bool:
    """Whether a study's process still works: by its number on this machine, by its heartbeat on another."""
    host, pid, born = tags["study.process"].split("|")
    if host == socket.gethostname():
        try:
            return abs(psutil.Process(int(pid)).create_time() - float(born)) < 2
        except psutil.NoSuchProcess:
            return False
    return abs(time.time() - float(tags.get("study.heartbeat", 0))) < STALE_S


def lock_folder(out: Path) -> IO[str]:
    """Make the study folder and keep other processes from sending it; closing the file lets them.

    Raises:
        InputError: another process has it, or it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".tracking.lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{out}: another process is sending this study's runs to MLflow; wait for its end") from None
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); allowed: a writable folder") from None
    return lock
