"""A search in one figure: how many of the runs are ok, and how well they learn, over the rate or threshold searched."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from study.critical_rates import frontier_setting
from study.drawing import Drawing, legend_below, log_axis, panels, plain, styled, styles_of
from study.regime_names import TUNING
from study.summaries import ArmSummary

AXES = {"learning_rate": "learning rate", "threshold": "clipping threshold"}


def search_data(arms: Sequence[ArmSummary], searched: set[str]) -> pd.DataFrame:
    """One row per arm of the searched regimes that was judged, with its place ``x`` on the axis of the search.

    ``axis`` is the learning rate, or the threshold where there is one rate; ``chosen`` marks the threshold with which
    the arm went on to be judged.
    """
    judged = {(arm.regime, arm.algorithm, arm.threshold) for arm in arms if arm.regime not in searched}
    rates: dict[str, set[float]] = {}
    for arm in arms:
        rates.setdefault(arm.regime, set()).add(arm.learning_rate)
    rows = []
    for arm in arms:
        if arm.regime in searched and arm.n:
            axis = "learning_rate" if len(rates[arm.regime]) > 1 else "threshold"
            rows.append(
                {
                    "setting": frontier_setting(arm),
                    "line": arm.label if axis == "learning_rate" else arm.algorithm,
                    "axis": axis,
                    "x": getattr(arm, axis),
                    "n": arm.n,
                    "n_ok": arm.n_ok,
                    "share_ok": 1 - arm.p_not_ok,
                    "share_ok_low": 1 - arm.p_not_ok_high,
                    "share_ok_high": 1 - arm.p_not_ok_low,
                    "relative_loss": arm.relative_loss_median,
                    "chosen": (arm.regime.removesuffix(TUNING), arm.algorithm, arm.threshold) in judged,
                }
            )
    return pd.DataFrame(rows)


@styled
def search_figure(data: pd.DataFrame) -> Figure:
    """A row of two panels per setting; an arm without a place on a logarithmic axis is a line across."""
    groups = [(str(name), group) for name, group in data.groupby("setting", sort=False)]
    figure, axes = panels(2 * len(groups), columns=2, width_in=4.8, height_in=2.8)
    styles = styles_of(data["line"].tolist())
    for (name, setting), share, loss in zip(groups, axes[::2], axes[1::2], strict=True):
        for ax, column in ((share, "share_ok"), (loss, "relative_loss")):
            for label, line in setting.groupby("line", sort=False):
                style = styles[str(label)]
                looks = {"color": style.colour, "linestyle": style.dash, "label": plain(str(label))}
                if not (line["x"] > 0).any():
                    ax.axhline(line[column].iloc[0], **looks)
                    continue
                ax.plot(line["x"], line[column], marker=style.marker, ms=4, **looks)
                chosen = line[line["chosen"]]
                ax.plot(
                    chosen["x"], chosen[column], style.marker, color=style.colour, ms=9, mfc="white", mew=1.8, zorder=4
                )
            ax.set(xscale="log", title=plain(name, 60), xlabel=AXES[str(setting["axis"].iloc[0])])
            log_axis(ax.xaxis, *ax.get_xlim())
        share.set_ylim(-0.03, 1.03)
        if setting["relative_loss"].min() > 0 and np.isfinite(setting["relative_loss"]).any():
            loss.set_yscale("log")
            log_axis(loss.yaxis, *loss.get_ylim())
        share.set_ylabel("share of runs that are ok")
        loss.set_ylabel("final loss / constant object's,\nmedian, failures at 1")
    legend_below(figure, axes)
    return figure


def search_overview(arms: Sequence[ArmSummary], searched: set[str]) -> Drawing | None:
    """The figure of all that was searched; None where nothing was."""
    data = search_data(arms, searched)
    if data.empty:
        return None
    chosen = (
        "; a large open marker is the threshold chosen for the verdict: most runs ok, then the lowest loss"
        if data["chosen"].any()
        else ""
    )
    best = data.sort_values("n_ok", kind="stable").drop_duplicates(["setting", "line"], keep="last").sort_index()
    return Drawing(
        name="search", title="What the search tried", figure=search_figure(data), data=data,
        caption="Share of the runs that are ok, and median of the final loss in units of the constant object's, with "
        f"failed runs at 1, over what was searched{chosen}.",
        alt="Most ok runs: " + "; ".join(
            f"{row.setting}, {row.line}: {row.n_ok} of {row.n} at {AXES[str(row.axis)]} {row.x:.3g}"
            for row in best.itertuples()
        ),
    )  # fmt: skip
