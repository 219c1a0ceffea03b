"""Every setting of a study: its own, and those of the runs it launches. No torch, no MLflow."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal

from ptycho.config.config import DataConfig, ModelConfig
from ptycho.config.plugins import PluginConfig
from ptycho.config.settings import from_plain, setting, validate
from ptycho.errors import InputError
from ptycho_torch.config_params import TrainingConfig

PresetName = Literal["smoke", "default", "frontier", "depth", "thresholds", "quality", "real", "full"]
EXPERIMENT = "stability-shootout"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings(TrainingConfig, ModelConfig, DataConfig, PluginConfig):
    """One run: data, network, training and what they need of the user's own, flat."""


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
    workers: int | None = setting(None, "Trainings at a time; by default what cores, memory and GPUs hold", low=1)
    ensemble: int | None = setting(
        None, "Most runs of one shape that one process trains together; by default as many as make it faster", low=1
    )
    time_limit: float | None = setting(None, "Longest time for one run", unit="s", above=0)
    gpus_per_run: float = setting(1.0, "Share of a GPU that one run takes, where there are GPUs", above=0)
    engine: Literal["local", "ray", "slurm"] = setting("local", "Where runs execute: here, or on many machines")
    ray_address: str = setting(
        "local", "Ray cluster: 'local' starts one here, 'auto' finds this machine's, or HOST:PORT"
    )
    out: str | None = setting(None, "Folder of the study: its records, tables and report; by default results/PRESET")
    tracking_uri: str | None = setting(
        None, "MLflow store; by default MLFLOW_TRACKING_URI, else mlflow.db in the checkout"
    )
    experiment: str = setting(EXPERIMENT, "MLflow experiment")
    fresh: bool = setting(False, "Run everything again, finished runs too")
    stop_failed: bool = setting(True, "End a training once its weights are not finite")

    def __post_init__(self) -> None:
        validate(self)

    def check_together(self) -> None:
        """Refuse ensembles where each run has a process or a time of its own, and what would never come to an end."""
        if self.fresh and self.engine == "slurm":
            raise InputError("fresh: with engine slurm every round would begin anew; allowed: an empty folder as out")
        if (self.ensemble or 1) > 1 and (self.time_limit is not None or self.engine == "slurm"):
            other = "time_limit" if self.time_limit is not None else "engine slurm"
            raise InputError(
                f"ensemble: {self.ensemble} does not go with {other}; allowed: 1, or the one without the other"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommandLine:
    """What only the command line of a study says."""

    config: str | None = setting(None, "YAML file of settings, as a study leaves it in study.yaml; flags win over it")
    dry_run: bool = setting(False, "Show the runs, the time and the space they will take; train and write nothing")


OF_THE_DESIGN = ("seed", "gradient_clip_val", "gradient_clip_algorithm")  # arms and replicates say these
RUN_FIELDS = tuple(field.name for field in dataclasses.fields(RunSettings) if field.name not in OF_THE_DESIGN)
STUDY_FIELDS = tuple(field.name for field in dataclasses.fields(StudyConfig))


def split_settings(given: Mapping[str, Any]) -> tuple[StudyConfig, dict[str, Any]]:
    """Settings by name as the study's own, and those given for all its runs.

    Raises:
        InputError: an unknown setting, or a value that is not allowed.
    """
    for name in given:
        require_known(name)
    own = {name: value for name, value in given.items() if name in STUDY_FIELDS}
    overrides = {name: value for name, value in given.items() if name in RUN_FIELDS}
    return StudyConfig(**from_plain(own, StudyConfig)), from_plain(overrides, RunSettings)


def require_known(name: str) -> None:
    """Refuse what is no setting of a study, with those whose names are close.

    Raises:
        InputError: the name is no setting.
    """
    known = (*STUDY_FIELDS, *RUN_FIELDS)
    if name in known:
        return
    near = " or ".join(map(repr, difflib.get_close_matches(name, known, n=3)))
    hint = f"did you mean {near}?" if near else "allowed: the settings that --help-all lists"
    said = "an arm or the number of seeds says this" if name in OF_THE_DESIGN else "no such setting"
    raise InputError(f"{name}: {said}; {hint}")
