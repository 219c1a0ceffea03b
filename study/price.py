"""What an arm costs in loss and image quality, replicate by replicate, among the runs that both it and another end ok.

The price is a question apart from who fails: a run that failed has no quality to pay with, so a pair counts only where
both of its runs are ok. What failures cost is told by the probability of not being ok, and by ``cost_ratio``, which
counts them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

from study.arms import Arm, Pairs, by_condition, control_of, evidence_arms, median, paired
from study.comparisons import LARGEST_COST
from study.findings import listed
from study.paired_shift import fewest_pairs, paired_ratio, paired_shift
from study.table import Tables

SCORES = {"amp_ssim": "amplitude SSIM", "frc50": "FRC50"}
WORDS = {
    "higher": "the loss is higher by {}",
    "lower": "the loss is lower by {}",
    "bounded": "a rise of the loss is ruled out {}",
    "open": "not decided: {}",
    "few": "too few pairs of ok runs for an interval: {}",
    "none": "no pair of ok runs",
}
POOR_SSIM = 0.5  # pictures whose SSIM is below say little about the price of good ones


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What an arm costs against another, over the replicates in which both are ok; NaN where a number does not exist.

    Attributes:
        condition, arm, against: the two arms; ``against_control`` tells whether the other is the control.
        price_pairs: pairs of ok runs.
        loss_ratio: the arm's final validation loss over the other's, with its exact 95% interval.
        amp_ssim_shift, frc50_shift: by how much its score is higher, with the same interval.
        amp_ssim_against: median amplitude SSIM of the other arm's ok runs.
    """

    condition: str
    arm: str
    against: str
    against_control: bool
    price_pairs: int
    loss_ratio: float
    loss_ratio_low: float
    loss_ratio_high: float
    amp_ssim_shift: float
    amp_ssim_shift_low: float
    amp_ssim_shift_high: float
    frc50_shift: float
    frc50_shift_low: float
    frc50_shift_high: float
    amp_ssim_against: float

    @property
    def kind(self) -> str:
        """What the interval of the loss shows, as a key of ``WORDS``."""
        low, high = self.loss_ratio_low, self.loss_ratio_high
        if math.isnan(low):
            return "few" if self.price_pairs else "none"
        return "higher" if low > 1 else "lower" if high < 1 else "bounded" if high <= LARGEST_COST else "open"

    @property
    def detail(self) -> str:
        """The numbers to these words."""
        low, high = _part(self.loss_ratio_low), _part(self.loss_ratio_high)
        match self.kind:
            case "higher":
                return f"{low} to {high}"
            case "lower":
                return f"{high} to {low}"
            case "bounded":
                return f"above {high}"
            case "open":
                return f"{low} lower to {high} higher"
        return f"{self.price_pairs} of {fewest_pairs()}"

    @property
    def words(self) -> str:
        """What the interval of the loss says."""
        return WORDS[self.kind].format(self.detail)

    @property
    def picture_words(self) -> str:
        """What the intervals of the scores say; empty where there is none."""
        return "; ".join(
            f"{name} {_shift(getattr(self, f'{score}_shift_low'), getattr(self, f'{score}_shift_high'))}"
            for score, name in SCORES.items()
            if not math.isnan(getattr(self, f"{score}_shift_low"))
        )


def measured(pairs: Pairs) -> dict[str, Any]:
    """The numbers of a price, over the pairs of which both runs are ok."""
    both = ~(pairs.arm["not_ok"].astype(bool) | pairs.against["not_ok"].astype(bool))
    arm, against = pairs.arm[both], pairs.against[both]
    found = {"loss_ratio": paired_ratio(arm["val_loss_final"], against["val_loss_final"])}
    found |= {f"{score}_shift": paired_shift(arm[score], against[score]) for score in SCORES}
    numbers = {f"{name}{end}": x for name, e in found.items() for end, x in zip(("", "_low", "_high"), e, strict=True)}
    return {"price_pairs": int(both.sum()), **numbers}


def prices(tables: Tables) -> list[Price]:
    """The price of every arm of every condition that is evidence, against the reference of the condition.

    Raises:
        InputError: two judged runs of one replicate in one arm.
    """
    groups = by_condition(evidence_arms(tables)).values()
    return [price for arms in groups for price in _of_condition(arms, tables.control)]


