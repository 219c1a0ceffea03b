"""The arms of a study in numbers, and the verdict: a rule fixed before the runs, applied to the table, in words.

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
from study.frontier import Point, critical_rate, describe, gain, usable_band
from study.statistics import (
    ALPHA,
    POWER,
    Estimate,
    clopper_pearson,
    holm,
    interquartile_mean_interval,
    logrank,
    mcnemar_exact,
    pairs_to_decide,
    ratio_of_medians,
    restricted_mean_survival,
    smallest_detectable_effect,
)
from study.table import JUDGED, Tables

CONDITION = ("regime", "N", "architecture", "fno_blocks", "optimizer", "learning_rate")
ARM = ("algorithm", "threshold")
AGC_FAMILY = ("agc", "agc_unit", "adagc")
STABLE, PLAIN = "stable_hybrid", "hybrid"
LARGEST_COST = 1.10
FRONTIER_COLUMNS = (
    *("setting", "label", "algorithm", "lr50", "lr50_low", "lr50_high", "lr50_text"),
    *("gain", "gain_low", "gain_high", "gain_text", "usable_decades"),
)
MATTERS = 0.25
RULE = (
    "A run is not ok when it failed or stalled at the plateau. An arm differs from the control when the exact "
    f"McNemar test over paired replicates gives p of at most {ALPHA:g}, Holm-corrected over the arms of the condition "
    "(not over conditions, each of which is a question of its own). "
    "Gold: stable_hybrid has fewer runs that are not ok, and a lower median loss, than hybrid at every depth, of at "
    "least two. Silver: an arm of the AGC family has fewer runs that are not ok than the control in at least one "
    f"condition, and in no condition a median loss above {LARGEST_COST:.2f} times the control's, failed runs counted "
    "at the loss of the constant object. Pivot: neither. Not enough evidence: an arm that would make it silver "
    f"differs by {MATTERS:.0%} of the runs or more without significance, or the replicates cannot show any "
    "difference, or a cost is possible but not shown. "
    "Where replicates were added while a comparison was open, a sequential test takes the place of McNemar's. "
    "Runs that only search a rate or a threshold are no evidence."
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """One arm in numbers; NaN where a number does not exist.

    ``n`` counts the judged runs (ok, plateau, failed); runs lost to the machine (oom, error, timeout, killed) are
    in ``n_lost`` and in no proportion. ``p_fail`` is the probability of *failed* in the strict sense with its
    exact 95% interval, ``p_not_ok`` that of failed or plateau.

    ``p_vs_control`` tests *not ok*, paired: exact McNemar against the control's run of the same replicate,
    Holm-corrected over the arms of the condition. A run that is alive but no better than the mean patch has
    learnt nothing, and which of the two ways a kicked run goes is chance; testing the strict failures alone would
    call an arm safe that survives by standing still.

    The conditional quality columns (``val_loss_iqm``, ``amp_ssim_median``) hold for the runs that did not fail;
    the columns ``..._all`` and ``val_loss_median`` count a failed run at the loss of the constant object, which
    is also the worst that any run is given. ``rmst`` is the mean number of steps survived out of ``horizon``.
    ``cost_ratio`` is the arm's ``val_loss_median`` over the control's, over pairs.
    """

    regime: str
    algorithm: str
    threshold: float
    condition: str
    label: str
    architecture: str
    fno_blocks: float
    optimizer: str
    learning_rate: float
    is_control: bool
    n: int
    n_ok: int
    n_plateau: int
    n_failed: int
    n_lost: int
    p_fail: float
    p_fail_low: float
    p_fail_high: float
    p_not_ok: float
    p_not_ok_low: float
    p_not_ok_high: float
    n_pairs: int
    n_better: int
    n_worse: int
    p_vs_control: float
    p_vs_control_uncorrected: float
    p_logrank: float
    rmst: float
    horizon: float
    val_loss_median: float
    val_loss_iqm: float
    val_loss_iqm_low: float
    val_loss_iqm_high: float
    val_loss_iqm_all: float
    val_loss_iqm_all_low: float
    val_loss_iqm_all_high: float
    cost_ratio: float
    cost_ratio_low: float
    cost_ratio_high: float
    amp_ssim_median: float
    phase_ssim_median: float
    clipped_fraction_median: float


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict: ``gold``, ``silver``, ``pivot``, ``not enough evidence`` or ``no comparison``.

    A study that only searches critical learning rates has the word ``frontier`` and says by how much they differ.

    Attributes:
        word: what the rule says.
        headline: the same as a sentence.
        sentences: what was found, condition by condition.
        evidence: the comparisons behind it.
        rule: the rule, fixed before the runs.
    """

    word: str
    headline: str
    sentences: tuple[str, ...]
    evidence: tuple[Comparison, ...]
    rule: str = RULE


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
    finite = runs["val_loss_final"].replace([np.inf, -np.inf], np.nan)
    worst = runs["baseline_constant"].fillna(finite.max())
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


