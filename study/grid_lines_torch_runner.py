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
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.arrays import PtychoArrays, ScanSplits
from ptycho.cache import load_split
from ptycho.config.config import FaultConfig
from ptycho.config.plugins import PluginConfig, load_plugins, plugin_digests
from ptycho.config.settings import add_flags, chosen, project, setting
from ptycho.errors import InputError
from ptycho.faults import inject, parse_fault
from ptycho_torch.config_params import ModelConfig, TrainingConfig
from study.command import FINISHED, Parser, run_command
from study.data import baselines_file
from study.divergence import DivergenceRule, Outcome
from study.records import (
    BEST_CHECKPOINT_FILE,
    CHECKPOINT_FILE,
    ERROR_FILE,
    RECONSTRUCTION_FILE,
    RESULT_FILE,
    RunRecorder,
    has_steps,
    write_json,
)
from study.result import eval_columns, identity_row, outcome_row, software_versions, step_columns
from study.seeds import Seeds, seeds_of

if TYPE_CHECKING:  # torch and Lightning take seconds to load: what trains loads them, a word of help does not
    import lightning as L
    from torch import Tensor
    from torch.utils.data import DataLoader

    from ptycho_torch.baselines import Baselines
    from ptycho_torch.checkpoints import Progress
    from ptycho_torch.dataset import PtychoBatch, ResumableLoader
    from ptycho_torch.model import PtychoPINN_Lightning

VALIDATION_FRACTION = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchRunnerConfig(TrainingConfig, ModelConfig, FaultConfig, PluginConfig):
    """One run: every model and training setting, flat, and where the frames are."""

    train_npz: str = setting(help="Cached training frames")
    test_npz: str = setting(help="Cached test frames")
    validation_npz: str | None = setting(None, "Cached validation frames; otherwise a tenth of the training frames")
    output_dir: str = setting(help="Folder for records, result and reconstruction")
    stop_failed: bool = setting(True, "End a training once its weights are not finite")


class Prepared(NamedTuple):
    """A training about to start: the module, its training and validation frames, its recorder."""

    module: PtychoPINN_Lightning
    steps: ResumableLoader
    validation: DataLoader[PtychoBatch]
    recorder: RunRecorder


class Trained(NamedTuple):
    """What a training leaves: the module, its records, the wall time in seconds, what its scan's file said."""

    module: PtychoPINN_Lightning
    recorder: RunRecorder
    wall_s: float
    about: Mapping[str, Any]


def load_cached_dataset(path: str | Path) -> PtychoArrays:
    """The frames of one cached split.

    Raises:
        InputError: a file that cannot be used; also a KeyError where a required key is missing.
    """
    return load_split(Path(path))


def to_complex_patches(real_imag: Tensor) -> Tensor:
    """(..., 2) pairs of real and imaginary parts as complex numbers (...)."""
    import torch

    return torch.view_as_complex(real_imag.float().contiguous())


def setup_torch_configs(cfg: TorchRunnerConfig) -> tuple[ModelConfig, TrainingConfig]:
    """The model's and the training's part of a run's settings."""
    return ModelConfig(**project(cfg, ModelConfig)), TrainingConfig(**project(cfg, TrainingConfig))


def load_splits(cfg: TorchRunnerConfig) -> ScanSplits:
    """The frames of a run.

    Raises:
        InputError: a file that cannot be used, or frames of another size than ``N`` or ``gridsize`` say.
    """
    train, test = load_cached_dataset(cfg.train_npz), load_cached_dataset(cfg.test_npz)
    if cfg.validation_npz is None:
        train, validation = keep_validation(train, seeds_of(cfg.seed).data)
    else:
        validation = load_cached_dataset(cfg.validation_npz)
    for path, arrays in ((cfg.train_npz, train), (cfg.test_npz, test)):
        expected = (cfg.gridsize**2, cfg.N, cfg.N)
        if arrays.amplitude.shape[1:] != expected:
            raise InputError(
                f"{path}: frames have shape {arrays.amplitude.shape[1:]}; "
                f"N={cfg.N} and gridsize={cfg.gridsize} need {expected}"
            )
    return ScanSplits(train=train, validation=validation, test=test)


def keep_validation(train: PtychoArrays, seed: int) -> tuple[PtychoArrays, PtychoArrays]:
    """The training frames without a tenth of them, and that tenth."""
    order = np.random.default_rng(seed).permutation(train.n_frames)
    kept = max(1, round(VALIDATION_FRACTION * train.n_frames))
    return train.take(np.sort(order[kept:])), train.take(np.sort(order[:kept]))


def cached_baselines(cfg: TorchRunnerConfig, splits: ScanSplits) -> Baselines:
    """The baselines of a run's dataset, computed once and kept beside the training frames."""
    from ptycho_torch.baselines import Baselines, compute_baselines

    path = baselines_file(Path(cfg.train_npz), cfg.torch_loss_mode)
    key = dataset_digest(splits)
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.pop("digest") == key:
            return Baselines(**kept)
    baselines = compute_baselines(splits, cfg.torch_loss_mode)
    write_json(path, {**dataclasses.asdict(baselines), "digest": key})
    return baselines


def dataset_digest(splits: ScanSplits) -> str:
    """One hash for the frames of all three splits."""
    parts = (splits.train.digest(), splits.validation.digest(), splits.test.digest())
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:32]


