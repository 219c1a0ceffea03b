"""What a study would do: its runs, the time and the space they take. Nothing is written and no run is trained."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho.config.config import ModelConfig
from study.design import RunSpec, one_round
from study.disk import planned_steps, space_needed
from study.plan import Plan, unfinished
from study.records import RESULT_FILE, SPEC_FILE, read_object
from study.settings import RunSettings

if TYPE_CHECKING:
    from rich.console import Console

COST = (
    *(field.name for field in dataclasses.fields(ModelConfig)),
    *("batch_size", "accumulate_grad_batches", "threads", "device", "precision", "torch_loss_mode"),
)
"""What a training step's time hangs on."""


def preview(plan: Plan, console: Console) -> None:
    """Print what a study would do."""
    from rich.table import Table

    specs = plan.design.next_runs(plan.overrides, [])
    todo = unfinished(plan, specs)
    table = Table(box=None, title=f"{len(specs)} runs, {len(specs) - len(todo)} of them finished", title_justify="left")
    arms = runs_by_arm(specs)
    telling = [k for k, heading in enumerate(HEADINGS) if heading not in OPTIONAL or len({arm[k] for arm in arms}) > 1]
    for k in telling:
        table.add_column(HEADINGS[k])
    table.add_column("runs", justify="right")
    for arm, number in arms.items():
        table.add_row(*(arm[k] for k in telling), str(number))
    console.print(table)
    if plan.design.rounds is not one_round:
        console.print("this is the first round; what it finds decides how many more runs follow")
    seconds, basis = time_needed(plan, todo)
    workers = workers_of(plan, specs)
    console.print(f"time: about {in_words(seconds / workers)}, {workers} at a time ({basis}; validations not counted)")
    if plan.config.engine != "local" and plan.config.workers is None:
        console.print("how many run at a time is the cluster's business; say --workers for an estimate")
    console.print(f"space: at most {space_in_words(space_needed(todo))} in {plan.out}", soft_wrap=True, markup=False)


HEADINGS = ("regime", "algorithm", "network", "rate", "steps each")
OPTIONAL = ("network", "rate")  # shown where the study varies them


def runs_by_arm(specs: Sequence[RunSpec]) -> Counter[tuple[str, ...]]:
    """How many runs, which differ in their seed alone, the study has of each kind: texts under ``HEADINGS``."""
    return Counter((spec.regime, *_kind(spec.settings)) for spec in specs)


def _kind(settings: RunSettings) -> tuple[str, ...]:
    network = f"{settings.architecture}, {settings.fno_blocks} blocks, {settings.N} px"
    return _algorithm(settings), network, f"{settings.learning_rate:g}", f"{planned_steps(settings):,}"


def _algorithm(settings: RunSettings) -> str:
    name, threshold = settings.gradient_clip_algorithm, settings.gradient_clip_val
    return name if name == "none" or threshold is None else f"{name}={threshold:g}"


def time_needed(plan: Plan, todo: Sequence[RunSpec]) -> tuple[float, str]:
    """Seconds that runs take one after the other, and what that rests on.

    Steps of earlier runs in the study's folder, with the same network and batches, are the best witnesses; where there
    are none, a few steps are made here.
    """
    from study.step_time import step_time

    known = recorded_step_times(plan.out)
    times, measured = dict(known), False
    for spec in todo:
        key = step_key(dataclasses.asdict(spec.settings))
        if key not in times:
            times[key], measured = step_time(spec.settings), True
    total = sum(planned_steps(spec.settings) * times[step_key(dataclasses.asdict(spec.settings))] for spec in todo)
    return total, "from a few steps made here" if measured else "from earlier runs in this folder"


def step_key(settings: Mapping[str, Any]) -> str:
    """Equal for runs whose steps take the same time."""
    return json.dumps([settings.get(name) for name in COST])


def recorded_step_times(out: Path) -> dict[str, float]:
    """Seconds per step of the runs that a folder holds, the slowest of each kind."""
    found: dict[str, float] = {}
    for path in out.glob(f"runs/*/{RESULT_FILE}"):
        result, spec = read_object(path) or {}, read_object(path.parent / SPEC_FILE) or {}
        if result.get("steps") and "settings" in spec:
            key = step_key(spec["settings"])
            found[key] = max(found.get(key, 0.0), result["wall_s"] / result["steps"])
    return found


def workers_of(plan: Plan, specs: Sequence[RunSpec]) -> int:
    """Runs at a time; of a cluster, as many as were asked for."""
    if plan.config.engine != "local":
        return plan.config.workers or 1
    from study.local_engine import LocalEngine

    return LocalEngine.of(plan.config, specs[0].settings, len(specs)).workers


def in_words(seconds: float) -> str:
    """A time as a person says it.

    >>> in_words(8), in_words(200), in_words(9000), in_words(8e6)
    ('8 s', '3 min', '2.5 h', '93 days')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def space_in_words(size_bytes: float) -> str:
    """A size as a person says it.

    >>> space_in_words(3.17e8), space_in_words(4.95e11)
    ('317 MB', '495 GB')
    """
    return f"{size_bytes / 1e6:,.0f} MB" if size_bytes < 1e10 else f"{size_bytes / 1e9:,.0f} GB"
