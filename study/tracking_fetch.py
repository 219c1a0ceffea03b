"""A study folder rebuilt from what the tracking store has of it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ptycho.errors import InputError
from study.run_trace import restore_trace
from study.tracking import Store, StoredRun, refusing
from study.tracking_uri import check_store


def fetch_study(experiment_or_run: str, uri: str, destination: Path) -> Path:
    """Rebuild a study folder from what the store has of it, so that the report can be made again.

    Args:
        experiment_or_run: an experiment's name (its latest study), or the identity of a parent run.
        uri: the store's address.
        destination: folder to write into, new or empty.

    Raises:
        InputError: no such experiment or study, the store cannot be used, or the folder holds something.
    """
    if destination.exists() and any(destination.iterdir()):
        raise InputError(f"{destination}: holds something already; allowed: a new or empty folder")
    check_store(uri)
    with refusing(uri):
        store = Store(uri)
        parent = _find_study(store, experiment_or_run)
        destination.mkdir(parents=True, exist_ok=True)
        store.download(parent.run_id, destination)
        for run in list(store.children(parent.experiment_id, parent.run_id)):
            _fetch_run(store, run, destination, Path(run.tags["study.run_id"]).name)
    return destination


def _fetch_run(store: Store, run: StoredRun, destination: Path, name: str) -> None:
    """Rebuild a run's folder; of several attempts the latest that ended counts, and comes first."""
    folder = destination / "runs" / name
    if folder.exists():
        folder = destination / "attempts" / f"{name}-{run.run_id}"
    folder.mkdir(parents=True)
    store.download(run.run_id, folder)
    restore_trace(folder / "steps.parquet", folder / "steps.jsonl")
    if not (folder / "result.json").exists():
        shutil.rmtree(folder)


def _find_study(store: Store, name: str) -> StoredRun:
    if re.fullmatch("[0-9a-f]{32}", name):
        return store.run(name)
    experiment = store.experiment(name)
    if experiment is None:
        raise InputError(f"experiment: {name!r} is not in the store; known: {', '.join(store.experiment_names())}")
    for run in store.search(experiment, "tags.`study.id` != ''"):
        return run
    raise InputError(f"experiment: {name!r} holds no study")