def by_condition(arms: Iterable[Arm]) -> dict[str, list[Arm]]:
    """The arms of each condition."""
    grouped: dict[str, list[Arm]] = {}
    for arm in arms:
        grouped.setdefault(arm.condition, []).append(arm)
    return grouped


# From runs to arms


PairedTest = Callable[[int, int], float]


def paired_test(tables: Tables) -> PairedTest:
    """The test of discordant pairs: exact McNemar, or where replicates were added one by one, its sequential kin."""
    return mcnemar_sequential if tables.study.get("adaptive") else mcnemar_exact


def summarise(tables: Tables) -> list[ArmSummary]:
    """One entry per arm, in the order of the table.

    Raises:
        InputError: two runs of one replicate in one arm.
    """
    test = paired_test(tables)
    conditions = by_condition(arms_of(tables.runs)).values()
    return [summary for arms in conditions for summary in _summaries(arms, tables.control, test)]


def _control_of(arms: Sequence[Arm], control: str) -> Arm | None:
    return next((arm for arm in arms if arm.runs["algorithm"].iloc[0] == control), None)


def _summaries(arms: Sequence[Arm], control_name: str, test: PairedTest) -> list[ArmSummary]:
    control = _control_of(arms, control_name)
    horizon = _horizon(arms)
    pairs = [_paired(arm, control) for arm in arms]
    p = [test(pair.better, pair.worse) if pair.n else math.nan for pair in pairs]
    p_logrank = [_logrank(arm, control) if pair.n else math.nan for arm, pair in zip(arms, pairs, strict=True)]
    corrected, corrected_logrank = holm(p), holm(p_logrank)
    return [
        ArmSummary(
            **_identity(arm),
            is_control=arm is control,
            **_counts(arm),
            **_quality(arm),
            **_cost(pairs[i]),
            n_pairs=pairs[i].n,
            n_better=pairs[i].better,
            n_worse=pairs[i].worse,
            p_vs_control=float(corrected[i]),
            p_vs_control_uncorrected=p[i],
            p_logrank=float(corrected_logrank[i]),
            rmst=restricted_mean_survival(*survival_times(arm.runs), horizon),
            horizon=horizon,
        )
        for i, arm in enumerate(arms)
    ]


def _horizon(arms: Sequence[Arm]) -> float:
    """The last step that any run of a condition reached; NaN where none took one."""
    steps = pd.concat([arm.runs["steps"] for arm in arms]).dropna()
    return float(steps.max()) if (steps > 0).any() else math.nan


def _identity(arm: Arm) -> dict[str, Any]:
    first = arm.runs.iloc[0]
    names = {key: str(first[key]) for key in ("regime", "algorithm", "architecture", "optimizer")}
    numbers = {key: float(first[key]) for key in ("threshold", "learning_rate")}
    depth = first.get("fno_blocks")
    return {
        **names, **numbers, "condition": arm.condition, "label": arm.label,
        "fno_blocks": float(depth) if isinstance(depth, int | float | np.number) else math.nan,
    }  # fmt: skip


