"""How every figure of a report looks.

Arms are told apart by colour, marker and dash together, so that the figures can be read in grey and by the
colour-blind.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ptycho.config.algorithms import ALGORITHMS

# Okabe and Ito 2008, yellow darkened so that it shows on white, black for the control
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#8A7F00", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 2)), (0, (2, 2)))
RC: Any = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 8, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#DDDDDD", "grid.linewidth": 0.5, "lines.linewidth": 1.3, "font.family": "DejaVu Sans",
}  # fmt: skip
BASELINES = {
    "baseline_constant": ("constant object", "#B00020", (0, (1, 1.5))),
    "baseline_mean_patch": ("mean patch", "#7A5195", (0, (4, 2))),
    "baseline_oracle": ("true object", "#2F7D32", "-"),
}


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


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Let a function draw in the report's style, and leave Matplotlib's settings as they were."""

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


def per_row(n: int) -> int:
    """Panels in a row: four make a square, more come by threes."""
    return 2 if n == 4 else 3


def axis_names(axes: Sequence[Axes], columns: int, x: str, y: str) -> None:
    """Name the lowest panel of every column and the first of every row."""
    for place, ax in enumerate(axes):
        if place + columns >= len(axes):
            ax.set_xlabel(x)
            ax.xaxis.set_tick_params(labelbottom=True)
        if place % columns == 0:
            ax.set_ylabel(y)


def log_axis(axis: Axis, low: float, high: float) -> None:
    """Plain numbers on a logarithmic axis; within two decades also at 2 and 5, beyond them no minor ticks."""
    near = low > 0 and high / low < 100
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(LogLocator(subs=(2, 5)) if near else NullLocator())
    axis.set_minor_formatter("{x:g}")


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, each entry once, in as many columns as the figure's width holds, at most six."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    for columns in range(min(6, len(entries)), 0, -1):
        legend = figure.legend(
            entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def condition_axes(
    data: pd.DataFrame, size_in: tuple[float, float] = (3.4, 2.4), **shared: Any
) -> tuple[Figure, dict[Axes, pd.DataFrame], dict[str, Style]]:
    """A panel per condition, and a style per arm."""
    width, height = size_in
    groups = [(str(name), group) for name, group in data.groupby("condition", sort=False)]
    figure, axes = panels(len(groups), columns=per_row(len(groups)), width_in=width, height_in=height, **shared)
    for ax, (name, _) in zip(axes, groups, strict=True):
        ax.set_title(plain(name))
    return figure, dict(zip(axes, (g for _, g in groups), strict=True)), styles_of(data["label"].astype(str).tolist())


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
