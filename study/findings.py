"""What was found, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from study.comparisons import LARGEST_COST, Comparison
from study.statistics import POWER
from study.table import JUDGED, Tables


def listed(names: Sequence[str]) -> str:
    """Names as English has them: ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def sentences_of(comparisons: Sequence[Comparison]) -> list[str]:
    """What the comparisons say, condition by condition; those that show nothing share one sentence."""
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
        scores = listed([f"{c.arm} {c.not_ok} of {c.n_pairs} ({_needed(c)})" for c in unsettled])
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
    return listed([f"{c.arm} ({c.not_ok} of {c.n_pairs} not ok)" for c in comparisons])


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
    found = f"{listed(names)}: no difference shown. "
    if any(math.isnan(effect) for effect in effects):
        return (
            found + f"With {_range(n)} pairs even a large difference could have been missed (power below {POWER:.0%})."
        )
    return found + (
        f"With {_range(n)} pairs only a change of the probability of not being ok by {max(effects):.2f} or more "
        f"would have been shown with a power of {POWER:.0%}."
    )


def cost_sentences(comparisons: Sequence[Comparison]) -> list[str]:
    """The comparisons whose median loss is above what an arm may cost."""
    costly = [c for c in comparisons if c.cost_ratio > LARGEST_COST]
    return [f"{c.condition}: {c.arm} has {cost_text(c)} the median loss of {c.against}." for c in costly]


def cost_text(c: Comparison) -> str:
    """A ratio of median losses in words."""
    if math.isnan(c.cost_ratio_low):
        return f"{c.cost_ratio:.2f} times (too few pairs for an interval)"
    return f"{c.cost_ratio:.2f} times (95% interval {c.cost_ratio_low:.2f} to {c.cost_ratio_high:.2f})"


def lost_sentences(tables: Tables) -> list[str]:
    """Runs that stand in no proportion, and runs without a result."""
    lost = tables.runs.loc[~tables.runs["outcome"].isin(JUDGED), "outcome"].value_counts()
    sentences = []
    if len(lost):
        words = listed([f"{n} {word}" for word, n in lost.items()])
        sentences.append(f"{_runs(int(lost.sum()))} ended without a judgement ({words}) and stand in no proportion.")
    if tables.unfinished:
        sentences.append(f"{_runs(len(tables.unfinished))} began and left no result; the study is not finished.")
    return sentences


def _runs(n: int) -> str:
    return "1 run" if n == 1 else f"{n} runs"
