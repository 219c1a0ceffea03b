"""The arms of a study in numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from study.arms import (
    Arm,
    PairedTest,
    arms_of,
    by_condition,
    control_of,
    cost,
    finite,
    median,
    paired,
    paired_test,
    survival_times,
)
from study.price import measured
from study.statistics import clopper_pearson, holm, interquartile_mean_interval, logrank, restricted_mean_survival
from study.table import JUDGED, Tables


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """One arm in numbers; NaN where a number does not exist.

    ``n`` counts the judged runs (ok, plateau, failed); runs lost to the machine (oom, error, timeout, killed) are
    in ``n_lost`` and in no proportion. ``p_fail`` is the probability of *failed* in the strict sense with its
    exact 95% interval, ``p_not_ok`` that of failed or plateau.

    ``p_vs_control`` tests *not ok*, paired: exact McNemar against the control's run of the same replicate,
    Holm-corrected over the arms of the condition. A run that is alive but no better than the mean patch has
    learnt nothing, and which of the two ways a kicked run goes is chance; testing the strict failures alone would
    call an arm safe that survives by standing still.

    The conditional quality columns (``val_loss_iqm``, ``amp_ssim_median``) hold for the runs that did not fail;
    the columns ``..._all`` and ``val_loss_median`` count a failed run at the loss of the constant object, which
    is also the worst that any run is given; ``relative_loss_median`` is in units of that loss, run by run, so failed
    runs are at 1, and by it a threshold is chosen. ``rmst`` is the mean number of steps survived out of
    ``horizon``. ``run_ids`` are all its runs. ``cost_ratio`` is the arm's ``val_loss_median`` over the control's,
    over pairs.

    ``loss_ratio`` and the ``..._shift`` of scores hold the arm against the control over the ``price_pairs`` replicates
    in which both are ok, with exact intervals (``study.price``).
    """

    regime: str
    algorithm: str
    threshold: float
    condition: str
    label: str
    architecture: str
    fno_blocks: float
    optimizer: str
    learning_rate: float
    is_control: bool
    n: int
    n_ok: int
    n_plateau: int
    n_failed: int
    n_lost: int
    p_fail: float
    p_fail_low: float
    p_fail_high: float
    p_not_ok: float
    p_not_ok_low: float
    p_not_ok_high: float
    n_pairs: int
    n_better: int
    n_worse: int
    p_vs_control: float
    p_vs_control_uncorrected: float
    p_logrank: float
    rmst: float
    horizon: float
    val_loss_median: float
    relative_loss_median: float
    val_loss_iqm: float
    val_loss_iqm_low: float
    val_loss_iqm_high: float
    val_loss_iqm_all: float
    val_loss_iqm_all_low: float
    val_loss_iqm_all_high: float
    cost_ratio: float
    cost_ratio_low: float
    cost_ratio_high: float
    price_pairs: int
    loss_ratio: float
    loss_ratio_low: float
    loss_ratio_high: float
    amp_ssim_shift: float
    amp_ssim_shift_low: float
    amp_ssim_shift_high: float
    frc50_shift: float
    frc50_shift_low: float
    frc50_shift_high: float
    amp_ssim_median: float
    phase_ssim_median: float
    clipped_fraction_median: float
    run_ids: tuple[str, ...]


def summarise(tables: Tables) -> list[ArmSummary]:
    """One entry per arm, in the order of the table.

    Raises:
        InputError: two runs of one replicate in one arm.
    """
    test = paired_test(tables)
    conditions = by_condition(arms_of(tables.runs)).values()
    return [summary for arms in conditions for summary in _summaries(arms, tables.control, test)]


def _summaries(arms: Sequence[Arm], control_name: str, test: PairedTest) -> list[ArmSummary]:
    control = control_of(arms, control_name)
    horizon = _horizon(arms)
    pairs = [paired(arm, control) for arm in arms]
    p = [test(pair.better, pair.worse) if pair.n else math.nan for pair in pairs]
    p_logrank = [_logrank(arm, control) if pair.n else math.nan for arm, pair in zip(arms, pairs, strict=True)]
    corrected, corrected_logrank = holm(p), holm(p_logrank)
    return [
        ArmSummary(
            **_identity(arm),
            is_control=arm is control,
            **_counts(arm),
            **_quality(arm),
            **cost(pairs[i]),
            **measured(pairs[i]),
            n_pairs=pairs[i].n,
            n_better=pairs[i].better,
            n_worse=pairs[i].worse,
            p_vs_control=float(corrected[i]),
            p_vs_control_uncorrected=p[i],
            p_logrank=float(corrected_logrank[i]),
            rmst=restricted_mean_survival(*survival_times(arm.runs), horizon),
            horizon=horizon,
            run_ids=tuple(arm.runs["run_id"]),
        )
        for i, arm in enumerate(arms)
    ]


def _horizon(arms: Sequence[Arm]) -> float:
    """The last step that any run of a condition reached; NaN where none took one."""
    steps = pd.concat([arm.runs["steps"] for arm in arms]).dropna()
    return float(steps.max()) if (steps > 0).any() else math.nan


def _identity(arm: Arm) -> dict[str, Any]:
    first = arm.runs.iloc[0]
    names = {key: str(first[key]) for key in ("regime", "algorithm", "architecture", "optimizer")}
    numbers = {key: float(first[key]) for key in ("threshold", "learning_rate")}
    depth = first.get("fno_blocks")
    return {
        **names, **numbers, "condition": arm.condition, "label": arm.label,
        "fno_blocks": float(depth) if isinstance(depth, int | float | np.number) else math.nan,
    }  # fmt: skip


def _counts(arm: Arm) -> dict[str, Any]:
    outcome = arm.judged()["outcome"]
    n, n_ok, n_plateau, n_failed = len(outcome), *(int((outcome == word).sum()) for word in JUDGED)
    fail, not_ok = clopper_pearson(n_failed, n), clopper_pearson(n - n_ok, n)
    return {
        "n": n, "n_ok": n_ok, "n_plateau": n_plateau, "n_failed": n_failed, "n_lost": len(arm.runs) - n,
        "p_fail": n_failed / n if n else math.nan, "p_fail_low": fail.low, "p_fail_high": fail.high,
        "p_not_ok": (n - n_ok) / n if n else math.nan, "p_not_ok_low": not_ok.low, "p_not_ok_high": not_ok.high,
    }  # fmt: skip


def _quality(arm: Arm) -> dict[str, Any]:
    runs = arm.judged()
    alive = runs[runs["outcome"] != "failed"]
    survivors = interquartile_mean_interval(finite(alive["val_loss_final"]))
    everyone = interquartile_mean_interval(finite(runs["loss"]))
    return {
        "val_loss_median": median(runs["loss"]),
        "relative_loss_median": median(runs["loss"] / runs["baseline_constant"]),
        **dict(zip(("val_loss_iqm", "val_loss_iqm_low", "val_loss_iqm_high"), survivors, strict=True)),
        **dict(zip(("val_loss_iqm_all", "val_loss_iqm_all_low", "val_loss_iqm_all_high"), everyone, strict=True)),
        "amp_ssim_median": median(alive["amp_ssim"]),
        "phase_ssim_median": median(alive["phase_ssim"]),
        "clipped_fraction_median": median(runs["clipped_fraction"]),
    }


def _logrank(arm: Arm, control: Arm | None) -> float:
    if control is None:
        return math.nan
    return logrank(*survival_times(arm.runs), *survival_times(control.runs))
