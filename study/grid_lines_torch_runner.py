"""One training run: cached frames in, records and a result out.

``python -m study.grid_lines_torch_runner --train-npz A --test-npz B --output-dir DIR`` runs it alone;
a study runs it once per arm and replicate.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import json
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.arrays import PtychoArrays, ScanSplits
from ptycho.config.config import FaultConfig
from ptycho.config.plugins import PluginConfig, load_plugins
from ptycho.config.settings import add_flags, chosen, project
from ptycho.errors import InputError
from ptycho_torch.config_params import ModelConfig, TrainingConfig
from study.command import FINISHED, Parser, run_command
from study.divergence import Outcome
from study.quality import Quality, compute_metrics
from study.records import ERROR_FILE, RECONSTRUCTION_FILE, RESULT_FILE, write_json
from study.result import eval_columns, identity_row, outcome_row, software_versions, step_columns
from study.run_config import TorchRunnerConfig, setup_torch_configs
from study.run_frames import cached_baselines, dataset_digest, load_cached_dataset, load_splits
from study.run_training import Trained, run_torch_training
from study.seeds import seeds_of
from study.short_help import short_help

if TYPE_CHECKING:
    from torch import Tensor

    from ptycho_torch.baselines import Baselines
    from ptycho_torch.model import PtychoPINN_Lightning

__all__ = [
    "TorchRunnerConfig",
    "compute_metrics",
    "load_cached_dataset",
    "run_grid_lines_torch",
    "run_torch_inference",
    "run_torch_training",
    "setup_torch_configs",
    "to_complex_patches",
]


def to_complex_patches(real_imag: Tensor) -> Tensor:
    """(..., 2) pairs of real and imaginary parts as complex numbers (...)."""
    import torch

    return torch.view_as_complex(real_imag.float().contiguous())


def run_torch_inference(
    module: PtychoPINN_Lightning, arrays: PtychoArrays
) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    """Object patches (B, C, N, N) of every frame, and the amplitudes (B, C, N, N) that they predict."""
    import torch

    from ptycho_torch.dataset import evaluation_loader

    batches = evaluation_loader(arrays, module.training_config.infer_batch_size)
    module.eval()
    with torch.inference_mode():
        found = [module.model(batch.amplitude.to(module.device)) for batch in batches]
    patches = torch.cat([prediction.patches.cpu() for prediction in found])
    intensity = torch.cat([prediction.intensity.cpu() for prediction in found])
    return patches.numpy(), intensity.sqrt().numpy()


def realised_settings(cfg: TorchRunnerConfig, trained: Trained) -> dict[str, Any]:
    """Every setting as it acted: read off the module, the clipper and the optimizer, not off the request."""
    import torch

    from ptycho_torch.generators import count_parameters

    module = trained.module
    asked = {**project(cfg, ModelConfig), **project(cfg, TrainingConfig), "fault": " ".join(cfg.fault)}
    if cfg.plugin:
        asked["plugin"] = " ".join(cfg.plugin)
    rates = [record.learning_rate for record in trained.recorder.steps]
    return {
        **asked,
        "gradient_clip_algorithm": module.clipper.algorithm,
        "gradient_clip_val": module.clipper.threshold,
        "generator_output_mode": module.model.generator.head.mode,
        "device": str(module.model.probe.device),
        "threads": torch.get_num_threads(),
        "learning_rate": max(rates, default=cfg.learning_rate),
        "learning_rate_last": rates[-1] if rates else None,
        "n_parameters": count_parameters(module.model),
        **{f"scan_{name}": value for name, value in trained.about.items()},
        **{f"version_{name}": version for name, version in software_versions().items()},
    }


def standalone_identity(cfg: TorchRunnerConfig) -> dict[str, Any]:
    """The specification of a run that belongs to no study."""
    algorithm = cfg.gradient_clip_algorithm
    return {
        "run_id": hashlib.sha256(json.dumps(dataclasses.asdict(cfg), sort_keys=True).encode()).hexdigest()[:12],
        "name": f"single/{algorithm}/{cfg.seed}",
        "regime": "single",
        "algorithm": algorithm,
        "threshold": cfg.gradient_clip_val,
        "architecture": cfg.architecture,
        "optimizer": cfg.optimizer,
        "learning_rate": cfg.learning_rate,
        "replicate": cfg.seed,
    }


def run_grid_lines_torch(cfg: TorchRunnerConfig, identity: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Train, reconstruct, score; the result, which also stands in ``output_dir``.

    An exception during the training is a result too: ``error``, or ``oom`` where memory ran out.

    Args:
        cfg: the run.
        identity: what a study calls it; see :func:`standalone_identity`.

    Raises:
        InputError: settings or files that cannot be used; nothing was trained.
        OSError: a disk that fails, which is no result.
    """
    identity = standalone_identity(cfg) if identity is None else identity
    folder = Path(cfg.output_dir)
    start = time.perf_counter()
    try:
        row = _train_and_score(cfg, folder)
    except InputError:
        raise
    except Exception as error:  # whatever a training dies of is its outcome
        if isinstance(error, OSError) and not is_out_of_memory(error):
            raise  # a disk that fails is nothing that the training did
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
        row = outcome_row(Outcome(word="oom" if is_out_of_memory(error) else "error"))
        row |= {"wall_s": time.perf_counter() - start, "message": f"{type(error).__name__}: {error}"}
    result = {**identity_row(identity), **row}
    write_json(folder / RESULT_FILE, result)
    return result


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the host or on an accelerator."""
    import torch

    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _train_and_score(cfg: TorchRunnerConfig, folder: Path) -> dict[str, Any]:
    splits = load_splits(cfg)
    baselines = cached_baselines(cfg, splits)
    trained = run_torch_training(cfg, splits, baselines, seeds_of(cfg.seed), folder)
    return score_training(cfg, splits, baselines, trained)


def score_training(
    cfg: TorchRunnerConfig, splits: ScanSplits, baselines: Baselines, trained: Trained
) -> dict[str, Any]:
    """Reconstruct and score with a trained network; the columns that a run's result has besides its identity."""
    recorder, realised = trained.recorder, realised_settings(cfg, trained)
    outcome = recorder.rule.outcome()
    quality = Quality.unscored()
    if outcome.reason != "nonfinite":
        quality = compute_metrics(functools.partial(run_torch_inference, trained.module), splits)
        quality.save(Path(cfg.output_dir) / RECONSTRUCTION_FILE)
    return {
        "algorithm": realised["gradient_clip_algorithm"],
        "threshold": realised["gradient_clip_val"],
        **outcome_row(outcome),
        "wall_s": trained.wall_s,
        **eval_columns(recorder.evals, baselines),
        **quality.scores,
        **step_columns(recorder.steps),
        "n_parameters": realised["n_parameters"],
        "dataset_digest": dataset_digest(splits),
        "probe_scale": splits.train.probe_scale,
        "realised": realised,
    }


USAGE = "python -m study.grid_lines_torch_runner --train-npz A --test-npz B --output-dir DIR [SETTING ...]"


def build_parser() -> Parser:
    """The command line of one run."""
    parser = Parser(prog="python -m study.grid_lines_torch_runner", usage=USAGE, description=__doc__, short=brief)
    add_flags(parser, TorchRunnerConfig)
    return parser


def brief() -> str:
    """The help that fits a screen."""
    about = "Train once: cached frames in, records and a result out."
    groups = {"network": ModelConfig, "training": TrainingConfig}
    return short_help(USAGE, about, (TorchRunnerConfig, FaultConfig, PluginConfig), groups)


def main() -> int:
    """Run once and print the outcome."""
    namespace = build_parser().parse_args()
    given = chosen(namespace, TorchRunnerConfig)
    given["plugin"] = load_plugins(given.get("plugin", ()))
    cfg = TorchRunnerConfig(**given)
    result = run_grid_lines_torch(cfg)
    reason = f" ({result['reason']} at step {result['failed_at_step']})" if result["reason"] else ""
    sys.stdout.write(f"{result['outcome']}{reason}: {cfg.output_dir}/{RESULT_FILE}\n")
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_command(main))
