"""Which runs can be trained together in one process, and in what groups. Plain settings; no torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from study.settings import RunSettings

if TYPE_CHECKING:
    from study.trainings import Training

OF_A_MEMBER = (  # settings in which members may differ: none of them decides the shape of a step
    *("seed", "fault", "optimizer", "learning_rate", "momentum", "weight_decay"),
    *("scheduler", "warmup_steps", "scheduler_floor", "plateau_patience", "plateau_factor"),
    *("gradient_clip_val", "gradient_clip_algorithm", "gradient_clip_eps", "gradient_clip_skip_last"),
    *("gradient_clip_nonfinite", "log_grad_norm", "grad_norm_log_freq"),
)


def grouped(trainings: Sequence[Training], most: int) -> list[tuple[Training, ...]]:
    """Every training once, in groups of at most ``most`` that one process trains together, as even as can be."""
    alike: dict[str, list[Training]] = {}
    for training in trainings:
        alike.setdefault(shape_of(training.spec.settings, training.spec.run_id), []).append(training)
    groups = []
    for members in alike.values():
        parts = -(-len(members) // most)
        groups += [tuple(members[len(members) * k // parts : len(members) * (k + 1) // parts]) for k in range(parts)]
    return groups


def shape_of(settings: RunSettings, run_id: str) -> str:
    """Equal for runs that can be members of one ensemble; a run that has to be alone has a shape of its own.

    Those are runs with checkpoints, in mixed precision, on a GPU, or with a user's own code.
    """
    if settings.checkpoint_every or settings.precision != "32-true" or settings.device == "cuda" or settings.plugin:
        return run_id
    said = dataclasses.asdict(settings)
    return json.dumps({name: value for name, value in said.items() if name not in OF_A_MEMBER})
