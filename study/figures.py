"""The figures of a report, and the data behind each.

For every figure there is a function that makes its data from the tables (a long table, saved beside the picture)
and one that draws them. Arms are told apart by colour, marker and dash together, so that the figures can be read
in grey and by the colour-blind. Nothing is computed while drawing.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from ptycho.config.algorithms import ALGORITHMS
from ptycho.errors import InputError
from study.arms import arms_of, median, survival_times
from study.critical_rates import frontier, frontier_setting
from study.statistics import kaplan_meier, performance_profile
from study.summaries import ArmSummary
from study.table import JUDGED, Tables

# Okabe and Ito 2008, yellow darkened so that it shows on white, black for the control
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#8A7F00", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 2)), (0, (2, 2)))
RC: Any = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 8, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#DDDDDD", "grid.linewidth": 0.5, "lines.linewidth": 1.3, "font.family": "DejaVu Sans",
}  # fmt: skip
WINDOWS = 100
MOST_CONDITIONS = 12
BASELINES = {
    "baseline_constant": ("constant object", "#B00020", (0, (1, 1.5))),
    "baseline_mean_patch": ("mean patch", "#7A5195", (0, (4, 2))),
    "baseline_oracle": ("true object", "#2F7D32", "-"),
}
QUARTILES = {"lower quartile": 0.25, "median": 0.5, "upper quartile": 0.75}


class Style(NamedTuple):
    """How an arm looks in every figure."""

    colour: str
    marker: str
    dash: Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One figure of the report.

    Attributes:
        name: file name without its ending.
        title: heading above it.
        caption: one sentence that says how to read it.
        alt: what it shows, for those who cannot see it.
        figure: the picture.
        data: what it is drawn from.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure
    data: pd.DataFrame


def styles_of(labels: Sequence[str]) -> dict[str, Style]:
    """A style per arm: an algorithm keeps its colour and marker in every study, thresholds differ by the dash."""
    known = list(ALGORITHMS)
    styles: dict[str, Style] = {}
    used: dict[int, int] = {}
    for label in dict.fromkeys(labels):
        algorithm = label.split(" ")[0]
        place = known.index(algorithm) if algorithm in known else len(known) + len(styles)
        repeat = used[place] = used.get(place, -1) + 1
        styles[label] = Style(
            COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], DASHES[(place + repeat) % len(DASHES)]
        )
    return styles


def plain(text: str, width: int = 40) -> str:
    """A name as Matplotlib text: no mathematics in it, and not longer than a panel."""
    return (text if len(text) <= width else text[: width - 1] + "…").replace("$", r"\$")


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    @functools.wraps(draw)
    def inner(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context(RC):
            return draw(*args, **kwargs)

    return inner


def panels(n: int, *, columns: int, width_in: float, height_in: float, **shared: Any) -> tuple[Figure, list[Axes]]:
    """``n`` panels in rows of at most ``columns``."""
    columns = max(1, min(n, columns))
    rows = max(1, math.ceil(n / columns))
    figure = Figure(figsize=(width_in * columns, height_in * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared).ravel().tolist()
    for spare in axes[n:]:
        spare.set_visible(False)
    return figure, axes[:n]


def _wide(n: int) -> int:
    """Panels in a row: four make a square, more come by threes."""
    return 2 if n == 4 else 3


def _axis_names(axes: Sequence[Axes], columns: int, x: str, y: str) -> None:
    """Name the lowest panel of every column and the first of every row."""
    for place, ax in enumerate(axes):
        if place + columns >= len(axes):
            ax.set_xlabel(x)
            ax.xaxis.set_tick_params(labelbottom=True)
        if place % columns == 0:
            ax.set_ylabel(y)


def log_axis(axis: Axis, low: float, high: float) -> None:
    """Plain numbers on a logarithmic axis; within two decades also at 2 and 5."""
    axis.set_major_formatter(lambda v, _: f"{v:g}")
    near = low > 0 and high / low < 100
    axis.set_minor_formatter(lambda v, _: f"{v:g}" if near and f"{v:e}"[0] in "25" else "")


def _legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(
            entries.values(), entries.keys(), loc="outside lower center", ncols=min(6, len(entries)), frameon=False
        )


# Fans over the seeds


def labelled(tables: Tables) -> pd.DataFrame:
    """The runs with the names of their condition and arm, in the order of the design."""
    frames = [arm.runs.assign(condition=arm.condition, label=arm.label) for arm in arms_of(tables.runs)]
    return pd.concat(frames, ignore_index=True) if frames else tables.runs.assign(condition="", label="")


def windowed(steps: pd.DataFrame, column: str, how: str = "median", most: int = WINDOWS) -> pd.DataFrame:
    """``column`` of each run in at most ``most`` windows of steps: ``run_id, step, value``, at each window's end."""
    width = max(1, math.ceil((steps["step"].max() if len(steps) else 1) / most))
    last = (np.ceil(steps["step"] / width) * width).astype(int)
    value = steps[column].replace([np.inf, -np.inf], np.nan)
    frame = pd.DataFrame({"run_id": steps["run_id"].astype(str), "step": last, "value": value})
    windows = frame.groupby(["run_id", "step"], sort=False, as_index=False).agg({"value": how})
    return pd.DataFrame(windows).dropna()