def _counts(arm: Arm) -> dict[str, Any]:
    outcome = arm.judged()["outcome"]
    n, n_ok, n_plateau, n_failed = len(outcome), *(int((outcome == word).sum()) for word in JUDGED)
    fail, not_ok = clopper_pearson(n_failed, n), clopper_pearson(n - n_ok, n)
    return {
        "n": n, "n_ok": n_ok, "n_plateau": n_plateau, "n_failed": n_failed, "n_lost": len(arm.runs) - n,
        "p_fail": n_failed / n if n else math.nan, "p_fail_low": fail.low, "p_fail_high": fail.high,
        "p_not_ok": (n - n_ok) / n if n else math.nan, "p_not_ok_low": not_ok.low, "p_not_ok_high": not_ok.high,
    }  # fmt: skip


def _quality(arm: Arm) -> dict[str, Any]:
    runs = arm.judged()
    alive = runs[runs["outcome"] != "failed"]
    survivors = interquartile_mean_interval(_finite(alive["val_loss_final"]))
    everyone = interquartile_mean_interval(_finite(runs["loss"]))
    return {
        "val_loss_median": median(runs["loss"]),
        **dict(zip(("val_loss_iqm", "val_loss_iqm_low", "val_loss_iqm_high"), survivors, strict=True)),
        **dict(zip(("val_loss_iqm_all", "val_loss_iqm_all_low", "val_loss_iqm_all_high"), everyone, strict=True)),
        "amp_ssim_median": median(alive["amp_ssim"]),
        "phase_ssim_median": median(alive["phase_ssim"]),
        "clipped_fraction_median": median(runs["clipped_fraction"]),
    }


def _finite(column: pd.Series) -> np.ndarray:
    values = np.asarray(column, dtype=float)
    return np.asarray(values[np.isfinite(values)])


def median(column: pd.Series) -> float:
    """Median of the finite values; NaN where there are none."""
    values = _finite(column)
    return float(np.median(values)) if len(values) else math.nan


