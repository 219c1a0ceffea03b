"""Arms x replicates x regimes -> a list of run specifications. Presets are functions that return a design."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ptycho.config.algorithms import ALGORITHMS, ClipAlgorithm
from ptycho.errors import InputError, unknown_name
from study.settings import RunSettings, StudyConfig

STUDY_VERSION = "0.1"  # a change means that numbers are no longer comparable
CONTROL = "none"  # the algorithm that the others are held against


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """A named situation of training: a sentence, and the settings that make it."""

    name: str
    description: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]

    def identity(self) -> dict[str, Any]:
        """What a run's record says it is; its ``settings`` hold all that was asked for."""
        settings = self.settings
        return {
            "run_id": self.run_id,
            "name": self.name,
            "regime": self.regime,
            "algorithm": settings.gradient_clip_algorithm,
            "threshold": settings.gradient_clip_val,
            "architecture": settings.architecture,
            "optimizer": settings.optimizer,
            "learning_rate": settings.learning_rate,
            "replicate": settings.seed,
            "settings": dataclasses.asdict(settings),
            "study_version": STUDY_VERSION,
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What a study compares.

    Attributes:
        title: one line for the report.
        regimes, arms: each regime is run with each arm.
        replicates: numbers of the paired replicates.
        base: settings that all runs share, where a regime does not say otherwise.
    """

    title: str
    regimes: tuple[Regime, ...]
    arms: tuple[Arm, ...]
    replicates: tuple[int, ...]
    base: Mapping[str, Any]

    def specs(self, overrides: Mapping[str, Any]) -> list[RunSpec]:
        """Every run, replicate by replicate, so that a study cut short holds complete pairs.

        Args:
            overrides: settings given by the user; they win over the regime's and the base's.

        Raises:
            InputError: a setting out of its range.
        """
        return [
            RunSpec(regime=regime.name, settings=self._settings(regime, arm, replicate, overrides))
            for replicate in self.replicates
            for regime in self.regimes
            for arm in self.arms
        ]

    def _settings(self, regime: Regime, arm: Arm, replicate: int, overrides: Mapping[str, Any]) -> RunSettings:
        values = {**self.base, **regime.settings, **overrides}
        values |= {"gradient_clip_algorithm": arm.algorithm, "gradient_clip_val": arm.threshold, "seed": replicate}
        return RunSettings(**values)


def parse_arm(text: str, threshold: float | None) -> Arm:
    """The arm that ``NAME`` or ``NAME=THRESHOLD`` says.

    >>> parse_arm("agc=0.02", None)
    Arm(algorithm='agc', threshold=0.02)

    Raises:
        InputError: an unknown algorithm, or a threshold that is no finite number.
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
    if not math.isfinite(chosen):
        shown = value if separator else threshold
        raise InputError(f"threshold of {name}: {shown!r} is not a finite number; allowed: any, 0 or less means off")
    return Arm(algorithm=name, threshold=chosen)


def make_design(config: StudyConfig) -> Design:
    """The preset's design with the user's choice of arms, regimes and replicates.

    Raises:
        InputError: an unknown algorithm or regime, an arm named twice.
    """
    preset = PRESETS[config.preset]()
    arms = tuple(parse_arm(text, config.threshold) for text in config.algo or [a.algorithm for a in preset.arms])
    names = [arm.algorithm for arm in arms]
    if len(set(names)) < len(names):
        raise InputError(f"algo: {', '.join(names)} names an algorithm twice; allowed: each once")
    replicates = len(preset.replicates) if config.seeds is None else config.seeds
    return dataclasses.replace(
        preset,
        arms=arms,
        regimes=_pick_regimes(preset.regimes, config.regime),
        replicates=tuple(range(config.seed_offset, config.seed_offset + replicates)),
    )


def _pick_regimes(regimes: Sequence[Regime], names: Iterable[str]) -> tuple[Regime, ...]:
    by_name = {regime.name: regime for regime in regimes}
    for name in names:
        if name not in by_name:
            raise unknown_name("regime", name, by_name)
    return tuple(by_name[name] for name in dict.fromkeys(names)) or tuple(regimes)


# Presets ----------------------------------------------------------------------------------------

SMALL_SCAN: Mapping[str, Any] = {
    "N": 32,
    "object_size": 128,
    "n_lines": 40,
    "nphotons": 1e6,
    "probe": "gaussian",
    "probe_diameter": 0.6,
    "probe_defocus": 1.0,
    "outer_offset_train": 10,
    "outer_offset_test": 20,
}
SMALL_NETWORK: Mapping[str, Any] = {
    "architecture": "hybrid",
    "fno_width": 8,
    "fno_modes": 6,
    "fno_blocks": 3,
}
SHORT_TRAINING: Mapping[str, Any] = {"batch_size": 4, "max_steps": 200, "eval_every": 20}

CONTROL_REGIME = Regime(
    name="control",
    description="Adam at 3e-3, amplitude loss, clean frames: nothing here should need clipping",
    settings={"optimizer": "adam", "learning_rate": 3e-3, "torch_loss_mode": "mae"},
)
OVERLOAD_REGIME = Regime(
    name="overload",
    description="Adam at 3e-3, Poisson likelihood; from step 50 on, three frames have pixels that overflow, "
    "about 1000 times the brightest count. It measures tolerance to faulty frames, which masking would remove",
    settings={
        "optimizer": "adam",
        "learning_rate": 3e-3,
        "torch_loss_mode": "poisson",
        "fault": ("overload:rate=0.01,size=1000,onset=50",),
    },
)
RATE_STRESS_REGIME = Regime(
    name="rate-stress",
    description="SGD with momentum 0.9 at rate 0.5, Poisson likelihood, clean frames: the rate itself is the stress",
    settings={"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.5, "torch_loss_mode": "poisson"},
)


def arms_of(*names: ClipAlgorithm) -> tuple[Arm, ...]:
    """Arms at each algorithm's default threshold."""
    return tuple(Arm(algorithm=name, threshold=ALGORITHMS[name].default) for name in names)


def smoke() -> Design:
    """Two regimes, three algorithms, two seeds: about half a minute."""
    return Design(
        title="Smoke test of the stability shootout",
        regimes=(CONTROL_REGIME, OVERLOAD_REGIME),
        arms=arms_of("none", "norm", "agc"),
        replicates=(0, 1),
        base={**SMALL_SCAN, **SMALL_NETWORK, **SHORT_TRAINING, "max_steps": 100, "eval_every": 20},
    )


def default() -> Design:
    """Control, overload and rate stress under five algorithms, eight paired seeds."""
    return Design(
        title="Which gradient clipping keeps the network from diverging?",
        regimes=(CONTROL_REGIME, OVERLOAD_REGIME, RATE_STRESS_REGIME),
        arms=arms_of("none", "norm", "value", "agc", "agc_unit"),
        replicates=tuple(range(8)),
        base={**SMALL_SCAN, **SMALL_NETWORK, **SHORT_TRAINING},
    )


def real() -> Design:
    """A scan from a file, judged without ground truth; sized so that a frame of 128 px trains in minutes."""
    return Design(
        title="Gradient clipping on a real scan",
        regimes=(
            Regime(
                name="real",
                description="Adam at 2e-3 with a cosine schedule on the scan's own frames, Poisson likelihood",
                settings={
                    "optimizer": "adam",
                    "learning_rate": 2e-3,
                    "scheduler": "warmup_cosine",
                    "warmup_steps": 10,
                    "torch_loss_mode": "poisson",
                },
            ),
        ),
        arms=arms_of("none", "norm", "agc"),
        replicates=(0, 1),
        base={
            "architecture": "hybrid",
            "fno_width": 8,
            "fno_modes": 16,
            "fno_blocks": 4,
            "fno_input_transform": "sqrt",
            "batch_size": 8,
            "max_steps": 300,
            "eval_every": 50,
        },
    )


PRESETS: Mapping[str, Callable[[], Design]] = {"smoke": smoke, "default": default, "real": real}
