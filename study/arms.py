"""The arms of a study, and the pairs that two of them make.

An arm is one algorithm (and threshold) under one condition: a regime and whatever else varies within it,
such as architecture, depth or learning rate. Comparisons are made within a condition, over paired replicates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ptycho.errors import InputError
from study.adaptive import mcnemar_sequential
from study.statistics import mcnemar_exact, ratio_of_medians
from study.table import JUDGED, Tables

CONDITION = ("regime", "N", "architecture", "fno_blocks", "optimizer", "learning_rate")
ARM = ("algorithm", "threshold")
PairedTest = Callable[[int, int], float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """The runs of one arm, with the names that tell it apart."""

    condition: str
    label: str
    runs: pd.DataFrame

    def judged(self) -> pd.DataFrame:
        """Its judged runs, indexed by replicate, with ``not_ok`` and the loss that failures cannot escape.

        Raises:
            InputError: two judged runs of one replicate.
        """
        runs = self.runs[self.runs["outcome"].isin(JUDGED)].set_index("replicate")
        twice = runs.index[runs.index.duplicated()]
        if len(twice):
            raise InputError(
                f"{self.condition}/{self.label}: replicate {twice[0]} was run twice with different settings "
                f"({' and '.join(runs.loc[twice[0], 'run_id'])}); allowed: one study a folder"
            )
        return runs.assign(not_ok=runs["outcome"] != "ok", loss=bounded_loss(runs))


def bounded_loss(runs: pd.DataFrame) -> pd.Series:
    """Final validation loss with failures, and all that is worse, at the loss of the constant object."""
    loss = runs["val_loss_final"].where(runs["outcome"] != "failed")
    largest = runs["val_loss_final"].replace([np.inf, -np.inf], np.nan).max()
    worst = runs["baseline_constant"].fillna(largest)
    return loss.fillna(worst).clip(upper=worst)


def arms_of(runs: pd.DataFrame) -> list[Arm]:
    """The arms in the order of the table."""
    factors = [key for key in CONDITION if key in runs.columns]
    arms = []
    for _, regime in runs.groupby("regime", sort=False):
        varying = [key for key in factors if key != "regime" and len(regime[key].unique()) > 1]
        for _, condition in regime.groupby(factors, sort=False, dropna=False):
            name = " · ".join(_factor_text(key, condition[key].iloc[0]) for key in ["regime", *varying])
            pairs = condition[list(ARM)].drop_duplicates()["algorithm"].tolist()
            for (algorithm, threshold), arm in condition.groupby(list(ARM), sort=False, dropna=False):
                label = f"{algorithm} {threshold:g}" if pairs.count(algorithm) > 1 else str(algorithm)
                arms.append(Arm(condition=name, label=label, runs=arm))
    return arms


def _factor_text(key: str, value: Any) -> str:
    match key:
        case "learning_rate":
            return f"rate {value:.3g}"
        case "N":
            return f"{value:g} px"
        case "fno_blocks":
            return "unknown depth" if pd.isna(value) else f"{value:g} blocks"
    return str(value)


def evidence_arms(tables: Tables) -> list[Arm]:
    """The arms that a verdict may rest on: those of regimes that do not only search a rate or a threshold."""
    return arms_of(tables.runs[~tables.runs["regime"].isin(searched_regimes(tables))])


def searched_regimes(tables: Tables) -> set[str]:
    """The regimes whose runs only choose a rate or a threshold."""
    return {regime["name"] for regime in tables.study.get("regimes", []) if regime.get("evidence") is False}


def by_condition(arms: Iterable[Arm]) -> dict[str, list[Arm]]:
    """The arms of each condition."""
    grouped: dict[str, list[Arm]] = {}
    for arm in arms:
        grouped.setdefault(arm.condition, []).append(arm)
    return grouped


def control_of(arms: Sequence[Arm], control: str) -> Arm | None:
    """The control among the arms of one condition."""
    return next((arm for arm in arms if arm.runs["algorithm"].iloc[0] == control), None)


def finite(column: pd.Series) -> np.ndarray:
    """(R,) the values that are neither missing nor infinite."""
    values = np.asarray(column, dtype=float)
    return np.asarray(values[np.isfinite(values)])


def median(column: pd.Series) -> float:
    """Median of the finite values; NaN where there are none."""
    values = finite(column)
    return float(np.median(values)) if len(values) else math.nan


def survival_times(runs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(R,) step of failure or last step seen, and (R,) whether the run failed; lost runs are censored."""
    failed: np.ndarray = (runs["outcome"] == "failed").to_numpy(dtype=bool)
    last = runs["steps"].to_numpy(dtype=float, na_value=math.nan)
    died = runs["failed_at_step"].to_numpy(dtype=float, na_value=math.nan)
    time: np.ndarray = np.where(failed & np.isfinite(died), died, last)
    known = np.isfinite(time)
    return time[known], failed[known]


@dataclasses.dataclass(frozen=True, slots=True)
class Pairs:
    """Judged runs of an arm beside those of another, replicate by replicate; empty for the control itself."""

    arm: pd.DataFrame
    against: pd.DataFrame

    @property
    def n(self) -> int:
        """How many pairs."""
        return len(self.arm)

    @property
    def better(self) -> int:
        """Replicates that are ok in this arm only."""
        return int((self.against["not_ok"] & ~self.arm["not_ok"]).sum()) if self.n else 0

    @property
    def worse(self) -> int:
        """Replicates that are ok in the other arm only."""
        return int((self.arm["not_ok"] & ~self.against["not_ok"]).sum()) if self.n else 0


def paired(arm: Arm, against: Arm | None) -> Pairs:
    """The replicates that were judged in both arms.

    Raises:
        InputError: two judged runs of one replicate.
    """
    mine = arm.judged()
    if against is None or against is arm:
        return Pairs(mine.iloc[:0], mine.iloc[:0])
    theirs = against.judged()
    common = mine.index.intersection(theirs.index)
    return Pairs(mine.loc[common], theirs.loc[common])


def cost(pairs: Pairs) -> dict[str, Any]:
    """``cost_ratio``, median loss of the arm over that of the other, with its interval."""
    known = np.isfinite(pairs.arm["loss"].to_numpy(float)) & np.isfinite(pairs.against["loss"].to_numpy(float))
    ratio = ratio_of_medians(pairs.arm["loss"][known], pairs.against["loss"][known])
    return dict(zip(("cost_ratio", "cost_ratio_low", "cost_ratio_high"), ratio, strict=True))


def paired_test(tables: Tables) -> PairedTest:
    """The test of discordant pairs: exact McNemar, or where replicates were added one by one, its sequential kin."""
    return mcnemar_sequential if tables.study.get("adaptive") else mcnemar_exact
