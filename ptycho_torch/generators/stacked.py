"""Several networks of one architecture as one: each layer carries out all members' layers in one call.

Images have the members as an axis of their own before the channels, (B, K, C, H, W), and lie in memory with K
and C innermost. So blocks and networks stay what they are, and only the layers that hold weights have a form
for K members here; what they compute for one member does not depend on the others.

Shape legend: B batch, K members, C (I and O) channels, (H, W) pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptycho.errors import InputError
from ptycho_torch.generators import ComplexHead, Generator, blocks, networks
from ptycho_torch.generators.convolutions import GELU, Conv2d, Convolution, ConvTranspose2d
from ptycho_torch.generators.spectral import SpectralConv2d


class _Stacked(nn.Module):
    """A layer's form for K members: same settings, weights with a first axis of length K."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, I, H, W) -> (B, K, O, H, W)."""
        return self.carry_out(x.flatten(1, 2), x.shape[1]).unflatten(1, (x.shape[1], -1))

    def carry_out(self, x: Tensor, members: int) -> Tensor:
        """(B, K * I, H, W) -> (B, K * O, H, W)."""
        raise NotImplementedError


class StackedConv2d(_Stacked):
    """One group of channels for each member; a kernel of one pixel is a matrix for each."""

    layer: Conv2d

    def forward(self, x: Tensor) -> Tensor:
        if self.layer.kernel_size != (1, 1):
            return super().forward(x)
        assert self.layer.bias is not None
        pixels = x.permute(1, 0, 3, 4, 2).flatten(1, 3)  # (K, B * H * W, I)
        mixed = torch.baddbmm(self.layer.bias[:, None], pixels, self.layer.weight.flatten(2).transpose(1, 2))
        return mixed.view(x.shape[1], x.shape[0], *x.shape[3:], -1).permute(1, 0, 4, 2, 3)

    def carry_out(self, x: Tensor, members: int) -> Tensor:
        return _grouped(x, self.layer, False, members)


class StackedConvTranspose2d(_Stacked):
    """One group of channels for each member."""

    layer: ConvTranspose2d

    def carry_out(self, x: Tensor, members: int) -> Tensor:
        return _grouped(x, self.layer, True, members)


def _grouped(x: Tensor, layer: Conv2d | ConvTranspose2d, transposed: bool, members: int) -> Tensor:
    assert layer.bias is not None
    how = layer.stride, layer.padding, layer.dilation, transposed, layer.output_padding, members
    return cast(Tensor, Convolution.apply(x, layer.weight.flatten(0, 1), layer.bias.flatten(), how))


class StackedSpectralConv2d(_Stacked):
    """The transforms take all channels alike; each member has matrices of its own."""

    layer: SpectralConv2d

    def carry_out(self, x: Tensor, members: int) -> Tensor:
        return self.layer.transformed(x, self._mix)

    def _mix(self, x: Tensor) -> Tensor:
        """(B * P, R * M, K * I * Q) -> (R * M, K * O, B * P): one (O, I) matrix product per mode and member."""
        weight = torch.view_as_real(self.layer.weight.permute(3, 4, 0, 1, 2))  # (R, M, K, O, I, Q)
        matrices = weight.flatten(4).flatten(0, 2)
        mixed = torch.bmm(matrices, x.reshape(len(x), -1, matrices.shape[-1]).permute(1, 2, 0))
        return mixed.view(x.shape[1], -1, len(x))


class StackedInstanceNorm2d(_Stacked):
    """Each channel of each member by itself."""

    layer: nn.InstanceNorm2d

    def carry_out(self, x: Tensor, members: int) -> Tensor:
        return F.instance_norm(x, eps=self.layer.eps)


STACKED: Mapping[type[nn.Module], Callable[[nn.Module], _Stacked]] = {
    Conv2d: StackedConv2d,
    ConvTranspose2d: StackedConvTranspose2d,
    SpectralConv2d: StackedSpectralConv2d,
    nn.InstanceNorm2d: StackedInstanceNorm2d,
}
AS_THEY_ARE = {
    *(Generator, ComplexHead, nn.Sequential, nn.ModuleList, GELU),
    *(blocks.PtychoBlock, blocks.StablePtychoBlock, blocks.ConvBlock),
    *(networks.FNO, networks.Hybrid, networks.CNN, networks.StableHybridGenerator),
}


class StackedGenerator(nn.Module):
    """(B, K, C, N, N) diffraction amplitudes -> (B, K, C, N, N) complex object patches, each member's by itself.

    Its parameters have the members' shapes and stand for weights with a first axis of length K, which
    ``torch.func.functional_call`` puts in their place; they come in the order of a member's parameters.

    Raises:
        InputError: a layer that has no form for several members.
    """

    def __init__(self, member: Generator) -> None:
        super().__init__()
        self.generator = copy.deepcopy(member)
        _stack_layers(self.generator)

    def forward(self, amplitude: Tensor) -> Tensor:
        members = amplitude.shape[1]
        images = self.generator.transform(amplitude).flatten(1, 2).clone(memory_format=torch.channels_last)
        images = images.unflatten(1, (members, -1))  # type: ignore[no-untyped-call]
        return cast(Tensor, self.generator.head(self.generator.network(images)))


def _stack_layers(module: nn.Module) -> None:
    if type(module) not in AS_THEY_ARE:
        allowed = ", ".join(sorted(layer.__name__ for layer in STACKED))
        raise InputError(f"ensemble: {type(module).__name__} has no form for several members; allowed: {allowed}")
    for name, child in list(module.named_children()):
        if type(child) in STACKED:
            setattr(module, name, STACKED[type(child)](child))
        else:
            _stack_layers(child)
