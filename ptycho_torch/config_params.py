"""The torch training configuration: the shared one, and what only torch needs. It restates nothing."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ptycho.config import config as shared
from ptycho.config.settings import setting, validate

ModelConfig = shared.ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(shared.TrainingConfig):
    """``ptycho.config.config.TrainingConfig`` with the settings of the torch back end."""

    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Where to train")
    precision: Literal["32-true", "bf16-mixed"] = setting("32-true", "Arithmetic of the forward and backward pass")
    threads: int = setting(1, "CPU threads of one training; another number may change the last bits", low=1)
    log_grad_norm: bool = setting(False, "Record the gradient norm of every parameter tensor too")
    grad_norm_log_freq: int = setting(10, "Steps between two per-tensor records", unit="steps", low=1)
    checkpoint_every: int | None = setting(
        None, "Steps between two checkpoints, from which a killed training goes on", unit="steps", low=1
    )

    def __post_init__(self) -> None:
        validate(self)