def fan(points: pd.DataFrame, runs: pd.DataFrame, prefix: str = "") -> pd.DataFrame:
    """Quartiles over the runs that did not fail, and each failed run: ``condition, label, curve, step, value``.

    Only runs that went the whole way are in the quartiles, so that a curve does not mend because its bad runs end.
    """
    keys = ["condition", "label", "step"]
    points = points.merge(runs[["run_id", "condition", "label", "outcome", "replicate", "failed_at_step"]], on="run_id")
    alive = points[points["outcome"].isin(("ok", "plateau"))].groupby(keys, sort=False)["value"]
    curves = [alive.quantile(q).reset_index().assign(curve=prefix + name) for name, q in QUARTILES.items()]
    failed = points[points["outcome"] == "failed"]
    curves.append(failed[[*keys, "value"]].assign(curve=prefix + "failed " + failed["replicate"].astype(str)))
    return pd.concat(curves, ignore_index=True).reindex(columns=["condition", "label", "curve", "step", "value"])


def deaths(points: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Where each failed run's curve stood at its failure, as curve ``died``."""
    failed = runs.loc[runs["outcome"] == "failed", ["run_id", "condition", "label", "failed_at_step"]].dropna()
    failed = failed.assign(at=failed["failed_at_step"].astype(float))
    near = failed.merge(points, on="run_id")
    near = near.assign(away=(near["step"] - near["at"]).abs()).sort_values("away", kind="stable")
    near = near.drop_duplicates("run_id").drop(columns="step").rename(columns={"at": "step"})
    return near.assign(curve="died")[["condition", "label", "curve", "step", "value"]].sort_values(["label", "step"])


def loss_data(tables: Tables, runs: pd.DataFrame) -> pd.DataFrame:
    """Training loss as a fan, median validation loss, and the baselines (medians over the runs)."""
    points = windowed(tables.steps, "loss")
    parts = [fan(points, runs), deaths(points, runs), _validation(tables.evals, runs)]
    for column, (name, *_) in BASELINES.items():
        level = runs.groupby(["condition", "label"], sort=False)[column].median().dropna()
        parts.append(level.rename("value").reset_index().assign(curve=name, step=0.0))
    return _joined(parts)


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The parts that hold anything, one below the other."""
    return pd.concat([part for part in parts if len(part)] or [parts[0]], ignore_index=True)


def _validation(evals: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    alive = runs.loc[runs["outcome"].isin(("ok", "plateau")), ["run_id", "condition", "label"]]
    finite = evals[np.isfinite(evals["val_loss"])]
    points = finite.merge(alive, on="run_id").groupby(["condition", "label", "step"], sort=False, as_index=False)
    medians: pd.DataFrame = points.agg({"val_loss": "median"})
    return medians.rename(columns={"val_loss": "value"}).assign(curve="validation")


@_styled
def loss_curves(data: pd.DataFrame, counts: dict[str, str]) -> Figure:
    """One condition's losses, a panel per arm. ``counts``: label -> outcomes in words."""
    figure, axes = panels(len(counts), columns=5, width_in=2.3, height_in=2.3, sharex=True, sharey=True)
    styles, limits = styles_of(list(counts)), _loss_limits(data)
    for ax, (label, outcomes) in zip(axes, counts.items(), strict=True):
        curves = _curves(data, label)
        for name, colour, dash in BASELINES.values():
            if name in curves:
                level = median(data.loc[data["curve"] == name, "value"])
                ax.axhline(level, color=colour, linestyle=dash, lw=1, label=f"{name} ({level:.3g})")
        _draw_fan(ax, curves, styles[label].colour, "")
        _draw_deaths(ax, curves, limits)
        if "validation" in curves:
            points = curves["validation"]
            ax.plot(
                points["step"], points["value"], "o", ms=3, mfc="white", mec=styles[label].colour, label="validation"
            )
        _panel(ax, label, outcomes)
    _log_panels(axes, limits)
    _axis_names(axes, 5, "optimizer step", "loss")
    _legend_below(figure, axes)
    return figure


def _curves(data: pd.DataFrame, label: str) -> dict[str, pd.DataFrame]:
    return {str(name): curve for name, curve in data[data["label"] == label].groupby("curve", sort=False)}


def _draw_fan(ax: Axes, curves: dict[str, pd.DataFrame], colour: str, prefix: str, dash: Any = "-") -> None:
    middle, low, high = (curves.get(prefix + name) for name in ("median", "lower quartile", "upper quartile"))
    if middle is not None and low is not None and high is not None:
        ax.fill_between(low["step"], low["value"], high["value"], color=colour, alpha=0.2, lw=0)
        name = f"{prefix}median and quartiles".replace(":", "")
        ax.plot(middle["step"], middle["value"], color=colour, linestyle=dash, label=name)
    for name, curve in curves.items():
        if name.startswith(prefix + "failed "):
            ax.plot(curve["step"], curve["value"], color="#555555", lw=0.7, alpha=0.8, label="failed run")


def _draw_deaths(ax: Axes, curves: dict[str, pd.DataFrame], limits: tuple[float, float] | None) -> None:
    """A cross at each failure, at the edge of the panel where the curve has left it."""
    if "died" in curves:
        died = curves["died"]
        height = died["value"].clip(*limits) if limits else died["value"]
        ax.plot(died["step"], height, "x", color="#B00020", ms=5, clip_on=False, label="failure", zorder=5)


def _panel(ax: Axes, label: str, note: str) -> None:
    ax.set_title(f"{plain(label, 24)}\n{note}")


def _loss_limits(data: pd.DataFrame) -> tuple[float, float] | None:
    """Limits of a logarithmic axis; None where not all is positive. An explosion may leave the panel."""
    values = data.loc[np.isfinite(data["value"]) & (data["curve"] != "true object"), "value"]
    if not len(values) or values.min() <= 0:
        return None
    yardstick = median(data.loc[data["curve"] == "constant object", "value"])
    ceiling = 30 * (yardstick if np.isfinite(yardstick) else median(values))
    return values.min() / 1.5, max(min(values.max(), ceiling), 2 * values.min()) * 1.3


def _gradient_limits(data: pd.DataFrame) -> tuple[float, float] | None:
    """Four decades to either side of the median norm, or less where less is needed."""
    values = data.loc[np.isfinite(data["value"]) & (data["value"] > 0), "value"]
    if not len(values):
        return None
    middle = median(values)
    return max(values.min(), middle / 1e4) / 1.5, min(values.max(), middle * 1e4) * 1.5


def _log_panels(axes: Sequence[Axes], limits: tuple[float, float] | None) -> None:
    for ax in axes if limits else ():
        ax.set_yscale("log")
        ax.set_ylim(*limits)  # type: ignore[misc]
        log_axis(ax.yaxis, *limits)  # type: ignore[misc]


def gradient_data(tables: Tables, runs: pd.DataFrame) -> pd.DataFrame:
    """Gradient norms before and after clipping as fans, and the largest norm of any run in each window."""
    before = windowed(tables.steps, "grad_norm_preclip")
    largest = windowed(tables.steps, "grad_norm_preclip", "max").merge(
        runs[["run_id", "condition", "label"]], on="run_id"
    )
    largest = largest.groupby(["condition", "label", "step"], sort=False)["value"].max().reset_index()
    after = fan(windowed(tables.steps, "grad_norm_postclip"), runs, "after: ")
    after = after[~after["curve"].str.startswith("after: failed")]
    parts = [fan(before, runs, "before: "), after, largest.assign(curve="before: largest"), deaths(before, runs)]
    data = _joined(parts)
    return data.loc[data["value"] > 0]


@_styled
def gradient_norms(data: pd.DataFrame, counts: dict[str, str]) -> Figure:
    """One condition's gradient norms before and after clipping, a panel per arm."""
    figure, axes = panels(len(counts), columns=5, width_in=2.3, height_in=2.3, sharex=True, sharey=True)
    styles, limits = styles_of(list(counts)), _gradient_limits(data)
    for ax, (label, outcomes) in zip(axes, counts.items(), strict=True):
        curves = _curves(data, label)
        if "before: largest" in curves:
            curve = curves["before: largest"].sort_values("step")
            ax.plot(curve["step"], curve["value"], ":", color="#555555", lw=0.8, label="before: largest of all runs")
        _draw_fan(ax, curves, "#8C8C8C", "before: ")
        _draw_fan(ax, curves, styles[label].colour, "after: ", (0, (4, 1.5)))
        _draw_deaths(ax, curves, limits)
        _panel(ax, label, outcomes)
    _log_panels(axes, limits)
    _axis_names(axes, 5, "optimizer step", "gradient norm")
    _legend_below(figure, axes)
    return figure


# One panel per condition


def clipped_data(tables: Tables, runs: pd.DataFrame) -> pd.DataFrame:
    """Mean clipped fraction over all runs while they last, in at most 25 windows, and how many runs those are."""
    points = windowed(tables.steps, "clipped_fraction", "mean", 25)
    points = points.merge(runs[["run_id", "condition", "label"]], on="run_id")
    grouped = points.groupby(["condition", "label", "step"], sort=False, as_index=False)
    data = pd.DataFrame(grouped.agg(mean=("value", "mean"), n=("value", "size")))
    place = {arm: i for i, arm in enumerate(zip(runs["condition"], runs["label"], strict=True))}
    order = [place[arm] for arm in zip(data["condition"], data["label"], strict=True)]
    return data.assign(order=order).sort_values(["order", "step"], ignore_index=True).drop(columns="order")


@_styled
def clipped_fraction(data: pd.DataFrame) -> Figure:
    """What each algorithm did: the share of the gradient's parts that it clipped."""
    figure, axes, styles = _by_condition(data, sharey=True)
    for ax, condition in axes.items():
        for label, arm in condition.groupby("label", sort=False):
            style = styles[str(label)]
            ax.plot(
                arm["step"], arm["mean"], color=style.colour, linestyle=style.dash, marker=style.marker,
                ms=3.5, markevery=4, label=plain(str(label)),
            )  # fmt: skip
        ax.set_ylim(-0.03, 1.03)
    _axis_names(list(axes), _wide(len(axes)), "optimizer step", "clipped fraction")
    _legend_below(figure, list(axes))
    return figure


def _by_condition(
    data: pd.DataFrame, size_in: tuple[float, float] = (3.4, 2.4), **shared: Any
) -> tuple[Figure, dict[Axes, pd.DataFrame], dict[str, Style]]:
    """A panel per condition, and a style per arm."""
    width, height = size_in
    groups = [(str(name), group) for name, group in data.groupby("condition", sort=False)]
    figure, axes = panels(len(groups), columns=_wide(len(groups)), width_in=width, height_in=height, **shared)
    for ax, (name, _) in zip(axes, groups, strict=True):
        ax.set_title(plain(name))
    return figure, dict(zip(axes, (g for _, g in groups), strict=True)), styles_of(data["label"].astype(str).tolist())


def arms_data(arms: Sequence[ArmSummary]) -> pd.DataFrame:
    """The arm summaries as a table."""
    return pd.DataFrame([dataclasses.asdict(a) for a in arms], columns=[f.name for f in dataclasses.fields(ArmSummary)])


@_styled
def failure_probability(data: pd.DataFrame) -> Figure:
    """Probabilities with their exact intervals, an arm a line."""
    tallest = data.groupby("condition")["label"].size().max()
    groups = [(str(name), group) for name, group in data.groupby("condition", sort=False)]
    figure, axes = panels(len(groups), columns=2, width_in=4.8, height_in=0.6 + 0.36 * tallest, sharex=True)
    styles = styles_of(data["label"].tolist())
    for ax, (name, condition) in zip(axes, groups, strict=True):
        for y, arm in enumerate(condition.to_dict("records")):
            style = styles[str(arm["label"])]
            for column, dy, filled in (("p_fail", -0.15, True), ("p_not_ok", 0.15, False)):
                value, low, high = (arm[column + suffix] for suffix in ("", "_low", "_high"))
                if np.isfinite(value):
                    ax.plot([low, high], [y + dy, y + dy], color=style.colour, lw=1.6 if filled else 0.9)
                    face = style.colour if filled else "white"
                    ax.plot(value, y + dy, style.marker, color=style.colour, mfc=face, ms=5, clip_on=False)
            note = "control" if arm["is_control"] else p_text(arm["p_vs_control"])
            ax.annotate(
                note, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=7, annotation_clip=False
            )
        ax.set_yticks(range(len(condition)), [plain(label, 24) for label in condition["label"]])
        ax.set(xlim=(-0.03, 1.03), ylim=(len(condition) - 0.5, -0.5), title=plain(name, 60))
        ax.grid(axis="y", visible=False)
    if axes:
        _axis_names(axes, 2, "probability with exact 95% interval", "")
        axes[0].plot([], [], "o-", color="#555555", ms=5, lw=1.6, label="failed")
        axes[0].plot([], [], "o-", color="#555555", mfc="white", ms=5, lw=0.9, label="failed or stalled at the plateau")
    _legend_below(figure, axes)
    return figure


def p_text(p: float) -> str:
    """A p-value in a few characters, with a star where it is at most 0.05.

    >>> p_text(0.03125), p_text(0.5), p_text(float("nan"))
    ('p 0.031 *', 'p 0.50', '')
    """
    if math.isnan(p):
        return ""
    if p < 0.001:
        return "p < 0.001 *"
    return f"p {p:.3f} *" if p <= 0.05 else f"p {p:.2f}"


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


@_styled
def survival(data: pd.DataFrame) -> Figure:
    """Share of runs that have not failed, over the steps."""
    figure, axes, styles = _by_condition(data, sharey=True)
    for ax, condition in axes.items():
        arms = list(condition.groupby("label", sort=False))
        for place, (label, arm) in enumerate(arms):
            style = styles[str(label)]
            nudge = 0.006 * (place - (len(arms) - 1) / 2)
            ax.step(
                arm["time"], arm["survival"] + nudge, where="post", color=style.colour, linestyle=style.dash,
                marker=style.marker, ms=4, label=plain(str(label)),
            )  # fmt: skip
        ax.set_ylim(-0.05, 1.05)
    _axis_names(list(axes), _wide(len(axes)), "optimizer step", "share not failed")
    _legend_below(figure, list(axes))
    return figure


def final_loss_data(runs: pd.DataFrame, arms: Sequence[ArmSummary]) -> pd.DataFrame:
    """Final validation loss of each judged run, with its arm's interquartile mean over the runs that did not fail."""
    columns = ["condition", "label", "replicate", "outcome", "val_loss_final", *BASELINES]
    points = runs.loc[runs["outcome"].isin(JUDGED), columns]
    means = arms_data(arms)[["condition", "label", "val_loss_iqm", "val_loss_iqm_low", "val_loss_iqm_high"]]
    return points.merge(means, on=["condition", "label"], how="left")


@_styled
def final_loss(data: pd.DataFrame) -> Figure:
    """Each run's final loss, with interquartile means and baselines."""
    figure, axes, styles = _by_condition(data)
    looks = {"ok": ("o", True, "ok"), "plateau": ("^", False, "plateau"), "failed": ("x", True, "failed")}
    for ax, condition in axes.items():
        low, high = _final_limits(condition)
        for column, (name, colour, dash) in BASELINES.items():
            level = median(condition[column])
            if np.isfinite(level):
                ax.axhline(level, color=colour, linestyle=dash, lw=1, label=name)
        labels = list(dict.fromkeys(condition["label"]))
        for x, label in enumerate(labels):
            arm, colour = condition[condition["label"] == label], styles[label].colour
            for outcome, (marker, filled, name) in looks.items():
                chosen = arm.loc[arm["outcome"] == outcome, "val_loss_final"]
                spread = x + 0.22 * np.sin(2.4 * np.arange(len(chosen)))
                edge = None if marker == "x" else colour
                ax.scatter(
                    spread, chosen.fillna(high).clip(upper=high), 16, marker=marker, edgecolors=edge,
                    facecolors=colour if filled else "none", linewidths=0.9, zorder=3, clip_on=False,
                )  # fmt: skip
                ax.plot([], [], marker, color="#555555", mfc="#555555" if filled else "none", ms=4, label=name)
            first = arm.iloc[0]
            ax.plot([x - 0.34, x + 0.34], [first["val_loss_iqm"]] * 2, color=colour, lw=2.2, zorder=2)
            ax.plot([x, x], [first["val_loss_iqm_low"], first["val_loss_iqm_high"]], color=colour, lw=1, zorder=2)
        ax.set_xticks(range(len(labels)), [plain(label, 16) for label in labels], rotation=30, ha="right")
        if low > 0:
            ax.set_yscale("log")
            log_axis(ax.yaxis, low, high)
        ax.set_ylim(low, high)
    _axis_names(list(axes), _wide(len(axes)), "", "final validation loss")
    _legend_below(figure, list(axes))
    return figure


def _final_limits(condition: pd.DataFrame) -> tuple[float, float]:
    """All finite losses and the constant object, but no explosion above 30 times that."""
    values = condition["val_loss_final"][np.isfinite(condition["val_loss_final"])]
    yardstick = np.fmax(condition["baseline_constant"].max(), median(values))
    yardstick = yardstick if np.isfinite(yardstick) else 1.0
    if not len(values):
        return yardstick / 10, yardstick * 1.3
    low = values.min() / 1.5 if values.min() > 0 else values.min() - 0.1 * abs(yardstick)
    return float(low), float(max(min(values.max(), 30 * abs(yardstick)), yardstick) * 1.3)


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


@_styled
def profiles(data: pd.DataFrame) -> Figure:
    """Performance profiles: higher and further left is better."""
    figure, axes, styles = _by_condition(data, sharey=True)
    for ax, condition in axes.items():
        for label, arm in condition.groupby("label", sort=False):
            style = styles[str(label)]
            ax.step(
                arm["threshold"], arm["share"], where="post", color=style.colour, linestyle=style.dash,
                marker=style.marker, ms=3.5, markevery=25, label=plain(str(label)),
            )  # fmt: skip
        ax.set_xscale("log")
        ax.set_ylim(-0.03, 1.03)
        log_axis(ax.xaxis, *ax.get_xlim())
    _axis_names(list(axes), _wide(len(axes)), "final loss over that of the constant object", "share of runs")
    _legend_below(figure, list(axes))
    return figure


# Frontier


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


@_styled
def frontier_figure(data: pd.DataFrame) -> Figure:
    """Failure probability against learning rate, a line per arm, with LR50 marked on the line of one half."""
    figure, axes, styles = _by_condition(data.assign(condition=data["setting"]), (4.4, 3.6), sharey=True)
    for ax, setting in axes.items():
        ax.axhline(0.5, color="#999999", lw=0.8)
        for label, arm in setting.groupby("label", sort=False):
            style = styles[str(label)]
            ax.fill_between(
                arm["learning_rate"], arm["p_fail_low"], arm["p_fail_high"], color=style.colour, alpha=0.1, lw=0
            )
            lr50, gain = arm["lr50"].iloc[0], arm["gain"].iloc[0]
            name = plain(str(label)) + (f" (LR50 {lr50:.2g}" if np.isfinite(lr50) else " (LR50 outside the rates tried")
            name += f", gain {gain:.1f})" if np.isfinite(gain) else ")"
            ax.plot(
                arm["learning_rate"], arm["p_fail"], color=style.colour, linestyle=style.dash, marker=style.marker,
                ms=4, label=name,
            )  # fmt: skip
            if np.isfinite(lr50):
                ax.plot(lr50, 0.5, style.marker, color=style.colour, ms=9, mfc="white", mew=1.8, zorder=4)
        ax.set_xscale("log")
        ax.set_ylim(-0.03, 1.03)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, fontsize=7, frameon=False)
        log_axis(ax.xaxis, *ax.get_xlim())
    _axis_names(list(axes), _wide(len(axes)), "learning rate", "failure probability")
    return figure


