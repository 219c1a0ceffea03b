"""Runs to jobs for an engine, and back: datasets before trainings, and a record for every run that ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ptycho.config.config import DataConfig, FaultConfig
from ptycho.config.settings import project
from ptycho.errors import InputError
from study.attempts import record_loss, set_aside, set_aside_unfinished
from study.data import DataFiles, baselines_file
from study.design import RunSpec
from study.engines import Ended, Engine, Job
from study.ensembles import grouped
from study.plan import Plan, unfinished
from study.records import RESULT_FILE, complete_result
from study.worker import execute, execute_together, prepare_dataset

if TYPE_CHECKING:
    from study.progress import StudyProgress


class Training(NamedTuple):
    """One training as an engine's worker is told of it: the run, the frames it reads, the folder it writes."""

    spec: RunSpec
    files: DataFiles
    folder: Path
    stop_failed: bool


def prepare_datasets(
    plan: Plan, todo: Sequence[RunSpec], engine: Engine, known: Mapping[str, DataFiles]
) -> dict[str, DataFiles]:
    """Make the frames and baselines of every run before any trains; the files by dataset, without the known ones.

    Raises:
        InputError: data that cannot be had.
    """
    by_dataset: dict[str, list[RunSpec]] = {}
    for spec in todo:
        by_dataset.setdefault(dataset_key(spec), []).append(spec)
    jobs = []
    for key, specs in by_dataset.items():
        if key in known:
            continue
        losses = tuple(sorted({spec.settings.torch_loss_mode for spec in specs}))
        jobs.append(Job(key, prepare_dataset, (specs[0], plan.out / "data", losses), here=True))
    files = {}
    for ended in engine.run(jobs):
        if ended.again:
            continue
        if ended.outcome is not None:
            raise InputError(f"data of replicate {ended.job.arguments[0].settings.seed}: {ended.message}")
        files[ended.job.key] = ended.value
    return files


def dataset_key(spec: RunSpec) -> str:
    """Equal for runs that train on the same frames; faults are put in later."""
    said = project(spec.settings, DataConfig)
    for fault in project(spec.settings, FaultConfig):
        said.pop(fault)
    return json.dumps([said, spec.settings.N, spec.settings.gridsize, spec.settings.seed])


def train(
    plan: Plan, specs: Sequence[RunSpec], files: Mapping[str, DataFiles], engine: Engine, progress: StudyProgress
) -> None:
    """Train those of a round's runs that have no result yet.

    A run that takes its process down is recorded like any other, and one that shared it trains again.
    """
    todo = {
        spec: Training(spec, files[dataset_key(spec)], plan.run_folder(spec), plan.config.stop_failed)
        for spec in unfinished(plan, specs)
    }
    for spec in todo:
        make_room(plan.out, spec)
    groups = [[todo[spec] for spec in group if spec in todo] for group in grouped(specs, plan.config)]
    jobs = [job_of(*group) for group in groups if group]
    while jobs:
        lost: list[Training] = []
        for ended in engine.run(jobs):
            for result in settle(plan.out, ended):
                progress.ended(result)
            if not ended.again:
                lost += [t for t in ended.job.arguments if not (t.folder / RESULT_FILE).exists()]
        jobs = [job_of(training) for training in lost]


def make_room(out: Path, spec: RunSpec) -> None:
    """Put aside what an earlier start of the study left of a run that is to be trained now."""
    folder = out / "runs" / spec.run_id
    if (folder / RESULT_FILE).exists():
        shutil.rmtree(folder)
    set_aside_unfinished(out, spec)


def job_of(*trainings: Training) -> Job:
    """One job for trainings that one process does; it returns a result for each."""
    reads = {
        path: None
        for training in trainings
        for path in (
            *training.files,
            baselines_file(training.files.train, training.spec.settings.torch_loss_mode),
        )
    }
    folders = tuple(training.folder for training in trainings)
    key = "+".join(training.spec.run_id for training in trainings)
    return Job(key, execute if len(trainings) == 1 else execute_together, trainings, tuple(reads), folders)


def settle(out: Path, ended: Ended) -> list[dict[str, Any]]:
    """The results that the end of a job brings, each in its run's folder; none for what will be tried again.

    A run that had written its result before its process or its machine was lost has finished. What ends the
    process of several is the outcome of none of them: those without a result are tried again.
    """
    if ended.outcome is None:
        return list(ended.value)
    results = []
    for training in ended.job.arguments:
        complete_result(training.folder)
        path = training.folder / RESULT_FILE
        if path.exists():
            if not ended.again:
                results.append(json.loads(path.read_text(encoding="utf-8")))
        elif ended.again or len(ended.job.arguments) > 1:
            set_aside(out, training.spec, ended.wall_s, ended.message)
        else:
            results.append(record_loss(training.folder, training.spec, ended.outcome, ended.wall_s, ended.message))
    return results