def prepare_training(
    cfg: TorchRunnerConfig,
    splits: ScanSplits,
    baselines: Baselines,
    seeds: Seeds,
    folder: Path,
    steps_done: int = 0,
) -> Prepared:
    """Everything that a run trains with, made anew from its settings; records go to ``folder`` as they come.

    Raises:
        InputError: a network that does not fit the frames, an unknown fault.
    """
    from ptycho_torch.dataset import evaluation_loader, training_loader
    from ptycho_torch.losses import LossScale
    from ptycho_torch.model import PtychoPINN_Lightning, build_model

    model_config, training = setup_torch_configs(cfg)
    rule = DivergenceRule(constant=baselines.constant, mean_patch=baselines.mean_patch)
    recorder = RunRecorder(folder, rule, stop_failed=cfg.stop_failed, steps_done=steps_done)
    faults = inject(splits.train, [parse_fault(text) for text in cfg.fault], seeds.data)
    steps = training_loader(splits.train, faults, training.batch_size, seeds.order, training.accumulate_grad_batches)
    module = PtychoPINN_Lightning(
        build_model(model_config, splits.train.probe, seeds.init),
        training,
        LossScale.of(splits.train),
        planned_steps(training, len(steps)),
        recorder,
    )
    return Prepared(module, steps, evaluation_loader(splits.validation, training.infer_batch_size), recorder)


def run_torch_training(
    cfg: TorchRunnerConfig, splits: ScanSplits, baselines: Baselines, seeds: Seeds, folder: Path
) -> Trained:
    """Train once.

    Raises:
        InputError: a network that does not fit the frames, an unknown fault.
    """
    import torch

    checkpoint, progress = find_checkpoint(cfg, folder)
    module, steps, validation, recorder = prepare_training(cfg, splits, baselines, seeds, folder, progress.steps_done)
    torch.set_num_threads(cfg.threads)
    trainer = make_trainer(module.training_config, checkpoint_callbacks(cfg, folder, recorder, progress.wall_s))
    start = time.perf_counter() - progress.wall_s
    trainer.fit(module, steps, validation, ckpt_path=checkpoint, weights_only=True)
    if not recorder.evals or recorder.evals[-1].step != module.steps_done:
        trainer.validate(module, validation, verbose=False)
    return Trained(module, recorder, time.perf_counter() - start, splits.train.about)


def planned_steps(training: TrainingConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of a whole training."""
    return training.epochs * steps_per_epoch if training.max_steps is None else training.max_steps


def training_key(cfg: TorchRunnerConfig) -> str:
    """Equal for runs whose numbers are the same: what a checkpoint belongs to."""
    said = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in ("output_dir", "checkpoint_every")}
    said["plugin"] = plugin_digests(cfg.gradient_clip_algorithm, cfg.architecture, cfg.fault)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def find_checkpoint(cfg: TorchRunnerConfig, folder: Path) -> tuple[Path | None, Progress]:
    """The checkpoint from which this training goes on, and how far it has come.

    None where there is none, or where it is of another training or one that has ended, or where the
    records before it are not whole, as after a power loss.

    Raises:
        InputError: a file that is no checkpoint.
    """
    from ptycho_torch.checkpoints import Progress, read_progress

    path, anew = folder / CHECKPOINT_FILE, Progress("", 0, 0.0)
    if not path.exists() or (folder / RESULT_FILE).exists():
        return None, anew
    progress = read_progress(path)
    if progress.key != training_key(cfg) or not has_steps(folder, progress.steps_done):
        return None, anew
    return path, progress


def checkpoint_callbacks(
    cfg: TorchRunnerConfig, folder: Path, recorder: RunRecorder, wall_s: float
) -> list[L.Callback]:
    """What writes the checkpoints of a run that wants them."""
    from ptycho_torch.checkpoints import Checkpoints

    if cfg.checkpoint_every is None:
        return []
    files = folder / CHECKPOINT_FILE, folder / BEST_CHECKPOINT_FILE
    return [Checkpoints(*files, cfg.checkpoint_every, training_key(cfg), recorder.evals, wall_s)]


def make_trainer(training: TrainingConfig, callbacks: Sequence[L.Callback] = ()) -> L.Trainer:
    """A silent Trainer; the module decides when the step budget is spent.

    Raises:
        InputError: a device that this machine does not have.
    """
    import lightning as L
    import torch

    if training.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: 'cuda', but torch finds no CUDA device; allowed here: auto, cpu")
    # nothing here reads what it has not written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    a_first_step_left_out = "Detected call of `lr_scheduler.step\\(\\)` before `optimizer.step\\(\\)`"
    for message in (".*does not have many workers.*", ".*LeafSpec.* is deprecated.*", a_first_step_left_out):
        warnings.filterwarnings("ignore", message=message)
    return L.Trainer(
        accelerator="gpu" if training.device == "cuda" else training.device,
        devices=1,
        callbacks=list(callbacks),
        precision=training.precision,
        max_epochs=training.epochs if training.max_steps is None else -1,
        val_check_interval=training.eval_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        deterministic="warn",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


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
    from study.quality import Quality, compute_metrics

    recorder, realised = trained.recorder, realised_settings(cfg, trained)
    outcome = recorder.rule.outcome()
    quality = Quality.unscored()
    if outcome.reason != "nonfinite":
        quality = compute_metrics(functools.partial(run_torch_inference, trained.module), splits)
        quality.save(Path(cfg.output_dir) / RECONSTRUCTION_FILE)
    return {
        "algorithm": realised["gradient_clip_algorithm"],
        "threshold": realised["gradient_clip_val"],
        "learning_rate": realised["learning_rate"],
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


def build_parser() -> Parser:
    """The command line of one run."""
    parser = Parser(prog="python -m study.grid_lines_torch_runner", description=__doc__)
    add_flags(parser, TorchRunnerConfig)
    return parser


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
