"""``python -m study.shootout``: train once per regime, clipping algorithm and seed; compare; report.

The same command again goes on where it was left: runs that finished are not repeated, and a
finished study only has its report written anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import os
import shlex
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ptycho.config.config import DataConfig, ModelConfig, ScanConfig
from ptycho.config.settings import add_flags, chosen
from ptycho.errors import InputError
from ptycho_torch.config_params import TrainingConfig
from study.command import FINISHED, Parser, run_command
from study.design import CONTROL, STUDY_VERSION, Design, Finished, RunSpec
from study.settings import OF_THE_DESIGN, RunSettings, StudyConfig
from study.tracking_uri import redact_words

if TYPE_CHECKING:  # torch, MLflow and pandas are loaded once the settings are known to be good
    from study.data import DataFiles
    from study.engine import LocalEngine
    from study.progress import StudyProgress
    from study.tracker import Ending, Tracker

STUDY_FILE = "study.json"


class Plan(NamedTuple):
    """A study before it runs: what was asked for, the design, settings given for all its runs, its folder, the call."""

    config: StudyConfig
    design: Design
    overrides: Mapping[str, Any]
    out: Path
    command: str

    def run_folder(self, spec: RunSpec) -> Path:
        """Where a run's records stand."""
        return self.out / "runs" / spec.run_id


def make_plan(config: StudyConfig, overrides: Mapping[str, Any], command: str) -> Plan:
    """Turn settings into runs; refuses settings that cannot work. Nothing is written.

    Args:
        config, overrides: the study's settings, and those given for all its runs.
        command: how the study was called, for its record.

    Raises:
        InputError: a bad setting, a scan that cannot be used.
    """
    from study.presets import make_design

    design = make_design(config)
    if config.preset == "real" or overrides.get("data"):
        overrides = {**overrides, **scan_settings(overrides)}
    design.next_runs(overrides, [])  # refuses settings that do not go together
    return Plan(config, design, overrides, Path(config.out or f"results/{config.preset}").absolute(), command)


