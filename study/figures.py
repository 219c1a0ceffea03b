"""The figures of a report, one after the other, each with its data, its caption and what it shows in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from study.arms import searched_regimes
from study.condition_panels import (
    clipped_fraction,
    failure_probability,
    final_loss,
    frontier_figure,
    price_figure,
    profiles,
    survival,
)
from study.drawing import Drawing
from study.fans import gradient_norms, loss_curves
from study.figure_data import (
    MOST_FAILED,
    arms_data,
    clipped_data,
    final_loss_data,
    frontier_data,
    gradient_data,
    labelled,
    loss_data,
    price_data,
    profile_data,
    survival_data,
)
from study.gallery import gallery, gallery_data
from study.overviews import search_overview
from study.paired_shift import fewest_pairs
from study.price import prices
from study.summaries import ArmSummary
from study.table import Tables

MOST_CONDITIONS = 6


def draw_all(tables: Tables, arms: Sequence[ArmSummary]) -> Iterator[Drawing]:
    """Every figure that the study has data for, one at a time, for the conditions that are worth drawing."""
    if not len(tables.runs):
        return
    runs = labelled(tables)
    searched = searched_regimes(tables)
    shown = drawn_conditions([arm for arm in arms if arm.regime not in searched])
    runs = runs[runs["condition"].isin(shown)]
    chosen = [arm for arm in arms if arm.condition in shown]
    yield from _overviews(tables, runs, chosen, arms)
    galleries = gallery_data(tables.out, runs)
    for number, condition in enumerate(shown, start=1):
        counts = {arm.label: _outcomes(arm) for arm in chosen if arm.condition == condition}
        mine, shown_runs = runs[runs["condition"] == condition], galleries[galleries["condition"] == condition]
        parts = loss_data(tables, mine), gradient_data(tables, mine), shown_runs
        yield from _of_condition(tables.out, f"{number:02d}_{slug(condition)}", condition, counts, *parts)


def drawn_conditions(arms: Sequence[ArmSummary]) -> list[str]:
    """All conditions; of more than six, those in which most arms meet and, of these, differ most. In their order."""
    meeting: dict[str, list[float]] = {}
    for arm in arms:
        meeting.setdefault(arm.condition, []).append(arm.p_not_ok)
    telling = sorted(meeting, key=lambda name: (len(meeting[name]), np.ptp(np.nan_to_num(meeting[name]))), reverse=True)
    return [name for name in meeting if name in telling[:MOST_CONDITIONS]]


def _outcomes(arm: ArmSummary) -> str:
    return f"ok {arm.n_ok} · plateau {arm.n_plateau} · failed {arm.n_failed}"


def slug(text: str) -> str:
    """A name as part of a file name.

    >>> slug("rate stress · rate 0.3")
    'rate_stress_rate_0.3'
    """
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-.") else " " for c in text)
    return "_".join(kept.split())[:60].strip(".")


def _overviews(
    tables: Tables, runs: pd.DataFrame, shown: Sequence[ArmSummary], arms: Sequence[ArmSummary]
) -> Iterator[Drawing]:
    rates = frontier_data(arms, tables.control)
    if len(rates):
        lines = rates.drop_duplicates(["setting", "label"])
        yield Drawing(
            name="frontier", title="Critical learning rate", figure=frontier_figure(rates), data=rates,
            caption="Share of runs that fail against the learning rate; the large open marker is LR50, the rate at "
            "which half of the runs fail, on a bar that is its 95% interval (bars end at the rates tried and are drawn "
            "slightly apart); the gain is LR50 over that of the control.",
            alt="; ".join(f"{line.setting}, {line.label}: LR50 {line.lr50:.2g}" for line in lines.itertuples()),
        )  # fmt: skip
    told = [
        p for p in prices(tables) if p.condition in {arm.condition for arm in shown} and math.isfinite(p.loss_ratio)
    ]
    search = search_overview(arms, searched_regimes(tables))
    if search is not None:
        yield search
    if shown:
        yield Drawing(
            name="failure_probability", title="Who fails", figure=failure_probability(arms_data(shown)),
            data=arms_data(shown),
            caption="Full marks: probability that a run fails; open marks: that it fails or stalls; lines are exact "
            "95% intervals, and a star marks an arm whose open mark differs significantly from the control's.",
            alt="; ".join(f"{a.condition}, {a.label}: {_outcomes(a)}" for a in shown),
        )  # fmt: skip
    if told:
        yield Drawing(
            name="price", title="The price in image quality", figure=price_figure(price_data(told)),
            data=price_data(told),
            caption="Final validation loss and scores against those of the arm that the axis names, over the paired "
            "replicates in which both are ok; lines are exact 95% intervals, each for itself, and marks without one "
            f"have fewer than {fewest_pairs()} pairs. The dotted line is the largest rise that the verdict allows.",
            alt="; ".join(f"{p.condition}, {p.arm} against {p.against}: loss times {p.loss_ratio:.3g}" for p in told),
        )  # fmt: skip
    curves = survival_data(runs)
    if len(curves):
        last = curves.drop_duplicates(["condition", "label"], keep="last")
        yield Drawing(
            name="survival", title="When they fail", figure=survival(curves), data=curves,
            caption="Share of runs that have not failed by each step (Kaplan-Meier); a step down is a failure, and "
            "lines that coincide are drawn slightly apart.",
            alt="Share not failed at the end: "
            + "; ".join(f"{c.condition}, {c.label} {c.survival:.2f}" for c in last.itertuples()),
        )  # fmt: skip
    finals = final_loss_data(runs, shown)
    if len(finals) and np.isfinite(finals["val_loss_final"]).any():
        yield Drawing(
            name="final_loss", title="How well they learn", figure=final_loss(finals), data=finals,
            caption="Final validation loss of every run; the bar is the interquartile mean of the runs that did not "
            "fail with its 95% bootstrap interval, horizontal lines are the baselines; a failed run whose loss is no "
            "number or far above stands at the upper edge.",
            alt="Interquartile mean of the final loss: "
            + "; ".join(f"{a.condition}, {a.label} {a.val_loss_iqm:.3g}" for a in shown),
        )  # fmt: skip
    shares = profile_data(runs)
    if len(shares):
        yield Drawing(
            name="performance_profile", title="How many learn how well", figure=profiles(shares), data=shares,
            caption="Share of runs that end at or below a given fraction of the constant object's loss, failed runs "
            "never; a curve that lies higher is better at every demand.",
            alt="Performance profiles per arm; the data table beside this figure holds the curves.",
        )  # fmt: skip
    clipped = clipped_data(tables, runs)
    if len(clipped):
        middle = clipped.groupby(["condition", "label"], sort=False)["mean"].mean().reset_index()
        yield Drawing(
            name="clipped_fraction", title="What each algorithm did", figure=clipped_fraction(clipped), data=clipped,
            caption="Fraction of the gradient's parts (tensors, units or entries, as the algorithm has them) that was "
            "clipped, mean over the runs; it describes the algorithms and is no evidence for them.",
            alt="Mean clipped fraction: "
            + "; ".join(f"{m.condition}, {m.label} {m.mean:.2f}" for m in middle.itertuples()),
        )  # fmt: skip


def _of_condition(
    out: Path,
    name: str,
    condition: str,
    counts: dict[str, str],
    loss: pd.DataFrame,
    norms: pd.DataFrame,
    shown: pd.DataFrame,
) -> Iterator[Drawing]:
    told = "; ".join(itertools.starmap("{}: {}".format, counts.items()))
    if len(loss):
        yield Drawing(
            name=f"loss_{name}", title=f"Loss: {condition}", figure=loss_curves(loss, counts), data=loss,
            caption="Training loss, median and quartiles over the runs that did not fail; failed runs are drawn one by "
            f"one, of each arm the first {MOST_FAILED}, with a cross where each failed; open circles are validations, "
            "horizontal lines the baselines.",
            alt=f"Loss curves per arm in {condition}. {told}.",
        )  # fmt: skip
    if len(norms):
        yield Drawing(
            name=f"gradient_norm_{name}", title=f"Gradient norm: {condition}", figure=gradient_norms(norms, counts),
            data=norms,
            caption="Global gradient norm before (grey) and after clipping (dashed); the dotted line is the largest "
            "norm of any run in each window, so that a spike of one step shows.",
            alt=f"Gradient norms before and after clipping per arm in {condition}. {told}.",
        )  # fmt: skip
    if len(shown) and shown["reconstruction"].any():
        replicate = shown["replicate"].iloc[0]
        yield Drawing(
            name=f"gallery_{name}", title=f"Reconstructions: {condition}", figure=gallery(shown, out), data=shown,
            caption=f"Amplitude and phase of replicate {replicate} of every arm, the first in which most arms end as "
            "they usually do, on one scale; SSIM is given as amplitude / phase.",
            alt=f"Reconstructions in {condition}: " + "; ".join(f"{r.label} {r.outcome}" for r in shown.itertuples()),
        )  # fmt: skip
