"""The trainings that are timed: networks, frames, and the package's step in a bare loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ptycho.arrays import PtychoArrays
from ptycho.config.config import ModelConfig
from ptycho_torch.config_params import TrainingConfig
from ptycho_torch.losses import LossScale, mae
from ptycho_torch.model import Prediction, PtychoPINN, build_model
from ptycho_torch.optimizers import make_optimizer
from study.presets import SHORT_TRAINING, SMALL_NETWORK

LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A network and the batches it is trained on."""

    model: ModelConfig
    batch_size: int
    n_frames: int = 256

    def frames(self) -> Tensor:
        """(n_frames, C, N, N) amplitudes: noise with the falling spectrum of a diffraction pattern."""
        generator = torch.Generator().manual_seed(1)
        away = torch.linspace(-1, 1, self.model.N).square()
        envelope = torch.exp(-8 * (away[:, None] + away))
        shape = (self.n_frames, self.model.gridsize**2, self.model.N, self.model.N)
        return torch.rand(shape, generator=generator) * envelope

    def probe(self) -> np.ndarray:
        """(1, N, N) complex64: a Gaussian spot."""
        across = np.linspace(-1, 1, self.model.N) ** 2
        return np.exp(-4 * (across[:, None] + across))[np.newaxis].astype(np.complex64)

    def arrays(self) -> PtychoArrays:
        """The frames as a scan."""
        positions = np.zeros((self.n_frames, self.model.gridsize**2, 2), np.float32)
        frames, probe = self.frames().numpy(), self.probe()
        return PtychoArrays(amplitude=frames, positions_px=positions, probe=probe, photons_per_intensity=1.0)

    def scale(self) -> LossScale:
        """What the loss is divided by."""
        return LossScale.of(self.arrays())

    @staticmethod
    def loss(prediction: Prediction, measured: Tensor, scale: LossScale) -> Tensor:
        """MAE of amplitudes."""
        return mae(prediction.intensity, measured, scale).mean()

    def build(self) -> PtychoPINN:
        """The package's network with its physics."""
        return build_model(self.model, self.probe(), seed=0)

    def steps(self, clipping: Callable[[PtychoPINN], Callable[[], object]] | None = None) -> Iterator[float]:
        """Steps of the package in a bare loop, without end; each yields its loss.

        Args:
            clipping: makes, from the model, what is called between backward pass and optimizer.
        """
        model, frames, scale = self.build(), self.frames(), self.scale()
        optimizer = make_optimizer(model.parameters(), TrainingConfig(learning_rate=LEARNING_RATE))
        clip = clipping(model) if clipping is not None else lambda: None
        while True:
            for numbers in torch.randperm(self.n_frames).split(self.batch_size):
                measured = frames[numbers]
                loss = self.loss(model(measured), measured, scale)
                loss.backward()
                clip()
                optimizer.step()
                optimizer.zero_grad()
                yield loss.item()


DEFAULT = Case(
    model=ModelConfig(N=32, **SMALL_NETWORK),
    batch_size=SHORT_TRAINING["batch_size"],
)
FNO = Case(
    model=ModelConfig(architecture="fno", N=64, fno_width=32, fno_modes=12, fno_blocks=4),
    batch_size=16,
)
HYBRID_17M = Case(
    model=ModelConfig(architecture="hybrid", N=96, fno_width=32, fno_modes=12, fno_blocks=4),
    batch_size=16,
)
TOY = Case(
    model=ModelConfig(architecture="hybrid", N=8, fno_width=2, fno_modes=2, fno_blocks=2, fno_cnn_blocks=1),
    batch_size=2,
    n_frames=8,
)
