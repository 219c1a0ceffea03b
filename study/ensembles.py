"""Which runs can be trained together in one process, and in what groups. Plain settings; no torch."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence

from study.design import RunSpec
from study.gpus import visible_gpus
from study.settings import RunSettings, StudyConfig

OF_A_MEMBER = (  # settings in which members may differ: none of them decides the shape of a step
    *("seed", "fault", "optimizer", "learning_rate", "momentum", "weight_decay"),
    *("scheduler", "warmup_steps", "scheduler_floor", "plateau_patience", "plateau_factor"),
    *("gradient_clip_val", "gradient_clip_algorithm", "gradient_clip_eps", "gradient_clip_skip_last"),
    *("gradient_clip_nonfinite", "log_grad_norm", "grad_norm_log_freq"),
)


MOST_IMAGE_NUMBERS = 1 << 18  # in a layer as wide as the first: 1 MiB, what a core's own cache holds
MOST = 8  # more hardly save any time, and are lost together


def grouped(specs: Sequence[RunSpec], config: StudyConfig) -> list[tuple[RunSpec, ...]]:
    """Every run once, in groups that one process trains together.

    Where the study says nothing, the groups are as large as saves time, as even as can be, and no fewer than keep
    this machine's cores at work. They hang on the runs and on the machine, not on what has finished or on the
    number of workers: the last bits of a member's numbers depend on its group.
    """
    alike: dict[str, list[RunSpec]] = {}
    for spec in specs:
        alike.setdefault(shape_of(spec.settings, spec.run_id), []).append(spec)
    groups, gpus = [], visible_gpus() if config.ensemble is None else ()
    for members in alike.values():
        settings = members[0].settings
        if config.ensemble is None:
            most, at_once = best_size(config, settings, gpus), max(1, len(os.sched_getaffinity(0)) // settings.threads)
        else:
            most, at_once = config.ensemble, 1
        parts = max(math.ceil(len(members) / most), min(len(members), at_once))
        groups += [tuple(members[len(members) * k // parts : len(members) * (k + 1) // parts]) for k in range(parts)]
    return groups


def best_size(config: StudyConfig, settings: RunSettings, gpus: Sequence[str]) -> int:
    """Members of an ensemble that trains faster than they would alone, at most.

    What an ensemble saves is the time of calls, which only small networks notice. A run is alone where it has a time
    limit of its own, on other machines, whose number nobody knows here, and on a GPU.
    """
    if config.time_limit is not None or config.engine != "local":
        return 1
    if settings.device != "cpu" and gpus:
        return 1
    images = settings.batch_size * settings.fno_width * settings.N**2
    return max(1, min(MOST, MOST_IMAGE_NUMBERS // images))


def shape_of(settings: RunSettings, run_id: str) -> str:
    """Equal for runs that can be members of one ensemble; a run that has to be alone has a shape of its own.

    Those are runs with checkpoints, in mixed precision, on a GPU, or with a user's own code.
    """
    if settings.checkpoint_every or settings.precision != "32-true" or settings.device == "cuda" or settings.plugin:
        return run_id
    said = dataclasses.asdict(settings)
    return json.dumps({name: value for name, value in said.items() if name not in OF_A_MEMBER})
