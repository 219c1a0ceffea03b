"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from ptycho_torch.config_params import TrainingConfig

ADAM_SECOND_MOMENT_DECAY = 0.999

Parameters = Iterable[Tensor]

OPTIMIZERS: Mapping[str, Callable[[Parameters, TrainingConfig], Optimizer]] = {
    "adam": lambda parameters, c: torch.optim.Adam(
        parameters,
        lr=c.learning_rate,
        betas=(c.momentum, ADAM_SECOND_MOMENT_DECAY),
        weight_decay=c.weight_decay,
    ),
    "adamw": lambda parameters, c: torch.optim.AdamW(
        parameters,
        lr=c.learning_rate,
        betas=(c.momentum, ADAM_SECOND_MOMENT_DECAY),
        weight_decay=c.weight_decay,
    ),
    "sgd": lambda parameters, c: torch.optim.SGD(
        parameters,
        lr=c.learning_rate,
        momentum=c.momentum,
        weight_decay=c.weight_decay,
    ),
}


def make_optimizer(parameters: Parameters, config: TrainingConfig) -> Optimizer:
    """The configured optimizer over ``parameters``."""
    return OPTIMIZERS[config.optimizer](parameters, config)


def make_scheduler(
    optimizer: Optimizer, config: TrainingConfig, total_steps: int
) -> LRScheduler | ReduceLROnPlateau | None:
    """The configured schedule, or None. The training step steps it: Lightning does not, here."""
    if config.scheduler == "warmup_cosine":
        warmup, floor = config.warmup_steps, config.scheduler_floor
        return LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total_steps, floor))
    if config.scheduler == "plateau":
        return ReduceLROnPlateau(
            optimizer,
            factor=config.plateau_factor,
            patience=config.plateau_patience,
            min_lr=config.scheduler_floor * config.learning_rate,
        )
    return None


def warmup_cosine(step: int, warmup: int, total: int, floor: float) -> float:
    """Part of the peak rate at ``step``: a linear rise over ``warmup`` steps, then half a cosine down to ``floor``.

    >>> [round(warmup_cosine(s, 2, 6, 0.0), 3) for s in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
