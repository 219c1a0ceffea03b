"""The settings of one training run, flat."""

from __future__ import annotations

import dataclasses

from ptycho.config.config import FaultConfig
from ptycho.config.plugins import PluginConfig
from ptycho.config.settings import project, setting
from ptycho_torch.config_params import ModelConfig, TrainingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchRunnerConfig(TrainingConfig, ModelConfig, FaultConfig, PluginConfig):
    """One run: every model and training setting, flat, and where the frames are."""

    train_npz: str = setting(help="Cached training frames")
    test_npz: str = setting(help="Cached test frames")
    validation_npz: str | None = setting(None, "Cached validation frames; otherwise a tenth of the training frames")
    output_dir: str = setting(help="Folder for records, result and reconstruction")
    stop_failed: bool = setting(True, "End a training once its weights are not finite")


def setup_torch_configs(cfg: TorchRunnerConfig) -> tuple[ModelConfig, TrainingConfig]:
    """The model's and the training's part of a run's settings."""
    return ModelConfig(**project(cfg, ModelConfig)), TrainingConfig(**project(cfg, TrainingConfig))
