"""The data behind each figure of a report: long tables made from the study's tables, saved beside the pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from study.arms import arms_of, survival_times
from study.critical_rates import frontier, frontier_setting
from study.drawing import BASELINES
from study.price import Price
from study.statistics import kaplan_meier, performance_profile
from study.step_table import windowed
from study.summaries import ArmSummary
from study.table import JUDGED, Tables

WINDOWS = 100
MOST_FAILED = 40  # failed runs of an arm that are drawn singly: more are a blot
QUARTILES = {"lower quartile": 0.25, "median": 0.5, "upper quartile": 0.75}


def labelled(tables: Tables) -> pd.DataFrame:
    """The runs with the names of their condition and arm, in the order of the design."""
    frames = [arm.runs.assign(condition=arm.condition, label=arm.label) for arm in arms_of(tables.runs)]
    return pd.concat(frames, ignore_index=True) if frames else tables.runs.assign(condition="", label="")


def in_windows(
    tables: Tables, runs: pd.DataFrame, column: str, how: str = "median", most: int = WINDOWS
) -> pd.DataFrame:
    """A step column in at most ``most`` windows: a row for each of ``runs``, a column for each window's end."""
    last = tables.trace.last_step
    parts = tables.trace.parts(runs["run_id"], column)
    return windowed(parts, column, max(1, math.ceil(last / most)), last, how)


def fan(points: pd.DataFrame, runs: pd.DataFrame, prefix: str = "") -> list[pd.DataFrame]:
    """Quartiles over the runs that did not fail, each ``condition, label, curve, step, value``.

    Only runs that went the whole way are in them, so that a curve does not mend because its bad runs end.
    """
    curves = []
    for arm, mine in _by_arm(points, runs):
        alive = mine[runs.loc[mine.index, "outcome"].isin(("ok", "plateau"))]
        curves += [_curve(arm, prefix + name, alive.quantile(q)) for name, q in QUARTILES.items()]
    return curves


def failures(points: pd.DataFrame, runs: pd.DataFrame, prefix: str = "") -> list[pd.DataFrame]:
    """The curves of each arm's first forty failed runs, and where each of its failed runs stood then, as ``died``."""
    curves = []
    for arm, mine in _by_arm(points, runs):
        failed = runs.loc[mine.index].query("outcome == 'failed'").sort_values("replicate", kind="stable")
        shown = failed.head(MOST_FAILED)
        for replicate, (_, values) in zip(shown["replicate"], mine.loc[shown.index].iterrows(), strict=True):
            curves.append(_curve(arm, f"{prefix}failed {replicate}", values))
        deaths = failed["failed_at_step"].dropna().astype(float).sort_values(kind="stable")
        found = zip(deaths, mine.loc[deaths.index].iterrows(), strict=True)
        near = [_nearest(values, step) for step, (_, values) in found]
        curves.append(_curve(arm, "died", pd.Series(near, index=deaths.to_numpy(), dtype=float)))
    return curves


