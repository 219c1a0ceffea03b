"""What a worker process is asked to do. Only plain values and paths cross the process boundary."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho.config.config import FaultConfig, ModelConfig
from ptycho.config.plugins import load_plugins
from ptycho.config.settings import project
from ptycho.errors import InputError
from ptycho_torch.config_params import TrainingConfig
from study.attempts import begin
from study.data import DataFiles, prepare_data
from study.design import RunSpec
from study.records import RESULT_FILE

if TYPE_CHECKING:
    from study.trainings import Training


def prepare_dataset(spec: RunSpec, folder: Path, losses: tuple[str, ...]) -> DataFiles:
    """Make the frames of ``spec`` and their baselines under each of ``losses``."""
    from study.run_frames import cached_baselines, load_splits

    load_plugins(spec.settings.plugin)
    files = prepare_data(spec.settings, folder)
    for loss in losses:
        settings = dataclasses.replace(spec.settings, torch_loss_mode=loss)  # type: ignore[arg-type]
        cfg = runner_config(RunSpec(regime=spec.regime, settings=settings), files, folder, stop_failed=True)
        cached_baselines(cfg, load_splits(cfg))
    return files


def execute(*trainings: Training) -> list[dict[str, Any]]:
    """Train one after the other; everything lands in their folders, the results come back too.

    One that a killed attempt has finished is not repeated, and one that it left a checkpoint of goes on from there.
    """
    return [_train(training) for training in trainings]


def execute_together(*trainings: Training) -> list[dict[str, Any]]:
    """Train all that have no result yet as one ensemble.

    What stops an ensemble is no run's outcome: each is then trained alone, as all are on a machine with a GPU.
    """
    from study.ensemble_runner import run_ensemble

    todo = [training for training in trainings if not (training.folder / RESULT_FILE).exists()]
    if len(todo) > 1 and not uses_gpu(todo[0].spec.settings.device):
        load_plugins(todo[0].spec.settings.plugin)
        for training in todo:
            begin(training.folder, training.spec)
        configs = [
            runner_config(spec, files, folder, stop_failed=stop_failed) for spec, files, folder, stop_failed in todo
        ]
        try:
            run_ensemble(configs, [training.spec.identity() for training in todo])
        except (InputError, OSError):
            raise
        except Exception:  # which member it came from, only trainings alone can tell
            logging.getLogger(__name__).warning(
                "an ensemble of %d ended; its runs train alone", len(todo), exc_info=True
            )
    return execute(*trainings)


def uses_gpu(device: str) -> bool:
    """Whether a training with this setting runs on a GPU here."""
    import torch

    return device != "cpu" and torch.cuda.is_available()


def _train(training: Training) -> dict[str, Any]:
    from study.grid_lines_torch_runner import run_grid_lines_torch

    spec, files, folder, stop_failed = training
    result = folder / RESULT_FILE
    if result.exists():
        return dict(json.loads(result.read_text(encoding="utf-8")))
    load_plugins(spec.settings.plugin)
    begin(folder, spec)
    return run_grid_lines_torch(runner_config(spec, files, folder, stop_failed=stop_failed), spec.identity())


def runner_config(spec: RunSpec, files: DataFiles, folder: Path, *, stop_failed: bool) -> Any:
    """The run's settings with the files it reads and the folder it writes."""
    from study.run_config import TorchRunnerConfig

    settings = spec.settings
    return TorchRunnerConfig(
        **{**project(settings, TrainingConfig), **project(settings, ModelConfig), **project(settings, FaultConfig)},
        plugin=settings.plugin,
        train_npz=str(files.train),
        validation_npz=str(files.validation),
        test_npz=str(files.test),
        output_dir=str(folder),
        stop_failed=stop_failed,
    )
