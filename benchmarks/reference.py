"""The straightforward implementation that ``benchmarks/step.py`` holds the package's training step against.

As one writes it from the paper: a fast transform of the whole image, one einsum for each corner of kept
frequencies, images as channels first, frames from a ``DataLoader``, one optimizer call for each tensor, and where
gradients are clipped and logged, the loops that this project started from.
``tests/torch/test_fast_step.py`` proves that it computes the same numbers.

Shape legend: B batch, C stacked neighbours, I and O channels, N pixels a side, P probe modes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.cases import LEARNING_RATE, Case
from ptycho.config.config import ModelConfig
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


def lifter(channels: int, width: int) -> nn.Sequential:
    """Two 3 x 3 convolutions that lift an image to ``width`` channels."""
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1))


class ReferenceFNO(nn.Sequential):
    """(B, C, N, N) -> (B, 2 * C, N, N): spectral blocks at one resolution, then convolutional ones."""

    def __init__(self, config: ModelConfig) -> None:
        channels, width = config.gridsize**2, config.fno_width
        super().__init__(
            lifter(channels, width),
            *(ReferenceBlock(width, config.fno_modes) for _ in range(config.fno_blocks)),
            *(ReferenceConvBlock(width) for _ in range(config.fno_cnn_blocks)),
            nn.Conv2d(width, 2 * channels, 1),
        )


class ReferenceHybrid(nn.Module):
    """(B, C, N, N) -> (B, 2 * C, N, N): a U of spectral blocks, each level half as large and twice as wide."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels, levels = config.gridsize**2, range(config.fno_blocks)
        widths = [config.fno_width * 2**k for k in levels]
        modes = [min(config.fno_modes, config.N // 2**k // 2) for k in levels]
        deepest = min(max(1, config.fno_modes // 2), modes[-1])
        self.lift = lifter(channels, widths[0])
        self.encoder = nn.ModuleList(map(ReferenceBlock, widths, modes))
        self.down = nn.ModuleList(nn.Conv2d(w, 2 * w, 2, stride=2) for w in widths[:-1])
        self.bottleneck = ReferenceBlock(widths[-1], deepest)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in widths[-2::-1])
        self.merge = nn.ModuleList(nn.Conv2d(2 * w, w, 3, padding=1) for w in widths[-2::-1])
        self.final = nn.Conv2d(widths[0], 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder[0](self.lift(x))
        skips = []
        for down, block in zip(self.down, self.encoder[1:], strict=True):
            skips.append(x)
            x = block(down(x))
        x = self.bottleneck(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = F.gelu(merge(torch.cat((up(x), skips.pop()), dim=1)))
        return self.final(x)


class ReferencePINN(nn.Module):
    """(B, C, N, N) amplitudes -> (B, C, N, N) predicted intensities: a network, then the experiment."""

    probe: Tensor

    def __init__(self, network: nn.Module, probe: Tensor) -> None:
        """Args: network; probe (P, N, N) complex."""
        super().__init__()
        self.network = network
        self.register_buffer("probe", probe)

    def forward(self, amplitude: Tensor) -> Tensor:
        real, imaginary = self.network(amplitude).chunk(2, dim=1)
        exit_waves = torch.complex(real, imaginary).unsqueeze(2) * self.probe
        waves = torch.fft.fftshift(torch.fft.fft2(exit_waves, norm="ortho"), dim=(-2, -1))
        return (waves.abs() ** 2).sum(dim=2)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Give a reference network the weights of the package's."""
    kinds = nn.Conv2d, nn.ConvTranspose2d
    layers = [m for m in source.modules() if isinstance(m, (*kinds, SpectralConv2d))]
    twins = [m for m in target.modules() if isinstance(m, (*kinds, ReferenceSpectral))]
    with torch.no_grad():
        for layer, twin in zip(layers, twins, strict=True):
            if isinstance(layer, SpectralConv2d) and isinstance(twin, ReferenceSpectral):
                corners = layer.weight.transpose(0, 1)
                twin.upper.copy_(corners[:, :, : layer.m1])
                twin.lower.copy_(corners[:, :, layer.m1 :])
            else:
                twin.load_state_dict(layer.state_dict())


def clip(parameters: Sequence[Tensor], clip_factor: float = 0.01, eps: float = 1e-3) -> None:
    """Adaptive clipping, one tensor after the other, with a look at every norm."""
    for p in parameters:
        bound = p.data.norm(2).clamp(min=eps) * clip_factor
        norm = p.grad.data.norm(2)  # type: ignore[union-attr]
        if norm > bound:
            p.grad.data.mul_(bound / norm)  # type: ignore[union-attr]


def log_norms(parameters: Sequence[Tensor]) -> tuple[list[float], float]:
    """The norm of each gradient, and of all."""
    norms = [float(p.grad.norm(2)) for p in parameters]  # type: ignore[union-attr]
    total = torch.stack([p.grad.norm(2) for p in parameters]).norm(2)  # type: ignore[union-attr]
    return norms, float(total)


def clip_and_log(parameters: Sequence[Tensor]) -> None:
    """Log before, clip, log after."""
    log_norms(parameters)
    clip(parameters)
    float(torch.stack([p.grad.norm(2) for p in parameters]).norm(2))  # type: ignore[union-attr]


def reference_steps(
    case: Case, clipping: Callable[[Sequence[Tensor]], object] = lambda parameters: None
) -> Iterator[float]:
    """Steps in the plain way, without end; each yields its loss."""
    network = {"fno": ReferenceFNO, "hybrid": ReferenceHybrid}[case.model.architecture](case.model)
    model = ReferencePINN(network, torch.from_numpy(case.probe()))
    parameters, frames = list(model.parameters()), case.frames()
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    loader = DataLoader(TensorDataset(frames), batch_size=case.batch_size, shuffle=True)
    scale = frames.mean()
    while True:
        for (measured,) in loader:
            loss = (model(measured).sqrt() - measured).abs().mean() / scale
            optimizer.zero_grad()
            loss.backward()
            clipping(parameters)
            optimizer.step()
            yield loss.item()
