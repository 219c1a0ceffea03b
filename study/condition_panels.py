"""Figures with a panel per condition, in which the arms stand side by side. Nothing is computed while drawing."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from study.arms import median
from study.comparisons import LARGEST_COST
from study.drawing import (
    BASELINES,
    axis_names,
    condition_axes,
    legend_below,
    log_axis,
    p_text,
    panels,
    per_row,
    plain,
    styled,
    styles_of,
)


@styled
def clipped_fraction(data: pd.DataFrame) -> Figure:
    """What each algorithm did: the share of the gradient's parts that it clipped."""
    figure, axes, styles = condition_axes(data, sharey=True)
    for ax, condition in axes.items():
        for label, arm in condition.groupby("label", sort=False):
            style = styles[str(label)]
            ax.plot(
                arm["step"], arm["mean"], color=style.colour, linestyle=style.dash, marker=style.marker,
                ms=3.5, markevery=4, label=plain(str(label)),
            )  # fmt: skip
        ax.set_ylim(-0.03, 1.03)
    axis_names(list(axes), per_row(len(axes)), "optimizer step", "clipped fraction")
    legend_below(figure, list(axes))
    return figure


@styled
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
        axis_names(axes, 2, "probability with exact 95% interval", "")
        axes[0].plot([], [], "o-", color="#555555", ms=5, lw=1.6, label="failed")
        axes[0].plot([], [], "o-", color="#555555", mfc="white", ms=5, lw=0.9, label="failed or stalled at the plateau")
    legend_below(figure, axes)
    return figure


PRICES = {
    "loss_ratio": ("loss, times that of {}", 1.0),
    "amp_ssim_shift": ("amplitude SSIM minus that of {}", 0.0),
    "frc50_shift": ("FRC50 minus that of {} / Nyquist", 0.0),
}


@styled
def price_figure(data: pd.DataFrame) -> Figure:
    """What each arm costs: a row of panels per condition, one for the loss and one for each score that there is."""
    kinds = [kind for kind in PRICES if np.isfinite(data[kind]).any()]
    groups = [(str(name), group) for name, group in data.groupby("condition", sort=False)]
    tallest = data.groupby("condition").size().max()
    figure, axes = panels(
        len(groups) * len(kinds), columns=len(kinds), width_in=3.2, height_in=0.75 + 0.26 * tallest
    )  # fmt: skip
    styles = styles_of(data["arm"].tolist())
    for place, ax in enumerate(axes):
        (name, condition), kind = groups[place // len(kinds)], kinds[place % len(kinds)]
        text, neutral = PRICES[kind]
        ax.axvline(neutral, color="#999999", lw=0.8)
        if kind == "loss_ratio":
            ax.axvline(LARGEST_COST, color="#555555", linestyle=":", lw=1)
        for y, arm in enumerate(condition.to_dict("records")):
            style = styles[str(arm["arm"])]
            ax.plot([arm[f"{kind}_low"], arm[f"{kind}_high"]], [y, y], color=style.colour, lw=1.6)
            ax.plot(arm[kind], y, style.marker, color=style.colour, ms=5)
        against = plain(str(condition["against"].iloc[0]), 20)
        ax.set_yticks(range(len(condition)), [plain(arm, 20) for arm in condition["arm"]])
        ax.set(ylim=(tallest - 0.5, -0.5), xlabel=text.format(against))
        ax.grid(axis="y", visible=False)
        if kind == kinds[0]:
            ax.set_title(plain(name, 60), loc="left", fontweight="bold")
    return figure


@styled
def survival(data: pd.DataFrame) -> Figure:
    """Share of runs that have not failed, over the steps."""
    figure, axes, styles = condition_axes(data, sharey=True)
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
    axis_names(list(axes), per_row(len(axes)), "optimizer step", "share not failed")
    legend_below(figure, list(axes))
    return figure


@styled
def final_loss(data: pd.DataFrame) -> Figure:
    """Each run's final loss, with interquartile means and baselines."""
    figure, axes, styles = condition_axes(data)
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
    axis_names(list(axes), per_row(len(axes)), "", "final validation loss")
    legend_below(figure, list(axes))
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


@styled
def profiles(data: pd.DataFrame) -> Figure:
    """Performance profiles: higher and further left is better."""
    figure, axes, styles = condition_axes(data, sharey=True)
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
    axis_names(list(axes), per_row(len(axes)), "final loss over that of the constant object", "share of runs")
    legend_below(figure, list(axes))
    return figure


@styled
def frontier_figure(data: pd.DataFrame) -> Figure:
    """Failure probability against learning rate, a line per arm, with LR50 marked on the line of one half."""
    figure, axes, styles = condition_axes(data.assign(condition=data["setting"]), (4.4, 3.6), sharey=True)
    for ax, setting in axes.items():
        ax.axhline(0.5, color="#999999", lw=0.8)
        arms = list(setting.groupby("label", sort=False))
        for place, (label, arm) in enumerate(arms):
            style = styles[str(label)]
            lr50, gain, low, high = (arm[name].iloc[0] for name in ("lr50", "gain", "lr50_low", "lr50_high"))
            name = plain(str(label)) + (f" (LR50 {lr50:.2g}" if np.isfinite(lr50) else " (LR50 outside the rates tried")
            name += f", gain {gain:.1f})" if np.isfinite(gain) else ")"
            ax.plot(
                arm["learning_rate"], arm["p_fail"], color=style.colour, linestyle=style.dash, marker=style.marker,
                ms=4, label=name,
            )  # fmt: skip
            if np.isfinite(lr50):
                height = 0.5 + 0.022 * (place - (len(arms) - 1) / 2)
                ends = np.clip([low, high], arm["learning_rate"].min(), arm["learning_rate"].max())
                ax.plot(ends, [height, height], color=style.colour, lw=2.5, alpha=0.7, solid_capstyle="butt", zorder=3)
                ax.plot(lr50, height, style.marker, color=style.colour, ms=9, mfc="white", mew=1.8, zorder=4)
        ax.set_xscale("log")
        ax.set_ylim(-0.03, 1.03)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, fontsize=7, frameon=False)
        log_axis(ax.xaxis, *ax.get_xlim())
    axis_names(list(axes), per_row(len(axes)), "learning rate", "failure probability")
    return figure
