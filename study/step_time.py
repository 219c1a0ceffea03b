"""How long a training step takes on this machine."""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from ptycho.config.settings import project
from ptycho.errors import InputError
from ptycho_torch.config_params import ModelConfig, TrainingConfig
from ptycho_torch.losses import LOSSES, LossScale
from ptycho_torch.model import build_model
from ptycho_torch.optimizers import make_optimizer
from ptycho_torch.train_utils import GradientClipper
from study.grid_lines_torch_runner import is_out_of_memory
from study.memory import freed_memory_kept
from study.run_training import require_device
from study.settings import RunSettings

STEPS = 3
SCALE = LossScale(amplitude=0.5, intensity=0.33, photons_per_intensity=1.0)


def step_time(settings: RunSettings) -> float:
    """Median seconds of a few steps (after one that warms up) of a throw-away network on random amplitudes.

    Raises:
        InputError: a device that this machine does not have, a batch that does not fit into its memory.
    """
    require_device(settings.device)
    try:
        return _step_time(settings)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"batch_size: {settings.batch_size} frames do not fit into this machine's memory; allowed: fewer"
        ) from None


def _step_time(settings: RunSettings) -> float:
    model_config, training = (
        ModelConfig(**project(settings, ModelConfig)),
        TrainingConfig(**project(settings, TrainingConfig)),
    )
    torch.set_num_threads(training.threads)
    cuda = training.device == "cuda" or (training.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if cuda else "cpu")
    model = build_model(model_config, np.ones((1, model_config.N, model_config.N), np.complex64), seed=0).to(device)
    optimizer = make_optimizer(model.parameters(), training)
    clipper = GradientClipper(model, algorithm=training.gradient_clip_algorithm, threshold=training.gradient_clip_val)
    shape = (training.batch_size, model_config.gridsize**2, model_config.N, model_config.N)
    amplitude = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    times = []
    with freed_memory_kept():
        for _ in range(1 + STEPS):
            start = time.perf_counter()
            for _ in range(training.accumulate_grad_batches):
                with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16-mixed"):
                    prediction = model(amplitude)
                LOSSES[training.torch_loss_mode](prediction.intensity, amplitude, SCALE).mean().backward()
            clipper()
            optimizer.step()
            optimizer.zero_grad()
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
