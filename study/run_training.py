"""The training of one run: made from its settings, gone on with from a checkpoint, carried out by a Trainer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ptycho.arrays import ScanSplits
from ptycho.config.plugins import plugin_digests
from ptycho.errors import InputError
from ptycho.faults import inject, parse_fault
from ptycho_torch.config_params import TrainingConfig
from study.divergence import DivergenceRule
from study.memory import freed_memory_kept
from study.records import BEST_CHECKPOINT_FILE, CHECKPOINT_FILE, RESULT_FILE, RunRecorder, has_steps
from study.run_config import TorchRunnerConfig, setup_torch_configs
from study.seeds import Seeds

if TYPE_CHECKING:  # torch and Lightning take seconds to load: what trains loads them, a word of help does not
    import lightning as L
    from torch.utils.data import DataLoader

    from ptycho_torch.baselines import Baselines
    from ptycho_torch.checkpoints import Progress
    from ptycho_torch.dataset import PtychoBatch, ResumableLoader
    from ptycho_torch.model import PtychoPINN_Lightning


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
    with freed_memory_kept():
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


def require_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        InputError: that device.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: 'cuda', but torch finds no CUDA device; allowed here: auto, cpu")


def make_trainer(training: TrainingConfig, callbacks: Sequence[L.Callback] = ()) -> L.Trainer:
    """A silent Trainer; the module decides when the step budget is spent.

    Raises:
        InputError: a device that this machine does not have.
    """
    import lightning as L
    import torch

    require_device(training.device)
    # nothing here reads memory that it has not written
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