def survival_times(runs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(R,) step of failure or last step seen, and (R,) whether the run failed; lost runs are censored."""
    failed: np.ndarray = (runs["outcome"] == "failed").to_numpy(dtype=bool)
    last = runs["steps"].to_numpy(dtype=float, na_value=math.nan)
    died = runs["failed_at_step"].to_numpy(dtype=float, na_value=math.nan)
    time: np.ndarray = np.where(failed & np.isfinite(died), died, last)
    known = np.isfinite(time)
    return time[known], failed[known]


def _logrank(arm: Arm, control: Arm | None) -> float:
    if control is None:
        return math.nan
    return logrank(*survival_times(arm.runs), *survival_times(control.runs))


# Pairs


@dataclasses.dataclass(frozen=True, slots=True)
class _Pairs:
    """Judged runs of an arm beside those of another, replicate by replicate; empty for the control itself."""

    arm: pd.DataFrame
    against: pd.DataFrame

    @property
    def n(self) -> int:
        return len(self.arm)

    @property
    def better(self) -> int:
        return int((self.against["not_ok"] & ~self.arm["not_ok"]).sum()) if self.n else 0

    @property
    def worse(self) -> int:
        return int((self.arm["not_ok"] & ~self.against["not_ok"]).sum()) if self.n else 0


def _paired(arm: Arm, against: Arm | None) -> _Pairs:
    mine = arm.judged()
    if against is None or against is arm:
        return _Pairs(mine.iloc[:0], mine.iloc[:0])
    theirs = against.judged()
    common = mine.index.intersection(theirs.index)
    return _Pairs(mine.loc[common], theirs.loc[common])


def _cost(pairs: _Pairs) -> dict[str, Any]:
    finite = np.isfinite(pairs.arm["loss"].to_numpy(float)) & np.isfinite(pairs.against["loss"].to_numpy(float))
    ratio = ratio_of_medians(pairs.arm["loss"][finite], pairs.against["loss"][finite])
    return dict(zip(("cost_ratio", "cost_ratio_low", "cost_ratio_high"), ratio, strict=True))


def _compare(family: Sequence[tuple[str, Arm, Arm]], test: PairedTest) -> list[Comparison]:
    """Comparisons of one family, corrected together: (condition, arm, what it is held against)."""
    pairs = [_paired(arm, against) for _, arm, against in family]
    p = [test(pair.better, pair.worse) if pair.n else math.nan for pair in pairs]
    alpha = ALPHA / max(1, sum(pair.n > 0 for pair in pairs))
    return [
        _comparison(condition, arm.label, against.label, pair, raw, float(corrected), alpha, test(pair.n, 0) > alpha)
        for (condition, arm, against), pair, raw, corrected in zip(family, pairs, p, holm(p), strict=True)
        if pair.n
    ]


def _comparison(
    condition: str, arm: str, against: str, pairs: _Pairs, p: float, corrected: float, alpha: float, mute: bool
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
        **_cost(pairs),
    )


def _more(n: int, better: int, worse: int, alpha: float) -> int | None:
    """Further replicates that would decide, if the rates stay; where none disagreed, those that could show anything."""
    share = (better / n, worse / n) if better != worse else (1.0, 0.0)
    needed = pairs_to_decide(*share, alpha=alpha, power=POWER)
    return None if needed is None else max(1, needed - n)


# The rule


def decide(tables: Tables, summaries: Sequence[ArmSummary] | None = None) -> Verdict:
    """Apply the rule to the table.

    Args:
        tables: the study.
        summaries: what :func:`summarise` gives for it, where that is at hand.

    Raises:
        InputError: two runs of one replicate in one arm.
    """
    test = paired_test(tables)
    lines = frontier(summarise(tables) if summaries is None else summaries, tables.control)
    unasked = {regime["name"] for regime in tables.study.get("regimes", []) if regime.get("evidence") is False}
    arms = arms_of(tables.runs[~tables.runs["regime"].isin(unasked)])
    algorithms = [c for group in by_condition(arms).values() for c in _against_control(group, tables.control, test)]
    architectures = _architecture_comparisons(arms, tables.control, test)
    family = {arm.label for arm in arms if arm.runs["algorithm"].iloc[0] in AGC_FAMILY}
    if len(lines) and not arms:
        word, headline = "frontier", _frontier_headline(lines, tables.control)
    else:
        word, headline = _word(algorithms, architectures, family, tables.control)
    return Verdict(
        word=word,
        headline=headline,
        sentences=(
            *_frontier_sentences(lines),
            *_sentences(algorithms),
            *_sentences(architectures),
            *_cost_sentences([c for c in algorithms if c.arm in family]),
            *_lost_sentences(tables),
        ),
        evidence=(*algorithms, *architectures),
    )


def _against_control(arms: Sequence[Arm], control_name: str, test: PairedTest) -> list[Comparison]:
    control = _control_of(arms, control_name)
    if control is None:
        return []
    return _compare([(arm.condition, arm, control) for arm in arms if arm is not control], test)


def _architecture_comparisons(arms: Sequence[Arm], control: str, test: PairedTest) -> list[Comparison]:
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
    return [comparison for family in families.values() for comparison in _compare(family, test)]


def _word(
    algorithms: Sequence[Comparison], architectures: Sequence[Comparison], family: set[str], control: str
) -> tuple[str, str]:
    if _is_gold(architectures):
        return "gold", "Gold: stable_hybrid fails less often and learns better than hybrid at every depth."
    candidates = [c for c in algorithms if c.arm in family]
    if not candidates and not architectures:
        return "no comparison", f"No comparison: no arm of the AGC family stands beside a judged {control} arm."
    winners = [arm for arm in dict.fromkeys(c.arm for c in candidates) if _is_silver(arm, candidates)]
    if winners:
        lowers = "lower" if len(winners) > 1 else "lowers"
        return "silver", (
            f"Silver: {_listed(winners)} {lowers} the rate of failed and stalled runs "
            f"without costing more than {LARGEST_COST - 1:.0%} of the median loss."
        )
    open_ones = [c for c in candidates if _is_open(c, candidates)] + [c for c in architectures if _favourable(c)]
    if open_ones:
        return "not enough evidence", f"Not enough evidence: {_what_would_decide(open_ones)}."
    return "pivot", "Pivot: neither the architecture nor adaptive clipping lowers the failure rate at a bearable cost."


def _is_gold(comparisons: Sequence[Comparison]) -> bool:
    return len(comparisons) >= 2 and all(c.word == "fewer" and c.cost_ratio < 1 for c in comparisons)


def _is_silver(arm: str, comparisons: Sequence[Comparison]) -> bool:
    mine = [c for c in comparisons if c.arm == arm]
    return any(c.word == "fewer" for c in mine) and not any(c.cost_ratio > LARGEST_COST for c in mine)


def _is_open(comparison: Comparison, comparisons: Sequence[Comparison]) -> bool:
    """Whether this comparison keeps its arm from being silver without ruling it out."""
    mine = [c for c in comparisons if c.arm == comparison.arm]
    if any(c.cost_ratio_low > LARGEST_COST for c in mine):
        return False
    cost_possible = comparison.cost_ratio > LARGEST_COST and any(c.word == "fewer" for c in mine)
    return cost_possible or _favourable(comparison)


def _favourable(comparison: Comparison) -> bool:
    return comparison.word == "undecided" and comparison.n_better >= comparison.n_worse


def _what_would_decide(comparisons: Sequence[Comparison]) -> str:
    known = [c for c in comparisons if c.more_replicates is not None]
    if known:
        easiest = min(known, key=lambda c: (c.n_better == c.n_worse, c.more_replicates or 0))
        n = easiest.more_replicates
        replicates = "replicate" if n == 1 else "replicates"
        return f"{n} more {replicates} would decide {easiest.condition}, {easiest.arm}, if the rates stay as observed"
    if all(c.word == "undecided" for c in comparisons):
        return "not even 1,000 replicates would decide if the rates stay as observed"
    costly = next(c for c in comparisons if c.word != "undecided")
    return (
        f"{costly.arm} lowers the failure rate, but its price is not settled: "
        f"{_cost_text(costly)} the control's median loss in {costly.condition}"
    )


# Words


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _sentences(comparisons: Sequence[Comparison]) -> list[str]:
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for c in comparisons:
        groups.setdefault((c.condition, c.against), []).append(c)
    told = [s for (condition, against), group in groups.items() for s in _told(condition, against, group)]
    quiet = [group for group in groups.values() if all(c.word == "none shown" for c in group)]
    return told + ([_no_difference(quiet)] if quiet else [])


def _told(condition: str, against: str, group: Sequence[Comparison]) -> list[str]:
    """What was found in a condition in which something was, or could not be, told apart from the control."""
    verbs = {"fewer": ("does better", "do better"), "more": ("does worse", "do worse")}
    sentences = []
    for word, (one, many) in verbs.items():
        those = [c for c in group if c.word == word]
        if those:
            sentences.append(
                f"{condition}: {_scores(those)} {many if len(those) > 1 else one} than {_reference(those)}; "
                f"corrected p {'at most ' if len(those) > 1 else ''}{max(c.p_corrected for c in those):.2g}."
            )
    unsettled = [c for c in group if c.word == "undecided" and c.n_better != c.n_worse]
    if unsettled:
        scores = _listed([f"{c.arm} {c.not_ok} of {c.n_pairs} ({_needed(c)})" for c in unsettled])
        sentences.append(f"{condition}: not settled against {_reference(unsettled, ' not ok')}: {scores}.")
    few = [c for c in group if c.word == "undecided" and c.n_better == c.n_worse]
    if few:
        more = max(c.more_replicates or 0 for c in few)
        sentences.append(
            f"{condition}: too few replicates to tell {_scores(few)} from {_reference(few)}; at least {more} more."
        )
    quiet = [c for c in group if c.word == "none shown"]
    if quiet and len(quiet) < len(group):
        sentences.append(f"{condition}: no difference shown between {_scores(quiet)} and {_reference(quiet)}.")
    return sentences


def _scores(comparisons: Sequence[Comparison]) -> str:
    return _listed([f"{c.arm} ({c.not_ok} of {c.n_pairs} not ok)" for c in comparisons])


def _reference(comparisons: Sequence[Comparison], what: str = "") -> str:
    not_ok, n = [c.not_ok_against for c in comparisons], [c.n_pairs for c in comparisons]
    return f"{comparisons[0].against} ({_range(not_ok)} of {_range(n)}{what})"


def _needed(c: Comparison) -> str:
    """How far an unsettled comparison is from a decision, if the rates stay as observed."""
    more = "over 1,000" if c.more_replicates is None else f"about {c.more_replicates}"
    replicates = "replicate" if c.more_replicates == 1 else "replicates"
    return f"corrected p {c.p_corrected:.2g}, {more} more {replicates} to decide"


def _range(counts: Sequence[int]) -> str:
    return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _no_difference(groups: Sequence[Sequence[Comparison]]) -> str:
    names = [group[0].condition for group in groups]
    effects = [c.smallest_effect for group in groups for c in group]
    n = [c.n_pairs for group in groups for c in group]
    found = f"{_listed(names)}: no difference shown. "
    if any(math.isnan(effect) for effect in effects):
        return (
            found + f"With {_range(n)} pairs even a large difference could have been missed (power below {POWER:.0%})."
        )
    return found + (
        f"With {_range(n)} pairs only a change of the probability of not being ok by {max(effects):.2f} or more "
        f"would have been shown with a power of {POWER:.0%}."
    )


def _frontier_headline(lines: pd.DataFrame, control: str) -> str:
    rows = [row for row in lines.to_dict("records") if row["algorithm"] != control]
    better = [row for row in rows if row["gain_low"] > 1.0]
    if not better:
        return f"Frontier: no algorithm is shown to bear a higher learning rate than {control}."
    told = [f"{row['label']} {row['gain_text']}" for row in sorted(better, key=lambda row: -row["gain_low"])]
    return (
        f"Frontier: half of the runs fail at a higher learning rate than {control}'s, by the factor: {_listed(told)}."
    )


def _frontier_sentences(lines: pd.DataFrame) -> list[str]:
    return [
        f"{setting}: half of the runs fail at a learning rate of "
        f"{_listed([f'{row.lr50_text} with {row.label}' for row in rows.itertuples()])}."
        for setting, rows in lines.groupby("setting", sort=False)
    ]


def _cost_sentences(comparisons: Sequence[Comparison]) -> list[str]:
    costly = [c for c in comparisons if c.cost_ratio > LARGEST_COST]
    return [f"{c.condition}: {c.arm} has {_cost_text(c)} the median loss of {c.against}." for c in costly]


def _cost_text(c: Comparison) -> str:
    if math.isnan(c.cost_ratio_low):
        return f"{c.cost_ratio:.2f} times (too few pairs for an interval)"
    return f"{c.cost_ratio:.2f} times (95% interval {c.cost_ratio_low:.2f} to {c.cost_ratio_high:.2f})"


def _lost_sentences(tables: Tables) -> list[str]:
    lost = tables.runs.loc[~tables.runs["outcome"].isin(JUDGED), "outcome"].value_counts()
    sentences = []
    if len(lost):
        words = _listed([f"{n} {word}" for word, n in lost.items()])
        sentences.append(f"{_runs(int(lost.sum()))} ended without a judgement ({words}) and stand in no proportion.")
    if tables.unfinished:
        sentences.append(f"{_runs(len(tables.unfinished))} began and left no result; the study is not finished.")
    return sentences


def _runs(n: int) -> str:
    return "1 run" if n == 1 else f"{n} runs"


# The frontier


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