# Gallery


class Picture(NamedTuple):
    """A reconstruction for the gallery: (H, W) complex64, NaN where too little light fell, and its truth or None."""

    image: np.ndarray
    truth: np.ndarray | None


def read_picture(path: Path) -> Picture:
    """A run's reconstruction, cut to where light fell.

    Raises:
        InputError: a damaged file.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            image, weight = file["reconstruction"].astype(np.complex64), file["weight"]
            truth = file["truth"].astype(np.complex64) if "truth" in file else None
        seen = weight >= 0.1 * weight.max()
        image[~seen] = np.nan
        box = np.ix_(seen.any(axis=1), seen.any(axis=0))
        return Picture(image[box], None if truth is None else truth[box])
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: no reconstruction can be read ({error}); allowed: the file as the run wrote it"
        ) from error


def for_display(picture: Picture) -> np.ndarray:
    """The image with its global phase, and with a truth its scale, brought to the truth's (else to phase zero)."""
    image, truth = picture
    good = np.isfinite(image)
    if not good.any():
        return image
    if truth is None:
        turn = np.sum(image[good])
        return np.asarray(image * np.exp(-1j * np.angle(turn)))
    inner = np.sum(np.conj(image[good]) * truth[good])
    scale = np.abs(truth[good]).mean() / max(np.abs(image[good]).mean(), np.finfo(np.float32).tiny)
    return np.asarray(image * scale * np.exp(1j * np.angle(inner)))


