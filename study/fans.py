"""Curves over the steps of one condition, a panel per arm: a fan of quartiles, and each failed run singly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.arms import median
from study.drawing import BASELINES, axis_names, legend_below, log_axis, panels, plain, styled, styles_of


@styled
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
    axis_names(axes, 5, "optimizer step", "loss")
    legend_below(figure, axes)
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


@styled
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
    axis_names(axes, 5, "optimizer step", "gradient norm")
    legend_below(figure, axes)
    return figure
