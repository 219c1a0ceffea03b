"""Runs to jobs for an engine, and back: datasets before trainings, and a record for every run that ends."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ptycho.errors import InputError
from study.design import RunSpec
from study.plan import Plan

if TYPE_CHECKING:
    from study.data import DataFiles
    from study.engine import LocalEngine
    from study.progress import StudyProgress


def prepare_datasets(
    plan: Plan, todo: Sequence[RunSpec], engine: LocalEngine, known: Mapping[str, DataFiles]
) -> dict[str, DataFiles]:
    """Make the frames and baselines of every run before any trains; the files by dataset, without the known ones.

    Raises:
        InputError: data that cannot be had.
    """
    from study.engine import Job
    from study.worker import prepare_dataset

    by_dataset: dict[str, list[RunSpec]] = {}
    for spec in todo:
        by_dataset.setdefault(dataset_key(spec), []).append(spec)
    jobs = []
    for key, specs in by_dataset.items():
        if key in known:
            continue
        losses = tuple(sorted({spec.settings.torch_loss_mode for spec in specs}))
        jobs.append(Job(key, prepare_dataset, (specs[0], plan.out / "data", losses)))
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
    from ptycho.config.config import DataConfig, FaultConfig
    from ptycho.config.settings import project

    said = project(spec.settings, DataConfig)
    for fault in project(spec.settings, FaultConfig):
        said.pop(fault)
    return json.dumps([said, spec.settings.N, spec.settings.gridsize, spec.settings.seed])


def train(
    plan: Plan,
    todo: Sequence[RunSpec],
    files: Mapping[str, DataFiles],
    engine: LocalEngine,
    progress: StudyProgress,
) -> None:
    """Train; a run that takes its worker down is recorded like any other."""
    from study.attempts import record_loss, set_aside, set_aside_unfinished
    from study.engine import Job
    from study.worker import execute

    specs = {spec.run_id: spec for spec in todo}
    for spec in todo:
        set_aside_unfinished(plan.out, spec)
    jobs = [
        Job(run_id, execute, (spec, files[dataset_key(spec)], plan.run_folder(spec), plan.config.stop_failed))
        for run_id, spec in specs.items()
    ]
    for ended in engine.run(jobs):
        result, spec = ended.value, specs[ended.job.key]
        if ended.again:
            set_aside(plan.out, spec, ended.wall_s, ended.message)
            continue
        if ended.outcome is not None:
            result = record_loss(plan.run_folder(spec), spec, ended.outcome, ended.wall_s, ended.message)
        progress.ended(result)
