"""Building blocks of the generators. Shape legend: B batch, C channels, (H, W) pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ptycho_torch.generators.convolutions import GELU, Conv2d, add_gelu, channels_first, channels_last, gelu
from ptycho_torch.generators.spectral import SpectralConv2d


def lifter(in_channels: int, width: int) -> nn.Sequential:
    """Two 3 x 3 convolutions that lift an image to ``width`` channels."""
    return nn.Sequential(
        Conv2d(in_channels, width, 3, padding=1),
        GELU(),
        Conv2d(width, width, 3, padding=1),
    )


class Join(torch.autograd.Function):
    """The channels of several images (B, ..., C, H, W) behind each other, innermost in memory for the convolutions.

    Its gradients are dense. As mere views into the joined gradient they would make GELU's backward pass,
    which then works number by number, 15 times slower.
    """

    @staticmethod
    def forward(ctx: Any, *images: Tensor) -> Tensor:
        ctx.channels = [image.shape[-3] for image in images]
        return channels_first(torch.cat([channels_last(image) for image in images], dim=-1))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        parts = channels_last(gradient).split(ctx.channels, dim=-1)
        return tuple(channels_first(part.contiguous()) for part in parts)


def join(*images: Tensor) -> Tensor:
    """See :class:`Join`."""
    joined: Tensor = Join.apply(*images)
    return joined


class PtychoBlock(nn.Module):
    """y = x + GELU(spectral(x) + conv3x3(x)); the image's size and channels are kept."""

    def __init__(self, channels: int, modes: int, size: int) -> None:
        super().__init__()
        self.spectral = SpectralConv2d(channels, channels, modes, size)
        self.local = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return add_gelu(x, self.spectral(x) + self.local(x))


class StablePtychoBlock(PtychoBlock):
    """y = x + gamma * InstanceNorm(GELU(spectral(x) + conv3x3(x))), gamma one LayerScale per channel.

    The normalisation stands last, so that each block adds an increment of known size
    (LayerScale: Touvron et al. 2021, eq. 4).
    """

    unit_axis = None  # all of ``layerscale`` is one unit of unit-wise clipping: it holds gains, not weights

    def __init__(self, channels: int, modes: int, size: int, layerscale_init: float) -> None:
        super().__init__(channels, modes, size)
        self.norm = nn.InstanceNorm2d(channels)
        self.layerscale = nn.Parameter(torch.full((channels, 1, 1), layerscale_init))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layerscale * self.norm(gelu(self.spectral(x) + self.local(x)))


class ConvBlock(nn.Module):
    """y = x + GELU(conv3x3(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return add_gelu(x, self.conv(x))
