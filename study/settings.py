"""Every setting of a study: its own, and those of the runs it launches. No torch, no MLflow."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ptycho.config.config import DataConfig, ModelConfig
from ptycho.config.settings import setting, validate
from ptycho_torch.config_params import TrainingConfig

PresetName = Literal["smoke", "default", "frontier", "depth", "thresholds", "real", "full"]
EXPERIMENT = "stability-shootout"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings(TrainingConfig, ModelConfig, DataConfig):
    """One run: data, network and training, flat."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What a study compares, and where it runs. None stands for the preset's choice."""

    preset: PresetName = setting("default", "Named design: what is compared, on what, how often")
    algo: tuple[str, ...] = setting((), "Clipping algorithm, as NAME or NAME=THRESHOLD (repeatable)")
    regime: tuple[str, ...] = setting((), "Regime of the preset to run (repeatable; default: all)")
    threshold: float | None = setting(None, "Clipping threshold of every algorithm; by default each its own")
    seeds: int | None = setting(None, "Paired replicates per arm; with --adaptive the most that an arm gets", low=1)
    seed_offset: int = setting(0, "Number of the first replicate", low=0)
    adaptive: bool = setting(False, "Add replicates only while an arm's comparison with the control is open")
    workers: int | None = setting(None, "Trainings at a time; by default cores / threads", low=1)
    time_limit: float | None = setting(None, "Longest time for one run", unit="s", above=0)
    engine: Literal["local"] = setting("local", "Where runs execute")
    out: str | None = setting(None, "Folder of the study: its records, tables and report; by default results/PRESET")
    tracking_uri: str | None = setting(None, "MLflow store; by default MLFLOW_TRACKING_URI, else ./mlflow.db")
    experiment: str = setting(EXPERIMENT, "MLflow experiment")
    fresh: bool = setting(False, "Run everything again, finished runs too")
    stop_failed: bool = setting(True, "End a training once its weights are not finite")

    def __post_init__(self) -> None:
        validate(self)
