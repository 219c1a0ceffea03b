"""The named designs, and what the user makes of them. Presets are functions that return a design.

One that goes on in rounds loads the statistics by which it does; the others leave that second to the report, so that
the workers of a study start the sooner.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ptycho.config.algorithms import ALGORITHMS, ClipAlgorithm
from ptycho.errors import InputError, unknown_name
from study.design import CONTROL, Arm, Design, Regime, parse_arm
from study.regime_names import TUNING
from study.settings import StudyConfig


def make_design(config: StudyConfig) -> Design:
    """The preset's design with the user's choice of arms, regimes and replicates.

    Raises:
        InputError: an unknown algorithm or regime, an arm named twice, a choice that the preset makes itself.
    """
    preset = PRESETS[config.preset]()
    arms = tuple(parse_arm(text, config.threshold) for text in config.algo or [a.algorithm for a in preset.arms])
    names = [arm.algorithm for arm in arms]
    if len(set(names)) < len(names):
        raise InputError(f"algo: {', '.join(names)} names an algorithm twice; allowed: each once")
    if "threshold" in preset.searched and (config.threshold is not None or any("=" in text for text in config.algo)):
        raise InputError(f"threshold: it cannot be set; allowed: nothing, the preset {config.preset} searches it")
    design = dataclasses.replace(preset, arms=arms, regimes=_pick_regimes(preset.regimes, config.regime))
    if config.adaptive:
        design = _adaptive(design, config.preset)
    replicates = len(design.replicates) if config.seeds is None else config.seeds
    return dataclasses.replace(design, replicates=tuple(range(config.seed_offset, config.seed_offset + replicates)))


def _adaptive(design: Design, preset: str) -> Design:
    names = [arm.algorithm for arm in design.arms]
    if design.searched:
        raise InputError(f"adaptive: the preset {preset} has rounds of its own; allowed: any other preset")
    if CONTROL not in names or len(names) < 2:
        raise InputError(f"adaptive: {', '.join(names)} leaves nothing to compare; allowed: {CONTROL} and others")
    from study.adaptive import MOST
    from study.rounds import add_replicates

    return dataclasses.replace(design, rounds=add_replicates, replicates=tuple(range(MOST)))


def _pick_regimes(regimes: Sequence[Regime], names: Iterable[str]) -> tuple[Regime, ...]:
    by_name = {regime.name: regime for regime in regimes}
    for name in names:
        if name not in by_name:
            raise unknown_name("regime", name, by_name)
    wanted = {full for name in names or by_name for full in (name, name + TUNING)}
    return tuple(regime for name, regime in by_name.items() if name in wanted)


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
    description="Adam at 3e-3, Poisson likelihood; from step 50 on, 3% of the frames have pixels that overflow, "
    "about 1000 times the brightest count. It measures tolerance to faulty frames, which masking would remove",
    settings={
        "optimizer": "adam",
        "learning_rate": 3e-3,
        "torch_loss_mode": "poisson",
        "fault": ("overload:rate=0.03,size=1000,onset=50",),
    },
)
RATE_STRESS_REGIME = Regime(
    name="rate-stress",
    description="SGD with momentum 0.9 at rate 1.0, Poisson likelihood, clean frames: the rate itself is the stress",
    settings={"optimizer": "sgd", "momentum": 0.9, "learning_rate": 1.0, "torch_loss_mode": "poisson"},
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
    """Control, overload and rate stress under five algorithms, eight paired seeds.

    The rate stress has half as many steps again as the rest: after 200 some of the runs that survive it have not yet
    left the plateau, and whether they count then hangs on the last bits.
    """
    longer = dataclasses.replace(RATE_STRESS_REGIME, settings={**RATE_STRESS_REGIME.settings, "max_steps": 300})
    return Design(
        title="Which gradient clipping keeps the network from diverging?",
        regimes=(CONTROL_REGIME, OVERLOAD_REGIME, longer),
        arms=arms_of("none", "norm", "value", "agc", "agc_unit"),
        replicates=tuple(range(8)),
        base={**SMALL_SCAN, **SMALL_NETWORK, **SHORT_TRAINING},
    )


def quality() -> Design:
    """What clipping costs where nothing needs it: the control regime, long enough on a large object for fair pictures.

    One to two minutes of one core a run. The rate falls to zero, since at a constant one the last steps' noise hides
    small differences.
    """
    annealed = {**CONTROL_REGIME.settings, "scheduler": "warmup_cosine", "warmup_steps": 50}
    return Design(
        title="What does gradient clipping cost in image quality?",
        regimes=(
            Regime(
                name="control",
                description="Adam at 3e-3 with a cosine schedule, amplitude loss, clean frames, 2000 steps: "
                "nothing here should need clipping",
                settings=annealed,
            ),
        ),
        arms=arms_of("none", "norm", "value", "agc", "agc_unit"),
        replicates=tuple(range(8)),
        base={
            **SMALL_SCAN,
            **{"object_size": 392, "n_lines": 400, "outer_offset_test": 10},
            **{**SMALL_NETWORK, "fno_width": 16},
            **{"batch_size": 8, "max_steps": 2000, "eval_every": 200},
        },
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


FRONTIER_REGIME = Regime(
    name="frontier",
    description="SGD with momentum 0.9, Poisson likelihood, clean frames, at rates that are searched: the rate itself "
    "is the stress",
    settings={"optimizer": "sgd", "momentum": 0.9, "torch_loss_mode": "poisson"},
    evidence=False,
)


def frontier() -> Design:
    """The learning rate at which half of the runs fail, for each algorithm: about ten minutes on two cores."""
    from study.rounds import search_frontier

    return Design(
        title="How high a learning rate does each gradient clipping bear?",
        regimes=(FRONTIER_REGIME,),
        arms=arms_of("none", "norm", "value", "agc", "agc_unit"),
        replicates=tuple(range(6)),
        base={**SMALL_SCAN, **SMALL_NETWORK, **SHORT_TRAINING},
        rounds=search_frontier,
        searched=("learning_rate",),
    )


def depth() -> Design:
    """Two architectures at three depths under the same faulty frames; 64 px, so that six levels fit."""
    return Design(
        title="Does depth decide who diverges, and does stable_hybrid help?",
        regimes=(OVERLOAD_REGIME,),
        factors=tuple(
            {"architecture": architecture, "fno_blocks": blocks}
            for architecture in ("hybrid", "stable_hybrid")
            for blocks in (2, 4, 6)
        ),
        arms=arms_of("none", "norm", "agc", "agc_unit"),
        replicates=tuple(range(8)),
        base={**SMALL_SCAN, **SHORT_TRAINING, "N": 64, "fno_width": 4, "fno_modes": 6},
    )


def thresholds() -> Design:
    """Each algorithm at its best threshold, which was chosen on other replicates than those it is judged on."""
    from study.rounds import choose_thresholds

    judged = (OVERLOAD_REGIME, RATE_STRESS_REGIME)
    return Design(
        title="Which gradient clipping is best, each at its own best threshold?",
        regimes=tuple(regime for one in judged for regime in (tuning_of(one), one)),
        arms=arms_of("none", "norm", "value", "agc", "agc_unit"),
        replicates=tuple(range(8)),
        base={**SMALL_SCAN, **SMALL_NETWORK, **SHORT_TRAINING},
        rounds=choose_thresholds,
        searched=("threshold",),
    )


def tuning_of(regime: Regime) -> Regime:
    """The regime in which the thresholds for ``regime`` are chosen."""
    text = f"Thresholds for {regime.name} are chosen here, on replicates of their own; no verdict rests on these runs"
    return dataclasses.replace(regime, name=regime.name + TUNING, description=text, evidence=False)


def full() -> Design:
    """Paper scale, for one GPU or a cluster: 64 and 128 px, 50 epochs, 20 replicates; not for two cores.

    The hybrid is the one that has 17 million parameters where modes that the frames cannot reach are counted in; as
    only the others exist here, it has 10 million at 64 px and 21 million at 128 px.
    """
    return Design(
        title="Which gradient clipping keeps the network from diverging? Paper scale",
        regimes=(CONTROL_REGIME, OVERLOAD_REGIME, RATE_STRESS_REGIME),
        factors=({"N": 64}, {"N": 128}),
        arms=arms_of("none", "norm", "value", "agc", "agc_unit"),
        replicates=tuple(range(20)),
        base={
            **SMALL_SCAN,
            **{"object_size": 392, "n_lines": 400, "nphotons": 1e9, "outer_offset_train": 8},
            **{"architecture": "hybrid", "fno_width": 32, "fno_modes": 12, "fno_blocks": 4},
            **{"batch_size": 16, "epochs": 50, "eval_every": 100},
        },
    )


PRESETS: Mapping[str, Callable[[], Design]] = {
    "smoke": smoke,
    "default": default,
    "frontier": frontier,
    "depth": depth,
    "thresholds": thresholds,
    "quality": quality,
    "real": real,
    "full": full,
}
