"""A study from its first line on disk to its report: rounds of trainings, everything sent to MLflow."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho.errors import InputError
from study.design import CONTROL, STUDY_VERSION, Finished, RunSpec
from study.plan import Plan, unfinished

if TYPE_CHECKING:  # torch, MLflow and pandas are loaded once the settings are known to be good
    from collections.abc import Sequence

    from study.data import DataFiles
    from study.engines import Engine
    from study.tracker import Ending, Tracker

STUDY_FILE = "study.json"
CONFIG_FILE = "study.yaml"


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
    """What ``study.json`` says before the first round; a study that goes on keeps its id, its date and its runs.

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
        "runs": kept.get("runs", []),
    }


def run_study(plan: Plan) -> Path:
    """Run what is not finished, write tables and report, send everything to MLflow; the report's path.

    Raises:
        InputError: a store that cannot be reached, a folder that cannot be written, is too small or holds another
            study; nothing was trained.
        HandedOverError: the runs wait in the queue of another program; the same command goes on afterwards.
    """
    from study.config_file import write_config
    from study.disk import require_space
    from study.engines import HandedOverError
    from study.records import write_json
    from study.tracker import Tracker
    from study.tracking_uri import resolve_tracking_uri

    require_writable(plan.out)
    first = plan.design.next_runs(plan.overrides, [])
    require_space(plan.out, unfinished(plan, first))
    study = study_record(plan)
    with contextlib.ExitStack() as stack:
        engine = start_engine(plan, first, stack)  # its workers load torch while MLflow is loaded here
        tracker = Tracker(resolve_tracking_uri(plan.config.tracking_uri), plan.config.experiment, plan.out)
        where = tracker.open_study(study).where
        write_json(plan.out / STUDY_FILE, study)
        write_config(plan.out / CONFIG_FILE, plan.config, plan.overrides)
        try:
            with stack:
                train_rounds(plan, study, tracker, where, engine, stack)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                sys.stderr.write("stopping: the report is written from what is finished; once more to stop at once\n")
            goes_on = isinstance(error, (KeyboardInterrupt, HandedOverError))
            wind_up(plan.out, tracker, "interrupted" if goes_on else "failed")
            raise
        else:
            return conclude(plan.out, tracker, "finished")
        finally:
            tracker.close()


def start_engine(plan: Plan, specs: Sequence[RunSpec], stack: contextlib.ExitStack) -> Engine | None:
    """The study's engine, which ends with ``stack``; None where none of the runs has to be trained."""
    from study.engines import make_engine

    if not unfinished(plan, specs):
        return None
    return stack.enter_context(make_engine(plan, specs[0].settings, len(specs)))


def train_rounds(
    plan: Plan,
    study: dict[str, Any],
    tracker: Tracker,
    where: str,
    engine: Engine | None,
    stack: contextlib.ExitStack,
) -> None:
    """Train round after round what has no result yet, on the study's engine, and send records as they come.

    What has finished decides what comes next, whether it was trained now or before. The runs that an earlier start
    has listed stay listed until it is known which they are now.

    Args:
        plan, study, tracker: the study, its record, its place in MLflow.
        where: how that place is seen.
        engine: the engine, if the first round needed one; a later round starts one in ``stack``.
    """
    from study.disk import require_space
    from study.progress import StudyProgress
    from study.records import complete_result, write_json
    from study.shipping import Shipper
    from study.trainings import prepare_datasets, train

    finished: list[Finished] = []
    called_for: list[str] = []
    files: dict[str, DataFiles] = {}
    shipper = Shipper(tracker, plan.out).start()
    try:
        with StudyProgress() as progress:
            progress.say(f"MLflow: {where}")
            while specs := plan.design.next_runs(plan.overrides, finished):
                called_for += [spec.run_id for spec in specs]
                for spec in specs:
                    complete_result(plan.run_folder(spec))
                todo = unfinished(plan, specs)
                if todo:
                    write_json(plan.out / STUDY_FILE, study | {"runs": called_for})
                require_space(plan.out, todo)
                progress.say(f"{len(specs)} runs, {len(specs) - len(todo)} of them finished before; {plan.out}")
                progress.expect(len(todo))
                if todo and (engine := engine or start_engine(plan, specs, stack)):
                    files |= prepare_datasets(plan, todo, engine, files)
                    train(plan, specs, files, engine, progress)
                finished += [ending_of(plan, spec) for spec in specs]
            write_json(plan.out / STUDY_FILE, study | {"runs": called_for})
    finally:
        unsent = shipper.stop()
    if unsent:
        sys.stderr.write(f"{len(unsent)} runs could not be sent to MLflow; later: python -m study.sync {plan.out}\n")


def ending_of(plan: Plan, spec: RunSpec) -> Finished:
    """How a run ended, from its folder."""
    from study.records import RESULT_FILE

    result = json.loads((plan.run_folder(spec) / RESULT_FILE).read_text(encoding="utf-8"))
    loss = result.get("val_loss_final", math.nan) / result.get("baseline_constant", math.nan)
    return Finished(spec, result["outcome"], min(1.0, loss) if result["outcome"] in ("ok", "plateau") else 1.0)


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
    from study.records import read_object
    from study.tracking_notes import study_artifacts

    with contextlib.suppress(InputError, OSError):
        from study.report import write_report

        write_report(out)
    with contextlib.suppress(OSError):
        arms = (read_object(out / "summary.json") or {}).get("arms", [])
        tracker.finish_study(ending, arms, study_artifacts(out))
