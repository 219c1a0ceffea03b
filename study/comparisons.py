"""One arm held against another, in a word: fewer or more runs that are not ok, undecided, or none shown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from study.arms import Arm, PairedTest, Pairs, control_of, cost, paired
from study.statistics import ALPHA, POWER, holm, pairs_to_decide, smallest_detectable_effect

STABLE, PLAIN = "stable_hybrid", "hybrid"
MATTERS = 0.25  # share of the runs whose difference is worth further replicates
LARGEST_COST = 1.10  # times the control's median loss


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One arm held against another over paired replicates.

    ``word`` is ``fewer`` or ``more`` (runs that are not ok than in ``against``), ``undecided`` or ``none shown``.
    ``more_replicates`` would decide an undecided one with power 0.8 if the rates stay as observed (None: not
    within 1,000). ``smallest_effect`` is the smallest change of probability that these pairs would have shown.
    """

    condition: str
    arm: str
    against: str
    word: str
    n_pairs: int
    not_ok: int
    not_ok_against: int
    n_better: int
    n_worse: int
    p: float
    p_corrected: float
    smallest_effect: float
    more_replicates: int | None
    cost_ratio: float
    cost_ratio_low: float
    cost_ratio_high: float


def against_control(arms: Sequence[Arm], control_name: str, test: PairedTest) -> list[Comparison]:
    """Every other arm of a condition against its control; empty where there is none."""
    control = control_of(arms, control_name)
    if control is None:
        return []
    return compare([(arm.condition, arm, control) for arm in arms if arm is not control], test)


def architecture_comparisons(arms: Sequence[Arm], control: str, test: PairedTest) -> list[Comparison]:
    """stable_hybrid against hybrid under the control algorithm, alike in all else; one family per regime."""
    found: dict[tuple[Any, ...], dict[str, Arm]] = {}
    for arm in arms:
        first = arm.runs.iloc[0]
        if first["algorithm"] == control:
            alike = tuple(str(first.get(key)) for key in ("regime", "optimizer", "learning_rate", "fno_blocks"))
            found.setdefault(alike, {})[str(first["architecture"])] = arm
    families: dict[tuple[Any, ...], list[tuple[str, Arm, Arm]]] = {}
    for alike, networks in found.items():
        if {STABLE, PLAIN} <= networks.keys():
            stable, plain = (dataclasses.replace(networks[a], label=a) for a in (STABLE, PLAIN))
            shared = stable.condition.replace(f" · {STABLE}", "")
            families.setdefault(alike[:3], []).append((shared, stable, plain))
    return [comparison for family in families.values() for comparison in compare(family, test)]


def compare(family: Sequence[tuple[str, Arm, Arm]], test: PairedTest) -> list[Comparison]:
    """Comparisons of one family, corrected together: (condition, arm, what it is held against)."""
    pairs = [paired(arm, against) for _, arm, against in family]
    p = [test(pair.better, pair.worse) if pair.n else math.nan for pair in pairs]
    alpha = ALPHA / max(1, sum(pair.n > 0 for pair in pairs))
    return [
        _comparison(condition, arm.label, against.label, pair, raw, float(corrected), alpha, test(pair.n, 0) > alpha)
        for (condition, arm, against), pair, raw, corrected in zip(family, pairs, p, holm(p), strict=True)
        if pair.n
    ]


def _comparison(
    condition: str, arm: str, against: str, pairs: Pairs, p: float, corrected: float, alpha: float, mute: bool
) -> Comparison:
    n, better, worse = pairs.n, pairs.better, pairs.worse
    not_ok_against = int(pairs.against["not_ok"].sum())
    effect = smallest_detectable_effect(n, not_ok_against / n, alpha)
    if corrected <= ALPHA:
        word = "fewer" if better > worse else "more"
    elif abs(better - worse) >= MATTERS * n or mute:
        word = "undecided"
    else:
        word = "none shown"
    return Comparison(
        condition=condition,
        arm=arm,
        against=against,
        word=word,
        n_pairs=n,
        not_ok=int(pairs.arm["not_ok"].sum()),
        not_ok_against=not_ok_against,
        n_better=better,
        n_worse=worse,
        p=p,
        p_corrected=corrected,
        smallest_effect=effect,
        more_replicates=_more(n, better, worse, alpha) if word == "undecided" else None,
        **cost(pairs),
    )


def _more(n: int, better: int, worse: int, alpha: float) -> int | None:
    """Further replicates that would decide, if the rates stay; where none disagreed, those that could show anything."""
    share = (better / n, worse / n) if better != worse else (1.0, 0.0)
    needed = pairs_to_decide(*share, alpha=alpha, power=POWER)
    return None if needed is None else max(1, needed - n)
