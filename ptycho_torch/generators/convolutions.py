"""Convolutions and their non-linearity as they run fastest on images whose channels lie innermost in memory.

Each computes what its namesake in torch does. Shape legend: B batch, I and O channels, (H, W) pixels; the
members of an ensemble may stand between B and the channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Convolution(torch.autograd.Function):
    """A convolution whose bias is given the plain sum of the gradient.

    Asked for all three gradients at once, oneDNN takes a third longer than for those of images and kernel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return torch.convolution(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], True, False]
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(gradient, x, weight, None, *ctx.how, wanted)
        return of_x, of_weight, gradient.sum(dim=(0, 2, 3)), None


def convolve(x: Tensor, layer: nn.Conv2d | nn.ConvTranspose2d, transposed: bool) -> Tensor:
    """(B, I, H, W) -> (B, O, ...) by a layer's weights."""
    assert layer.bias is not None  # as every convolution here has
    tensors = [x, layer.weight, layer.bias]
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        tensors = [tensor.to(dtype) for tensor in tensors]
    how = layer.stride, layer.padding, layer.dilation, transposed, layer.output_padding, layer.groups
    y: Tensor = Convolution.apply(*tensors, how)
    return y


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` with zeros around the image."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self, transposed=False)


class ConvTranspose2d(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d``."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return convolve(x, self, transposed=True)


class GELU(nn.Module):
    """``nn.GELU``; see :func:`gelu`."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)


def gelu(x: Tensor) -> Tensor:
    """GELU on the array as it lies in memory: three times as fast as across its strides."""
    return channels_first(F.gelu(channels_last(x)))


def add_gelu(x: Tensor, z: Tensor) -> Tensor:
    """x + GELU(z)."""
    return channels_first(F.gelu(channels_last(z)).add_(channels_last(x)))


def channels_last(image: Tensor) -> Tensor:
    """(B, ..., C, H, W) as (B, H, W, ..., C)."""
    return image.movedim((-2, -1), (1, 2))


def channels_first(image: Tensor) -> Tensor:
    """(B, H, W, ..., C) as (B, ..., C, H, W)."""
    return image.movedim((1, 2), (-2, -1))
