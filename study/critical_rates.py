"""Critical learning rates of a study, as a table and in words; how they are found is told in ``study.frontier``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from study.findings import listed
from study.frontier import Point, critical_rate, describe, gain, ranks, usable_band
from study.statistics import Estimate
from study.summaries import ArmSummary

FRONTIER_COLUMNS = (
    *("setting", "label", "algorithm", "lr50", "lr50_low", "lr50_high", "lr50_text"),
    *("gain", "gain_low", "gain_high", "gain_text", "usable_decades"),
)


def frontier(arms: Sequence[ArmSummary], control: str) -> pd.DataFrame:
    """Critical learning rates, one row per regime, network, optimizer and algorithm with at least two rates.

    Columns: ``setting``, ``label``, ``algorithm``; ``lr50`` (rate at which half of the runs fail), ``gain`` (over the
    control's), each with its interval ``_low`` and ``_high`` and in words, ``_text``; ``usable_decades`` (area under
    the share of ok runs over log10 of the rate). See ``study.frontier``.
    """
    lines: dict[tuple[str, str], list[ArmSummary]] = {}
    for arm in arms:
        lines.setdefault((frontier_setting(arm), arm.label), []).append(arm)
    found = {
        (setting, line[0].algorithm, label): [Point(a.learning_rate, a.n, a.n_failed, a.n_ok) for a in line]
        for (setting, label), every in lines.items()
        if len(line := [a for a in every if a.n]) > 1
    }
    rates = {key: critical_rate(points) for key, points in found.items()}
    base = {setting: rate for (setting, algorithm, _), rate in reversed(rates.items()) if algorithm == control}
    rows = [
        {"setting": key[0], "label": key[2], "algorithm": key[1], **_frontier_row(rate, base.get(key[0]), points)}
        for (key, rate), points in zip(rates.items(), found.values(), strict=True)
    ]
    return pd.DataFrame(rows, columns=FRONTIER_COLUMNS)


def _frontier_row(rate: Estimate, control: Estimate | None, points: Sequence[Point]) -> dict[str, Any]:
    unknown = Estimate(math.nan, 0.0, math.inf)
    one = Estimate(rate.value / rate.value, 1.0, 1.0)
    over = unknown if control is None else one if rate is control else gain(rate, control)
    return {
        "lr50": rate.value, "lr50_low": rate.low, "lr50_high": rate.high, "lr50_text": describe(rate),
        "gain": over.value, "gain_low": over.low, "gain_high": over.high, "gain_text": describe(over),
        "usable_decades": usable_band(points),
    }  # fmt: skip


def frontier_setting(arm: ArmSummary) -> str:
    """What the rates of one line of the frontier have in common."""
    depth = "" if math.isnan(arm.fno_blocks) else f", {arm.fno_blocks:g} blocks"
    return f"{arm.regime}, {arm.architecture}{depth}, {arm.optimizer}"


def frontier_headline(lines: pd.DataFrame, control: str) -> str:
    """The gains over the control that are shown, largest first."""
    rows = [row for row in lines.to_dict("records") if row["algorithm"] != control]
    better = [row for row in rows if row["gain_low"] > 1.0]
    if not better:
        return f"Frontier: no algorithm is shown to bear a higher learning rate than {control}."
    told = [f"{row['label']} {row['gain_text']}" for row in sorted(better, key=lambda row: -row["gain_low"])]
    return f"Frontier: half of the runs fail at a higher learning rate than {control}'s, by the factor: {listed(told)}."


def frontier_sentences(lines: pd.DataFrame) -> list[str]:
    """The critical rates of every setting, and their order as far as it is shown."""
    sentences = []
    for setting, rows in lines.groupby("setting", sort=False):
        told = [f"{row.lr50_text} with {row.label}" for row in rows.itertuples()]
        sentences.append(f"{setting}: half of the runs fail at a learning rate of {listed(told)}.")
        bounds = zip(*(rows[key].astype(float) for key in ("lr50", "lr50_low", "lr50_high")), strict=True)
        groups = ranks(dict(zip(rows["label"].astype(str), itertools.starmap(Estimate, bounds), strict=True)))
        if len(groups) > 1:
            order = " < ".join(" = ".join(sorted(group)) for group in groups)
            sentences.append(f"{setting}: critical rates in order, = where they are not told apart: {order}.")
    return sentences