def gallery_data(out: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """Which run each arm shows: one replicate for all arms, and a typical one rather than the best.

    It is the first replicate in which most arms end with their most frequent outcome, of those with anything to show.
    """
    columns = ["run_id", "condition", "label", "replicate", "outcome", "reason", "amp_ssim", "phase_ssim"]
    there = [(out / "runs" / run_id / "reconstruction.npz").is_file() for run_id in runs["run_id"]]
    usual = runs.groupby(["condition", "label"])["outcome"].transform(lambda words: words.mode().iloc[0])
    candidates = runs[columns].assign(reconstruction=there, usual=runs["outcome"] == usual)
    per_replicate = candidates.groupby(["condition", "replicate"], as_index=False)
    count: pd.DataFrame = per_replicate.agg({"usual": "sum", "reconstruction": "any"})
    best = count[count["reconstruction"]].sort_values(["usual", "replicate"], ascending=[False, True], kind="stable")
    chosen = best.drop_duplicates("condition")[["condition", "replicate"]]
    return candidates.merge(chosen, on=["condition", "replicate"]).drop_duplicates(["condition", "label"])


@_styled
def gallery(data: pd.DataFrame, out: Path) -> Figure:
    """Amplitude above phase, the truth first where it is known, then an arm a column."""
    records = data.to_dict("records")
    pictures = [
        read_picture(out / "runs" / str(run["run_id"]) / "reconstruction.npz") if run["reconstruction"] else None
        for run in records
    ]
    columns = [
        (_gallery_title(run), None if picture is None else for_display(picture))
        for run, picture in zip(records, pictures, strict=True)
    ]
    truth = next((p.truth for p in pictures if p is not None and p.truth is not None), None)
    if truth is not None:
        columns.insert(0, ("truth", truth))
    figure = Figure(figsize=(1.55 * len(columns) + 0.7, 3.5), layout="constrained")
    axes = figure.subplots(2, len(columns), squeeze=False)
    rows: tuple[tuple[str, Callable[..., np.ndarray], str], ...] = (
        ("amplitude", np.abs, "gray"),
        ("phase / rad", np.angle, "cividis"),
    )
    for row, (name, part, colours) in enumerate(rows):
        images = [None if image is None else part(image) for _, image in columns]
        low, high = _limits([part(truth)] if truth is not None else [i for i in images if i is not None])
        for ax, image, (title, _) in zip(axes[row], images, columns, strict=True):
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
            if image is None:
                ax.text(0.5, 0.5, "nothing to show", ha="center", va="center", fontsize=7, transform=ax.transAxes)
                ax.set_box_aspect(1)
            else:
                ax.imshow(image, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            if row == 0:
                ax.set_title(title, fontsize=7)
        axes[row][0].set_ylabel(name)
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(low, high), colours)
        figure.colorbar(scale, ax=list(axes[row]), shrink=0.9, pad=0.01)
    return figure


def _gallery_title(run: Mapping[Any, Any]) -> str:
    scores = [f"{run[key]:.2f}" for key in ("amp_ssim", "phase_ssim") if np.isfinite(run[key])]
    return f"{plain(run['label'], 20)}\n{run['outcome']}" + (f", SSIM {' / '.join(scores)}" if scores else "")


def _limits(images: Sequence[np.ndarray]) -> tuple[float, float]:
    """One scale for all: the median over the images of their 1st and 99th percentile."""
    bounds = [np.percentile(i[np.isfinite(i)], (1, 99)) for i in images if np.isfinite(i).any()]
    low, high = np.median(bounds, axis=0) if bounds else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1.0


# All of them


def draw_all(tables: Tables, arms: Sequence[ArmSummary]) -> Iterator[Drawing]:
    """Every figure that the study has data for, one at a time; at most 12 conditions of each kind."""
    if not len(tables.runs):
        return
    runs = labelled(tables)
    shown = list(dict.fromkeys(runs["condition"]))[:MOST_CONDITIONS]
    runs = runs[runs["condition"].isin(shown)]
    chosen = [arm for arm in arms if arm.condition in shown]
    yield from _overviews(tables, runs, chosen, arms)
    losses, gradients = loss_data(tables, runs), gradient_data(tables, runs)
    galleries = gallery_data(tables.out, runs)
    for number, condition in enumerate(shown, start=1):
        counts = {arm.label: _outcomes(arm) for arm in chosen if arm.condition == condition}
        parts = (frame[frame["condition"] == condition] for frame in (losses, gradients, galleries))
        yield from _of_condition(tables.out, f"{number:02d}_{slug(condition)}", condition, counts, *parts)


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
            caption="Probability of failure against the learning rate, with exact 95% bands; the large open marker is "
            "LR50, the rate at which half of the runs fail, and the gain is LR50 over that of the control.",
            alt="; ".join(f"{line.setting}, {line.label}: LR50 {line.lr50:.2g}" for line in lines.itertuples()),
        )  # fmt: skip
    if shown:
        yield Drawing(
            name="failure_probability", title="Who fails", figure=failure_probability(arms_data(shown)),
            data=arms_data(shown),
            caption="Full marks: probability that a run fails; open marks: that it fails or stalls; lines are exact "
            "95% intervals, and a star marks an arm whose open mark differs significantly from the control's.",
            alt="; ".join(f"{a.condition}, {a.label}: {_outcomes(a)}" for a in shown),
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
            "one with a cross where they failed; open circles are validations, horizontal lines the baselines.",
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