def scan_settings(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a scan's file decides: N, and the full paths of what is read.

    Raises:
        InputError: no scan, one that cannot be used, or frames of another size than ``N``.
    """
    from study.data import scan_frame_size

    if not overrides.get("data"):
        raise InputError("data: the preset real needs a scan; give --data FILE")
    paths = {
        name: str(Path(overrides[name]).absolute())
        for name in ("data", "scan_probe", "scan_positions")
        if overrides.get(name)
    }
    said = {field.name for field in dataclasses.fields(ScanConfig)} & set(overrides)
    size = scan_frame_size(Path(paths["data"]), ScanConfig(**{name: {**overrides, **paths}[name] for name in said}))
    if overrides.get("N", size) != size:
        raise InputError(
            f"N: {overrides['N']} px, but the frames of {paths['data']} have {size} px; "
            "--scan-crop makes them smaller in the far field, --scan-bin in the field of view"
        )
    return {"N": size, **paths}


def require_writable(out: Path) -> None:
    """Make the study's folder.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"out: {out} cannot be written ({error.strerror}); allowed: a writable folder") from None


def study_record(plan: Plan) -> dict[str, Any]:
    """What ``study.json`` says before the first round; a study that goes on keeps its id and its date.

    Raises:
        InputError: the folder holds a study of another preset.
    """
    path = plan.out / STUDY_FILE
    kept: dict[str, Any] = {}
    if path.exists():
        from study.table import read_study

        kept = read_study(plan.out)
        if kept.get("preset") != plan.config.preset:
            raise InputError(
                f"out: {plan.out} holds a study of preset {kept.get('preset')!r}; "
                f"allowed: another folder, or --preset {kept.get('preset')}"
            )
    design = plan.design
    return {
        "study_id": kept.get("study_id", uuid.uuid4().hex[:12]),
        "study_version": STUDY_VERSION,
        "preset": plan.config.preset,
        "created": kept.get("created", datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")),
        "title": design.title,
        "regimes": [
            {"name": regime.name, "description": regime.description, "evidence": regime.evidence}
            for regime in design.regimes
        ],
        "algorithms": [{"name": arm.algorithm, "threshold": arm.threshold} for arm in design.arms],
        "replicates": len(design.replicates),
        "adaptive": plan.config.adaptive,
        "control": CONTROL,
        "command": plan.command,
        "runs": [],
    }


def run_study(plan: Plan) -> Path:
    """Run what is not finished, write tables and report, send everything to MLflow; the report's path.

    Raises:
        InputError: a store that cannot be reached, a folder that cannot be written, is too small or holds another
            study; nothing was trained.
    """
    from study.disk import require_space
    from study.records import write_json
    from study.tracker import Tracker
    from study.tracking_uri import resolve_tracking_uri

    require_writable(plan.out)
    require_space(plan.out, unfinished(plan, plan.design.next_runs(plan.overrides, [])))
    study = study_record(plan)
    tracker = Tracker(resolve_tracking_uri(plan.config.tracking_uri), plan.config.experiment, plan.out)
    where = tracker.open_study(study).where
    write_json(plan.out / STUDY_FILE, study)
    try:
        train_rounds(plan, study, tracker, where)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            sys.stderr.write("stopping: the report is written from what is finished; once more to stop at once\n")
        wind_up(plan.out, tracker, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    else:
        return conclude(plan.out, tracker, "finished")
    finally:
        tracker.close()


def unfinished(plan: Plan, specs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs without a result; with ``fresh``, all of them."""
    from study.records import RESULT_FILE

    return [spec for spec in specs if plan.config.fresh or not (plan.run_folder(spec) / RESULT_FILE).exists()]


def train_rounds(plan: Plan, study: dict[str, Any], tracker: Tracker, where: str) -> None:
    """Train round after round what has no result yet, in worker processes, and send records as they come.

    What has finished decides what comes next, whether it was trained now or before.
    """
    from study.disk import require_space
    from study.progress import StudyProgress
    from study.records import write_json
    from study.shipping import Shipper

    finished: list[Finished] = []
    files: dict[str, DataFiles] = {}
    shipper = Shipper(tracker, plan.out).start()
    try:
        with StudyProgress() as progress, contextlib.ExitStack() as stack:
            engine = None
            progress.say(f"MLflow: {where}")
            while specs := plan.design.next_runs(plan.overrides, finished):
                study["runs"] += [spec.run_id for spec in specs]
                write_json(plan.out / STUDY_FILE, study)
                todo = unfinished(plan, specs)
                require_space(plan.out, todo)
                progress.say(f"{len(specs)} runs, {len(specs) - len(todo)} of them finished before; {plan.out}")
                progress.expect(len(todo))
                if todo:
                    engine = engine or stack.enter_context(make_engine(plan, specs))
                    files |= prepare_datasets(plan, todo, engine, files)
                    train(plan, todo, files, engine, progress)
                finished += [ending_of(plan, spec) for spec in specs]
    finally:
        unsent = shipper.stop()
    if unsent:
        sys.stderr.write(f"{len(unsent)} runs could not be sent to MLflow; later: python -m study.sync {plan.out}\n")


def make_engine(plan: Plan, specs: Sequence[RunSpec]) -> LocalEngine:
    """The workers of a study: no more than its first round can use."""
    from study.engine import LocalEngine, default_workers
    from study.tracking_uri import worker_environment

    threads = specs[0].settings.threads
    workers = min(plan.config.workers or default_workers(threads), len(specs))
    return LocalEngine(workers, threads, plan.config.time_limit, worker_environment())


def ending_of(plan: Plan, spec: RunSpec) -> Finished:
    """How a run ended, from its folder."""
    from study.records import RESULT_FILE

    result = json.loads((plan.run_folder(spec) / RESULT_FILE).read_text(encoding="utf-8"))
    loss = result.get("val_loss_final", math.nan) / result.get("baseline_constant", math.nan)
    return Finished(spec, result["outcome"], min(1.0, loss) if result["outcome"] in ("ok", "plateau") else 1.0)


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


def conclude(out: Path, tracker: Tracker, ending: Ending) -> Path:
    """Write tables and report from what is recorded, and close the study in MLflow."""
    from study.report import write_report
    from study.tracking_notes import study_artifacts

    report = write_report(out)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    tracker.finish_study(ending, summary["arms"], study_artifacts(out))
    return report


def wind_up(out: Path, tracker: Tracker, ending: Ending) -> None:
    """As :func:`conclude`, as far as it can be done: what stopped the study is what its user has to hear of."""
    from study.tracking_notes import read_object, study_artifacts

    with contextlib.suppress(InputError, OSError):
        from study.report import write_report

        write_report(out)
    with contextlib.suppress(OSError):
        arms = (read_object(out / "summary.json") or {}).get("arms", [])
        tracker.finish_study(ending, arms, study_artifacts(out))


def build_parser() -> Parser:
    """The command line of a study: its own settings, and one flag for every setting of its runs."""
    parser = Parser(prog="python -m study.shootout", description=__doc__)
    add_flags(parser.add_argument_group("study"), StudyConfig)
    for title, cls in (("data", DataConfig), ("network", ModelConfig), ("training", TrainingConfig)):
        add_flags(parser.add_argument_group(f"{title}, for every run"), cls, skip=OF_THE_DESIGN)
    return parser


def command() -> int:
    """Run a study from the command line."""
    from rich.console import Console

    from study.progress import results_table

    namespace = build_parser().parse_args()
    words = shlex.join(["python", "-m", "study.shootout", *redact_words(sys.argv[1:])])
    plan = make_plan(StudyConfig(**chosen(namespace, StudyConfig)), chosen(namespace, RunSettings), words)
    report = run_study(plan)
    summary = json.loads((plan.out / "summary.json").read_text(encoding="utf-8"))
    console = Console(highlight=False)
    console.print(results_table(summary))
    console.print(summary["verdict"]["headline"], markup=False)
    console.print(f"report: {report}", soft_wrap=True, markup=False)
    return FINISHED


def main() -> int:
    """Entry point of the console command."""
    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
