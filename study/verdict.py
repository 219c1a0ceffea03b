"""The verdict: a rule fixed before the runs, applied to the table, and what was found in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from study.arms import by_condition, evidence_arms, paired_test
from study.comparisons import LARGEST_COST, MATTERS, Comparison, against_control, architecture_comparisons
from study.critical_rates import frontier, frontier_headline, frontier_sentences
from study.findings import cost_sentences, cost_text, listed, lost_sentences, sentences_of
from study.price import Price, price_sentences, silver_cost
from study.price import prices as prices_of
from study.statistics import ALPHA
from study.summaries import ArmSummary, summarise
from study.table import Tables

AGC_FAMILY = ("agc", "agc_unit", "adagc")
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
    "Runs that only search a rate or a threshold are no evidence. "
    "Whether a cost is shown or only estimated is told by the exact interval of the paired losses, and changes no word."
)


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
    arms, prices = evidence_arms(tables), prices_of(tables)
    algorithms = [c for group in by_condition(arms).values() for c in against_control(group, tables.control, test)]
    architectures = architecture_comparisons(arms, tables.control, test)
    family = {arm.label for arm in arms if arm.runs["algorithm"].iloc[0] in AGC_FAMILY}
    if len(lines) and not arms:
        word, headline = "frontier", frontier_headline(lines, tables.control)
    else:
        word, headline = _word(algorithms, architectures, family, tables.control, prices)
    return Verdict(
        word=word,
        headline=headline,
        sentences=(
            *frontier_sentences(lines),
            *sentences_of(algorithms),
            *sentences_of(architectures),
            *price_sentences(prices, tables.control),
            *cost_sentences([c for c in algorithms if c.arm in family]),
            *lost_sentences(tables),
        ),
        evidence=(*algorithms, *architectures),
    )


def _word(
    algorithms: Sequence[Comparison],
    architectures: Sequence[Comparison],
    family: set[str],
    control: str,
    prices: Sequence[Price],
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
            f"Silver: {listed(winners)} {lowers} the rate of failed and stalled runs "
            f"without costing more than {LARGEST_COST - 1:.0%} of the median loss"
            f"{silver_cost(winners, prices, control)}."
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
        f"{cost_text(costly)} the control's median loss in {costly.condition}"
    )
