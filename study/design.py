"""Regimes x factors x arms x replicates -> run specifications, in one round or in several."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ptycho.config.algorithms import ALGORITHMS
from ptycho.config.plugins import plugin_digests
from ptycho.errors import InputError, unknown_name
from study.settings import RunSettings

STUDY_VERSION = "0.2"  # a change means that numbers are no longer comparable
CONTROL = "none"  # the algorithm that the others are held against


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """A named situation of training: a sentence, and the settings that make it.

    ``evidence`` is False where the runs only choose something (a rate, a threshold): no verdict rests on them.
    """

    name: str
    description: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    evidence: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A clipping algorithm at a threshold."""

    algorithm: str
    threshold: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One training run, fully said."""

    regime: str
    settings: RunSettings

    @property
    def name(self) -> str:
        """``<regime>/<algorithm>/<replicate>``."""
        return f"{self.regime}/{self.settings.gradient_clip_algorithm}/{self.settings.seed}"

    @property
    def run_id(self) -> str:
        """First 12 digits of the hash of everything that makes the run's numbers."""
        said = {"version": STUDY_VERSION, "regime": self.regime, **dataclasses.asdict(self.settings)}
        del said["checkpoint_every"], said["plugin"]  # they change no number, but for what is used of a plugin
        if digests := used_plugins(self.settings):
            said["plugins"] = digests
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]

    def identity(self) -> dict[str, Any]:
        """What a run's record says it is; its ``settings`` hold all that was asked for.

        ``none`` has no threshold, also in the record of a run that is lost before it could say so: an arm by itself.
        """
        settings = self.settings
        clips = settings.gradient_clip_algorithm != "none"
        return {
            "run_id": self.run_id,
            "name": self.name,
            "regime": self.regime,
            "algorithm": settings.gradient_clip_algorithm,
            "threshold": settings.gradient_clip_val if clips else None,
            "architecture": settings.architecture,
            "optimizer": settings.optimizer,
            "learning_rate": settings.learning_rate,
            "replicate": settings.seed,
            "settings": dataclasses.asdict(settings),
            "study_version": STUDY_VERSION,
        }


def used_plugins(settings: RunSettings) -> list[str]:
    """The contents of the plugins that a run uses something of.

    Raises:
        InputError: something that the process of a training could not load.
    """
    digests = plugin_digests(settings.gradient_clip_algorithm, settings.architecture, settings.fault)
    if "" in digests:
        raise InputError(
            f"plugin: {settings.gradient_clip_algorithm}, {settings.architecture} or a fault was registered in this "
            "process alone; allowed: in a file that is given as a plugin"
        )
    return digests


class Finished(NamedTuple):
    """A run of the study and how it ended.

    Attributes:
        spec: the run.
        outcome: the word of ``study.divergence``.
        loss: final validation loss over that of the constant object; 1 for a failed run, and at most 1.
    """

    spec: RunSpec
    outcome: str
    loss: float


def one_round(design: Design, overrides: Mapping[str, Any], finished: Sequence[Finished]) -> list[RunSpec]:
    """All runs at once."""
    return design.specs(overrides)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What a study compares.

    Attributes:
        title: one line for the report.
        regimes, factors, arms: each regime is run under each factor (a set of settings) with each arm.
        replicates: numbers of the paired replicates.
        base: settings that all runs share, where a regime does not say otherwise.
        rounds: which runs are called for, given those that have finished.
        searched: settings that ``rounds`` chooses, which a user therefore cannot set.
    """

    title: str
    regimes: tuple[Regime, ...]
    arms: tuple[Arm, ...]
    replicates: tuple[int, ...]
    base: Mapping[str, Any]
    factors: tuple[Mapping[str, Any], ...] = ({},)
    rounds: Rounds = one_round
    searched: tuple[str, ...] = ()

    def next_runs(self, overrides: Mapping[str, Any], finished: Sequence[Finished]) -> list[RunSpec]:
        """The next round: what ``rounds`` calls for and has not been run; empty when the study is complete.

        A function of what has finished and of nothing else, so that the same command goes on where it was left.

        Args:
            overrides: settings given by the user; they win over the factor's, the regime's and the base's.
            finished: every run of the rounds so far.

        Raises:
            InputError: a setting out of its range, or one that the rounds choose.
        """
        for name in self.searched:
            if name in overrides:
                raise InputError(
                    f"{name}: {overrides[name]!r} cannot be set; allowed: nothing, this preset searches it"
                )
        known = {run.spec for run in finished}
        return [spec for spec in dict.fromkeys(self.rounds(self, overrides, finished)) if spec not in known]

    def specs(self, overrides: Mapping[str, Any]) -> list[RunSpec]:
        """Every combination once, replicate by replicate, so that a study cut short holds complete pairs."""
        combinations = itertools.product(self.replicates, self.regimes, self.factors, self.arms)
        every = (self.spec(r, arm, k, {**factor, **overrides}) for k, r, factor, arm in combinations)
        return list(dict.fromkeys(every))

    def spec(self, regime: Regime, arm: Arm, replicate: int, settings: Mapping[str, Any]) -> RunSpec:
        """One run; ``settings`` win over the regime's and the base's."""
        values = {**self.base, **regime.settings, **settings}
        values |= {"gradient_clip_algorithm": arm.algorithm, "gradient_clip_val": arm.threshold, "seed": replicate}
        return RunSpec(regime=regime.name, settings=RunSettings(**values))


Rounds = Callable[[Design, Mapping[str, Any], Sequence[Finished]], list[RunSpec]]


def parse_arm(text: str, threshold: float | None) -> Arm:
    """The arm that ``NAME`` or ``NAME=THRESHOLD`` says.

    >>> parse_arm("agc=0.02", None)
    Arm(algorithm='agc', threshold=0.02)

    Raises:
        InputError: an unknown algorithm, or a threshold that does not clip.
    """
    name, separator, value = text.partition("=")
    if name not in ALGORITHMS:
        raise unknown_name("algo", name, ALGORITHMS)
    if separator:
        try:
            threshold = float(value)
        except ValueError:
            threshold = math.nan
    chosen = ALGORITHMS[name].default if threshold is None else threshold
    if name != "none" and not 0 < chosen < math.inf:  # 0 or less would make it a second arm without clipping
        raise InputError(f"threshold of {name}: {value if separator else threshold!r}; allowed: finite numbers above 0")
    return Arm(algorithm=name, threshold=chosen)
