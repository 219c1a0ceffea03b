"""Designs that decide by what has finished: the rates of a frontier, chosen thresholds, further replicates.

Each function here is a ``study.design.Rounds``: it returns every run called for so far, those that have finished
included, and depends on nothing but what has finished.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ptycho.config.algorithms import ALGORITHMS
from study.adaptive import BATCH, FIRST, Pairs, decide
from study.design import CONTROL, Arm, Design, Finished, Regime, RunSpec
from study.frontier import Point, next_rates
from study.regime_names import TUNING
from study.table import JUDGED

FIRST_RATES: Mapping[str, tuple[float, ...]] = {
    "sgd": (0.0316, 0.1, 0.316, 1.0, 3.16, 10.0),
    "adam": (3.16e-4, 1e-3, 3.16e-3, 0.01, 0.0316, 0.1),
    "adamw": (3.16e-4, 1e-3, 3.16e-3, 0.01, 0.0316, 0.1),
}
MOST_RATES = 18  # of one line of the frontier
TUNING_OFFSET = 10_000  # replicates that choose are this far from those that judge
TUNING_REPLICATES = 4
SWEEP_POINTS = 6


# The critical learning rate


def search_frontier(design: Design, overrides: Mapping[str, Any], finished: Sequence[Finished]) -> list[RunSpec]:
    """A grid of rates common to all, then for each algorithm the rates that close in on its own critical one."""
    found: dict[RunSpec, dict[float, list[str]]] = {}
    for run in finished:
        found.setdefault(_line(run.spec), {}).setdefault(run.spec.settings.learning_rate, []).append(run.outcome)
    called = []
    for regime, factor, arm in itertools.product(design.regimes, design.factors, design.arms):
        settings = {**factor, **overrides}
        one = design.spec(regime, arm, design.replicates[0], settings)
        for rate in _rates(one, found.get(_line(one), {})):
            called += [design.spec(regime, arm, k, settings | {"learning_rate": rate}) for k in design.replicates]
    return called


def _line(spec: RunSpec) -> RunSpec:
    """What the runs of one line have in common: everything but replicate and rate."""
    return dataclasses.replace(spec, settings=dataclasses.replace(spec.settings, seed=0, learning_rate=1.0))


def _rates(spec: RunSpec, outcomes: Mapping[float, Sequence[str]]) -> list[float]:
    if not outcomes:
        return list(FIRST_RATES[spec.settings.optimizer])
    points = [
        Point(rate, sum(word in JUDGED for word in words), words.count("failed"), words.count("ok"))
        for rate, words in outcomes.items()
    ]
    return [*outcomes, *next_rates(points)] if len(points) < MOST_RATES else list(outcomes)


# The threshold


def choose_thresholds(design: Design, overrides: Mapping[str, Any], finished: Sequence[Finished]) -> list[RunSpec]:
    """Every threshold of every algorithm on the tuning replicates; then the best of each on the others.

    The second round has to do with the first through the chosen numbers alone: other objects, noise, initial
    weights and order of frames.
    """
    runs = {run.spec: run for run in finished}
    offset = TUNING_OFFSET + design.replicates[0]
    sweep: dict[tuple[str, str], dict[Arm, list[RunSpec]]] = collections.defaultdict(dict)
    for regime, arm in itertools.product(_tuning(design.regimes), design.arms):
        for trial in _trials(arm.algorithm):
            replicates = range(offset, offset + TUNING_REPLICATES)
            specs = [design.spec(regime, trial, k, overrides) for k in replicates]
            sweep[regime.name, arm.algorithm][trial] = specs
    called = [spec for trials in sweep.values() for specs in trials.values() for spec in specs]
    if not all(spec in runs for spec in called):
        return called
    chosen = {
        key: min(trials, key=lambda arm, trials=trials: _badness([runs[s] for s in trials[arm]]))  # type: ignore[misc]
        for key, trials in sweep.items()
    }
    judged = itertools.product(design.replicates, [r for r in design.regimes if r.evidence], design.arms)
    return called + [design.spec(r, chosen[r.name + TUNING, arm.algorithm], k, overrides) for k, r, arm in judged]


def _tuning(regimes: Iterable[Regime]) -> list[Regime]:
    return [regime for regime in regimes if regime.name.endswith(TUNING)]


def _trials(algorithm: str) -> list[Arm]:
    """The algorithm at thresholds spread over its sensible range, evenly in the logarithm; one if it has none."""
    info = ALGORITHMS[algorithm]
    if info.low == info.high:
        return [Arm(algorithm=algorithm, threshold=info.default)]
    spread = np.geomspace(info.low, info.high, SWEEP_POINTS)
    return [Arm(algorithm=algorithm, threshold=float(f"{threshold:.3g}")) for threshold in spread]


def _badness(runs: Sequence[Finished]) -> tuple[int, float]:
    """Runs that are not ok, then the median loss."""
    return sum(run.outcome != "ok" for run in runs), statistics.median(run.loss for run in runs)


# Replicates


def add_replicates(design: Design, overrides: Mapping[str, Any], finished: Sequence[Finished]) -> list[RunSpec]:
    """A few replicates of every arm, then more of each whose comparison with the control is still open."""
    outcomes = {run.spec: run.outcome for run in finished}
    called: list[RunSpec] = []
    for regime, factor in itertools.product(design.regimes, design.factors):
        arms = {
            arm: [design.spec(regime, arm, k, {**factor, **overrides}) for k in design.replicates]
            for arm in design.arms
        }
        (control,) = (specs for arm, specs in arms.items() if arm.algorithm == CONTROL)
        rivals = [specs for specs in arms.values() if specs is not control]
        wanted = [_wanted(specs, control, outcomes, len(rivals)) for specs in rivals]
        called += control[: max(wanted)]
        called += [spec for specs, n in zip(rivals, wanted, strict=True) for spec in specs[:n]]
    return sorted(called, key=lambda spec: spec.settings.seed)


def _wanted(specs: Sequence[RunSpec], control: Sequence[RunSpec], outcomes: Mapping[RunSpec, str], rivals: int) -> int:
    """How many replicates of an arm are called for."""
    n = sum(spec in outcomes for spec in specs)
    if n == 0:
        return FIRST
    both = [(outcomes[a], outcomes[b]) for a, b in zip(specs[:n], control, strict=False)]
    judged = [(a == "ok", b == "ok") for a, b in both if a in JUDGED and b in JUDGED]
    pairs = Pairs(len(judged), judged.count((True, False)), judged.count((False, True)))
    lost = n - pairs.n
    return n + BATCH if decide(pairs, rivals, len(specs) - lost) == "open" else n
