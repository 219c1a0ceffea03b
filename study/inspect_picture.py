"""The picture of a scan: mean pattern, probe, positions, and the frames' totals with the suspected ones marked."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ptycho.readers.overview import Overview
from study.drawing import COLOURS, MARKERS, RC

SUSPECTED = COLOURS[4]


def draw(scan: Overview) -> Figure:
    """Four panels."""
    with mpl.rc_context({**RC, "axes.grid": False}):
        figure = Figure(figsize=(8, 7), layout="constrained")
        axes = figure.subplots(2, 2)
        _mean_pattern(axes[0, 0], scan)
        _probe(axes[0, 1], scan)
        _positions(axes[1, 0], scan)
        _totals(axes[1, 1], scan)
        figure.suptitle(f"{scan.path.name}: {len(scan.facts.totals)} frames of {scan.window.size} px")
    return figure


def _mean_pattern(axes: Axes, scan: Overview) -> None:
    mean = scan.facts.mean
    lowest = max(mean[mean > 0].min(), mean.max() * 1e-6)
    shown = np.ma.masked_array(np.maximum(mean, lowest), mask=False if scan.mask is None else ~scan.mask)
    colours = mpl.colormaps["viridis"].with_extremes(bad="#CCCCCC")
    image = axes.imshow(shown, norm=LogNorm(lowest, mean.max()), cmap=colours, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, shrink=0.8)
    rows, columns = np.nonzero(scan.pixels.hot | scan.pixels.dead)
    if rows.size:
        axes.scatter(columns / scan.window.bin, rows / scan.window.bin, s=30, facecolors="none", edgecolors=SUSPECTED)
    masked = "" if scan.mask is None else ", masked grey"
    axes.set_title(f"mean pattern, log{masked}{', suspected circled' if rows.size else ''}")


def _probe(axes: Axes, scan: Overview) -> None:
    brightness = np.sqrt(np.sum(np.abs(scan.probe.modes) ** 2, axis=0))
    axes.imshow(brightness, cmap="magma", interpolation="nearest")
    middle, radius = scan.window.size // 2, scan.probe_diameter_px / 2
    axes.add_patch(mpl.patches.Circle((middle, middle), radius, fill=False, edgecolor="white", linestyle=":"))
    word = "estimated" if scan.probe.source == "estimated" else "from a file"
    axes.set_title(f"probe ({word}), object px")


def _positions(axes: Axes, scan: Overview) -> None:
    axes.set_title("scan positions / object px")
    if scan.positions_px is None:
        axes.text(0.5, 0.5, "not known yet: see what is missing", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    rows, columns = scan.positions_px.T
    axes.plot(columns, rows, color="#BBBBBB", linewidth=0.5, zorder=1)
    axes.scatter(columns, rows, s=6, color=COLOURS[5], zorder=2)
    _mark(axes, scan, columns, rows)
    axes.set_aspect("equal")
    axes.invert_yaxis()


def _totals(axes: Axes, scan: Overview) -> None:
    numbers = np.arange(len(scan.facts.totals))
    axes.plot(numbers, scan.facts.totals, ".", markersize=3, color=COLOURS[5])
    _mark(axes, scan, numbers, scan.facts.totals)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("frame")
    axes.set_title("sum of each frame")
    if scan.frames:
        axes.legend(loc="best")


def _mark(axes: Axes, scan: Overview, x: np.ndarray, y: np.ndarray) -> None:
    for marker, (what, frames) in zip(MARKERS, scan.frames.items(), strict=False):
        axes.scatter(x[frames], y[frames], s=28, marker=marker, facecolors="none", edgecolors=SUSPECTED, label=what)