def _of_condition(arms: Sequence[Arm], control_name: str) -> list[Price]:
    control = control_of(arms, control_name)
    reference = reference_of(arms, control)
    if reference is None:
        return []
    runs = reference.runs
    level = median(runs.loc[runs["outcome"] == "ok", "amp_ssim"])
    return [
        Price(
            condition=arm.condition,
            arm=arm.label,
            against=reference.label,
            against_control=reference is control,
            amp_ssim_against=level,
            **measured(paired(arm, reference)),
        )
        for arm in arms
        if arm not in (control, reference)
    ]


def reference_of(arms: Sequence[Arm], control: Arm | None) -> Arm | None:
    """What the arms of a condition are priced against: the control, where enough of its runs are ok.

    Else the arm with most ok runs, the first of the design among equals, if these are enough. It is chosen by survival
    alone: chosen by its loss it would be the luckiest, and every other would seem to cost something.
    """
    ok = [int((arm.runs["outcome"] == "ok").sum()) for arm in arms]
    best = max(range(len(arms)), key=ok.__getitem__, default=None)
    enough = control is not None and int((control.runs["outcome"] == "ok").sum()) >= fewest_pairs()
    return control if best is None or enough or ok[best] < fewest_pairs() else arms[best]


# In words


def price_sentences(found: Sequence[Price], control: str) -> list[str]:
    """What the prices say, a sentence a condition, and where the pictures are too poor to speak of theirs."""
    groups: dict[str, list[Price]] = {}
    for price in found:
        groups.setdefault(price.condition, []).append(price)
    told = [_told(condition, group, control) for condition, group in groups.items()]
    poor = {name: group[0].amp_ssim_against for name, group in groups.items() if group[0].amp_ssim_against < POOR_SSIM}
    if poor:
        told.append(
            f"Pictures are poor in {listed(list(poor))} (median amplitude SSIM {_range(poor.values(), '.2f')} in the "
            "arm held against): what clipping costs a good picture is not told there."
        )
    return told


def _told(condition: str, group: Sequence[Price], control: str) -> str:
    against, pairs = group[0].against, [price.price_pairs for price in group if price.price_pairs]
    if not pairs:
        return f"{condition}: no price can be given, since no replicate is ok both with {against} and with another arm."
    lead = f"{condition}, price against {against} over {_range(pairs, 'd')} pairs: "
    if not group[0].against_control:
        lead = f"{condition}: too few runs of {control} are ok to price against; {lead.partition(', ')[2]}"
    told = []
    for kind, words in WORDS.items():
        arms = [price for price in group if price.kind == kind]
        if arms:
            details = [f"{price.detail} with {price.arm}" for price in arms]
            told.append(
                words.format(listed(details)) + ("" if "{}" in words else f" with {listed([p.arm for p in arms])}")
            )
    return lead + "; ".join(told) + "."


def _range(values: Collection[float], form: str) -> str:
    low, high = (format(bound, form) for bound in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def silver_cost(winners: Sequence[str], found: Sequence[Price], control: str) -> str:
    """Whether it is shown that the winners of the verdict cost no more than they may, or only estimated."""
    mine = [price for price in found if price.arm in winners and price.against_control and price.price_pairs]
    if not mine:
        return f"; too few runs of {control} are ok to measure a cost against"
    open_ones = [price for price in mine if not price.loss_ratio_high <= LARGEST_COST]
    unshown = list(dict.fromkeys(price.arm for price in open_ones))
    shown = [arm for arm in winners if arm not in unshown]
    where = listed(list(dict.fromkeys(price.condition for price in open_ones or mine)))
    if not unshown:
        return f"; this limit on the cost is shown over paired replicates in {where}"
    if not shown:
        return f"; this limit on the cost is estimated, but not shown in {where}"
    return f"; this limit on the cost is shown for {listed(shown)}, but not for {listed(unshown)} in {where}"


def _part(ratio: float) -> str:
    """By how much a ratio differs from one.

    >>> _part(1.1234), _part(0.96), _part(3.5)
    ('12%', '4.0%', '250%')
    """
    share = abs(ratio - 1)
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


def _shift(low: float, high: float) -> str:
    """
    >>> _shift(-0.03, -0.01), _shift(-0.02, 0.01), _shift(0.0, 0.0)
    ('falls by 0.010 to 0.030', 'does not fall by more than 0.020', 'does not fall by more than 0.000')
    """
    if high < 0:
        return f"falls by {-high:.3f} to {-low:.3f}"
    if low > 0:
        return f"rises by {low:.3f} to {high:.3f}"
    return f"does not fall by more than {abs(low):.3f}"
