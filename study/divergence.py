"""When a training has failed, and why: plain numbers in, a word and a step out.

The yardsticks are the losses of predictions that ignore their input (``docs/protocol.md``), so the
rule has no absolute threshold and means the same under every loss and for every scan.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Literal

OutcomeWord = Literal["ok", "plateau", "failed", "oom", "error", "timeout", "killed"]
Reason = Literal["", "nonfinite", "exploded", "collapsed"]

EXPLODED_FACTOR = 10.0  # times the constant baseline
COLLAPSED_FACTOR = 0.999  # of the constant baseline: no better, to the rounding of the loss
PLATEAU_FACTOR = 0.97  # of the mean-patch baseline
PLATEAU_WINDOW = 3  # last validations whose median is held against it: one alone may be a spike
SATURATED_SPREAD = 1e-3  # relative spread of the object amplitude below which the network says one thing
SPIKE_FACTOR = 5.0  # times the median loss of the steps before
SPIKE_WINDOW = 20
STALL_REFERENCE = slice(10, 50)  # steps whose update ratio the end of the training is compared with


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a training ended: a word, the reason where it failed, and the step at which it did."""

    word: OutcomeWord
    reason: Reason = ""
    failed_at_step: int | None = None


@dataclasses.dataclass(slots=True, kw_only=True)
class DivergenceRule:
    """Judges one training, fed step by step as it runs.

    Attributes:
        constant: validation loss of the best constant object.
        mean_patch: validation loss of the best fixed patch.
    """

    constant: float
    mean_patch: float
    nonfinite_step: int | None = None
    evaluations: list[tuple[int, float, float]] = dataclasses.field(default_factory=list)

    def step(self, step: int, update_ratio: float) -> None:
        """Take one optimizer step; a weight that is not finite shows in ``||dW|| / ||W||`` and never heals."""
        if self.nonfinite_step is None and not math.isfinite(update_ratio):
            self.nonfinite_step = step

    def evaluation(self, step: int, val_loss: float, amp_spread: float) -> None:
        """Take one validation after ``step`` optimizer steps."""
        self.evaluations.append((step, val_loss, amp_spread))
        if self.nonfinite_step is None and not math.isfinite(val_loss):
            self.nonfinite_step = step

    @property
    def beyond_recovery(self) -> bool:
        """Whether going on cannot change the outcome."""
        return self.nonfinite_step is not None

    def outcome(self) -> Outcome:
        """The verdict on the training as it stands."""
        if self.nonfinite_step is not None:
            return Outcome(word="failed", reason="nonfinite", failed_at_step=self.nonfinite_step)
        if not self.evaluations:
            return Outcome(word="error")
        _, loss, spread = self.evaluations[-1]
        if self._exploded(loss) and (len(self.evaluations) == 1 or self._exploded(self.evaluations[-2][1])):
            return Outcome(word="failed", reason="exploded", failed_at_step=self._dead_since())
        if self._dead(loss, spread):
            return Outcome(word="failed", reason="collapsed", failed_at_step=self._dead_since())
        level = statistics.median(loss for _, loss, _ in self.evaluations[-PLATEAU_WINDOW:])
        return Outcome(word="plateau" if level > PLATEAU_FACTOR * self.mean_patch else "ok")

    def _exploded(self, loss: float) -> bool:
        return loss > EXPLODED_FACTOR * self.constant

    def _dead(self, loss: float, spread: float) -> bool:
        return loss >= COLLAPSED_FACTOR * self.constant or spread < SATURATED_SPREAD

    def _dead_since(self) -> int:
        """First validation of the final stretch in which the network was dead."""
        since = self.evaluations[-1][0]
        for step, loss, spread in reversed(self.evaluations):
            if not self._dead(loss, spread):
                break
            since = step
        return since


def count_spikes(losses: Sequence[float]) -> int:
    """Steps whose loss leaps above ``SPIKE_FACTOR`` times the median of the steps before, or is not finite.

    A leap that lasts counts once.
    """
    spikes, above = 0, False
    for k in range(1, len(losses)):
        recent = [v for v in losses[max(0, k - SPIKE_WINDOW) : k] if math.isfinite(v)]
        now_above = not math.isfinite(losses[k]) or (
            bool(recent) and losses[k] > SPIKE_FACTOR * statistics.median(recent)
        )
        spikes += now_above and not above
        above = now_above
    return spikes


def stall_ratio(update_ratios: Sequence[float]) -> float:
    """Median update ratio of the last tenth over that of steps 10 to 50; NaN where either is missing.

    Near 0.02 for a network that a kick has frozen, 0.2 to 0.7 for a healthy one.
    """
    last = _finite(update_ratios[-max(1, len(update_ratios) // 10) :])
    early = _finite(update_ratios[STALL_REFERENCE])
    if not last or not early or statistics.median(early) == 0:
        return math.nan
    return statistics.median(last) / statistics.median(early)


def _finite(values: Sequence[float]) -> list[float]:
    return [v for v in values if math.isfinite(v)]