def _by_arm(points: pd.DataFrame, runs: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Those rows of ``points`` that belong to each arm: ``(condition, label), rows``."""
    for (condition, label), arm in runs.groupby(["condition", "label"], sort=False):
        yield (str(condition), str(label)), points.loc[arm.index.intersection(points.index)]


def _curve(arm: tuple[str, str], name: str, values: pd.Series) -> pd.DataFrame:
    """Values by step as a long table; what is missing is left out."""
    values = values.dropna()
    rows = {"condition": arm[0], "label": arm[1], "curve": name, "step": values.index, "value": values.to_numpy()}
    return pd.DataFrame(rows)


def _nearest(values: pd.Series, step: float) -> float:
    """The value next to a step; NaN where there is none."""
    values = values.dropna()
    return float(values.iloc[np.abs(values.index.to_numpy() - step).argmin()]) if len(values) else math.nan


def loss_data(tables: Tables, runs: pd.DataFrame) -> pd.DataFrame:
    """Training loss as a fan, median validation loss, and the baselines (medians over the runs)."""
    points, by_id = in_windows(tables, runs, "loss"), runs.set_index("run_id")
    parts = [*fan(points, by_id), *failures(points, by_id), _validation(tables.evals_of(runs["run_id"]), runs)]
    for column, (name, *_) in BASELINES.items():
        level = runs.groupby(["condition", "label"], sort=False)[column].median().dropna()
        parts.append(level.rename("value").reset_index().assign(curve=name, step=0.0))
    return _joined(parts)


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The parts that hold anything, one below the other."""
    empty = pd.DataFrame(columns=["condition", "label", "curve", "step", "value"])
    return pd.concat([part for part in parts if len(part)] or [empty], ignore_index=True)


def _validation(evals: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    alive = runs.loc[runs["outcome"].isin(("ok", "plateau")), ["run_id", "condition", "label"]]
    finite = evals[np.isfinite(evals["val_loss"])]
    points = finite.merge(alive, on="run_id").groupby(["condition", "label", "step"], sort=False, as_index=False)
    medians: pd.DataFrame = points.agg({"val_loss": "median"})
    return medians.rename(columns={"val_loss": "value"}).assign(curve="validation")


def gradient_data(tables: Tables, runs: pd.DataFrame) -> pd.DataFrame:
    """Gradient norms before and after clipping as fans, and the largest norm of any run in each window."""
    by_id = runs.set_index("run_id")
    before = in_windows(tables, runs, "grad_norm_preclip")
    largest = in_windows(tables, runs, "grad_norm_preclip", "max")
    after = in_windows(tables, runs, "grad_norm_postclip")
    parts = [*fan(before, by_id, "before: "), *fan(after, by_id, "after: "), *failures(before, by_id, "before: ")]
    parts += [_curve(arm, "before: largest", mine.max()) for arm, mine in _by_arm(largest, by_id)]
    data = _joined(parts)
    return data.loc[data["value"] > 0]


def clipped_data(tables: Tables, runs: pd.DataFrame) -> pd.DataFrame:
    """Mean clipped fraction over all runs while they last, in at most 25 windows, and how many runs those are."""
    points = in_windows(tables, runs, "clipped_fraction", "mean", 25)
    parts = [
        _curve(arm, "mean", mine.mean()).assign(n=mine.count()[lambda n: n > 0].to_numpy())
        for arm, mine in _by_arm(points, runs.set_index("run_id"))
    ]
    return _joined(parts).rename(columns={"value": "mean"}).drop(columns="curve")


def arms_data(arms: Sequence[ArmSummary]) -> pd.DataFrame:
    """The arm summaries as a table, without their runs."""
    columns = [f.name for f in dataclasses.fields(ArmSummary) if f.name != "run_ids"]
    return pd.DataFrame([dataclasses.asdict(a) for a in arms], columns=columns)


def price_data(found: Sequence[Price]) -> pd.DataFrame:
    """The prices as a table, as they are drawn."""
    columns = [f.name for f in dataclasses.fields(Price)]
    return pd.DataFrame([dataclasses.asdict(price) for price in found], columns=columns)


def survival_data(runs: pd.DataFrame) -> pd.DataFrame:
    """Kaplan-Meier curves with their pointwise 95% band, each carried on to the last step of its condition."""
    horizon = runs.groupby("condition")["steps"].max()
    parts = []
    for (condition, label), arm in runs.groupby(["condition", "label"], sort=False):
        time, failed = survival_times(arm)
        if len(time):
            frame = pd.DataFrame(kaplan_meier(time, failed)._asdict())
            end = frame.iloc[[-1]].assign(time=float(horizon.loc[str(condition)]))
            parts.append(pd.concat([frame, end]).assign(condition=str(condition), label=str(label), n=len(time)))
    columns = ["condition", "label", "n", "time", "survival", "low", "high"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def final_loss_data(runs: pd.DataFrame, arms: Sequence[ArmSummary]) -> pd.DataFrame:
    """Final validation loss of each judged run, with its arm's interquartile mean over the runs that did not fail."""
    columns = ["condition", "label", "replicate", "outcome", "val_loss_final", *BASELINES]
    points = runs.loc[runs["outcome"].isin(JUDGED), columns]
    means = arms_data(arms)[["condition", "label", "val_loss_iqm", "val_loss_iqm_low", "val_loss_iqm_high"]]
    return points.merge(means, on=["condition", "label"], how="left")


def profile_data(runs: pd.DataFrame) -> pd.DataFrame:
    """Share of runs whose final loss is at most so many times the constant object's, for 200 such multiples."""
    judged = runs[runs["outcome"].isin(JUDGED)]
    ratio = (judged["val_loss_final"] / judged["baseline_constant"]).where(judged["outcome"] != "failed", np.inf)
    finite = ratio[np.isfinite(ratio) & (ratio > 0)]
    thresholds = np.geomspace(min(0.5, finite.min()) / 1.1 if len(finite) else 0.1, 1.0, 200)
    parts = [
        pd.DataFrame({"condition": condition, "label": label, "threshold": thresholds})
        .assign(share=performance_profile(ratio.loc[arm.index], thresholds))
        for (condition, label), arm in judged.groupby(["condition", "label"], sort=False)
        if judged["baseline_constant"].loc[arm.index].notna().any()
    ]  # fmt: skip
    return (
        pd.concat(parts, ignore_index=True)
        if parts
        else pd.DataFrame(columns=["condition", "label", "threshold", "share"])
    )


def frontier_data(arms: Sequence[ArmSummary], control: str) -> pd.DataFrame:
    """Failure probability with its exact interval against the learning rate, with LR50, gain and usable band."""
    lines = frontier(arms, control)
    if not len(lines):
        return lines.assign(learning_rate=[], p_fail=[], p_fail_low=[], p_fail_high=[], n=[])
    points = arms_data(arms).assign(setting=[frontier_setting(arm) for arm in arms])
    points = points[
        ["setting", "label", "learning_rate", "n", "n_ok", "n_failed", "p_fail", "p_fail_low", "p_fail_high"]
    ]
    merged = points[points["n"] > 0].merge(lines.drop(columns="algorithm"), on=["setting", "label"])
    place = {line: i for i, line in enumerate(zip(lines["setting"], lines["label"], strict=True))}
    order = [place[line] for line in zip(merged["setting"], merged["label"], strict=True)]
    return merged.assign(order=order).sort_values(["order", "learning_rate"], ignore_index=True).drop(columns="order")
