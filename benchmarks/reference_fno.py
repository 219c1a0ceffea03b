"""The straightforward implementation of the fno that ``benchmarks/step.py`` holds the package against.

As one writes it from the paper: a fast transform of the whole image, one einsum for each corner of
kept frequencies, images as channels first, frames from a ``DataLoader``, one optimizer call for each tensor.
``tests/torch/test_fast_step.py`` proves that it computes the same numbers.

Shape legend: B batch, C stacked neighbours, I and O channels, N pixels a side, P probe modes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ptycho.config.config import ModelConfig
from ptycho_torch.generators.networks import FNO
from ptycho_torch.generators.spectral import SpectralConv2d


class ReferenceSpectral(nn.Module):
    """Two corners of low frequencies, each with its complex weight (I, O, m, m)."""

    def __init__(self, in_channels: int, out_channels: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        scale, shape = 1 / (in_channels * out_channels), (in_channels, out_channels, modes, modes)
        dtype = torch.get_default_dtype().to_complex()
        self.upper = nn.Parameter(scale * torch.rand(shape, dtype=dtype))
        self.lower = nn.Parameter(scale * torch.rand(shape, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, N, N) -> (B, O, N, N)."""
        m, size = self.modes, x.shape[-2:]
        spectrum = torch.fft.rfft2(x)
        mixed = spectrum.new_zeros(len(x), self.upper.shape[1], *spectrum.shape[-2:])
        mixed[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :m, :m], self.upper)
        mixed[:, :, -m:, :m] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, -m:, :m], self.lower)
        return torch.fft.irfft2(mixed, s=size)


class ReferenceBlock(nn.Module):
    """y = x + GELU(spectral(x) + conv3x3(x))."""

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.spectral = ReferenceSpectral(width, width, modes)
        self.local = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.spectral(x) + self.local(x))


class ReferenceConvBlock(nn.Module):
    """y = x + GELU(conv3x3(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.conv(x))


class ReferenceFNO(nn.Module):
    """(B, C, N, N) amplitudes -> (B, C, N, N) predicted intensities."""

    probe: Tensor

    def __init__(self, config: ModelConfig, probe: Tensor) -> None:
        """Args: config; probe (P, N, N) complex."""
        super().__init__()
        channels, width = config.gridsize**2, config.fno_width
        self.network = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            *(ReferenceBlock(width, config.fno_modes) for _ in range(config.fno_blocks)),
            *(ReferenceConvBlock(width) for _ in range(config.fno_cnn_blocks)),
            nn.Conv2d(width, 2 * channels, 1),
        )
        self.register_buffer("probe", probe)

    def forward(self, amplitude: Tensor) -> Tensor:
        real, imaginary = self.network(amplitude).chunk(2, dim=1)
        exit_waves = torch.complex(real, imaginary).unsqueeze(2) * self.probe
        waves = torch.fft.fftshift(torch.fft.fft2(exit_waves, norm="ortho"), dim=(-2, -1))
        return (waves.abs() ** 2).sum(dim=2)


def copy_weights(source: FNO, target: ReferenceFNO) -> None:
    """Give the reference the weights of the package's network."""
    layers = [m for m in source.modules() if isinstance(m, (nn.Conv2d, SpectralConv2d))]
    twins = [m for m in target.modules() if isinstance(m, (nn.Conv2d, ReferenceSpectral))]
    with torch.no_grad():
        for layer, twin in zip(layers, twins, strict=True):
            if isinstance(layer, SpectralConv2d) and isinstance(twin, ReferenceSpectral):
                corners = layer.weight.transpose(0, 1)
                twin.upper.copy_(corners[:, :, : layer.m1])
                twin.lower.copy_(corners[:, :, layer.m1 :])
            else:
                twin.load_state_dict(layer.state_dict())


def train(model: ReferenceFNO, amplitude: Tensor, batch_size: int, learning_rate: float) -> Iterator[float]:
    """Steps of Adam on the MAE of amplitudes, without end; each yields its loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    loader = DataLoader(TensorDataset(amplitude), batch_size=batch_size, shuffle=True, drop_last=True)
    scale = amplitude.mean()
    while True:
        for (measured,) in loader:
            loss = (model(measured).sqrt() - measured).abs().mean() / scale
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()
