"""Spectral convolution: a linear map of a few low spatial frequencies (Li et al. 2021, eq. 5).

So few frequencies are kept that a matrix product finds them sooner than a fast transform of the
whole image. Matrix products are fastest in real numbers; so an axis P (Q for the weights) of length
2 holds real and imaginary part, and the number at place p of it carries a factor i**p.

Shape legend: B batch, I and O channels, (H, W) pixels, R = 2 * m1 kept rows (vertical frequencies
0 .. m1-1 and -m1 .. -1), M = m2 kept columns (horizontal frequencies 0 .. m2-1).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class SpectralConv2d(nn.Module):
    """Multiply the low frequencies of an image by learnt complex matrices.

    Only modes that the resolution can reach are allocated: a weight that can never receive a
    gradient would still count in the weight norm that adaptive clipping compares with. For the same
    reason the imaginary part is zero, and stays so, at frequencies that are their own opposite.

    Args:
        in_channels: I.
        out_channels: O.
        modes: frequencies to keep each way; cut to H // 2 rows each side and W // 2 columns.
        size: H = W of the images this layer sees, in pixels.

    Attributes:
        weight: (O, I, R, M) complex; in memory I lies innermost, as the matrix products read it.
    """

    unit_axis = 0  # of ``weight``: one unit of unit-wise clipping is one output channel

    def __init__(self, in_channels: int, out_channels: int, modes: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.m1 = min(modes, size // 2)
        self.m2 = min(modes, size // 2)
        scale = 1.0 / (in_channels * out_channels)  # Li et al.'s published code
        weight = scale * torch.rand(out_channels, in_channels, 2 * self.m1, self.m2, 2)
        own_opposites = [0] if 2 * self.m1 < size else [0, self.m1]  # rows of frequencies 0 and -size / 2
        weight[:, :, own_opposites, 0, 1] = 0.0  # a real image has no imaginary part there
        by_unit = torch.view_as_complex(weight).permute(0, 2, 3, 1).contiguous()
        self.weight = nn.Parameter(by_unit.permute(0, 3, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) real -> (B, O, H, W) real, both channels-last in memory."""
        return self.transformed(x, self._mix)

    def transformed(self, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
        """An image with its low frequencies mixed: ``mix`` takes (B * P, R * M, I * Q) to (R * M, O, B * P)."""
        height, width = x.shape[-2:]
        if (height, width) != (self.size, self.size):
            raise ValueError(f"this layer was built for images of {self.size} px, got {height} x {width}")
        real = self.weight.dtype.to_real()
        with torch.autocast(x.device.type, enabled=False):
            matrices = fourier_matrices(self.size, self.m1, self.m2, real, x.device)
            y = self._image(mix(self._low_frequencies(x.to(real), matrices)), matrices)
        return y.to(x.dtype)

    def _low_frequencies(self, x: Tensor, matrices: FourierMatrices) -> Tensor:
        """(B, I, H, W) -> (B * P, R * M, I * Q): along the rows, then along the columns."""
        batch, channels = x.shape[:2]
        pixels = x.permute(0, 2, 3, 1).reshape(-1, self.size, channels)
        columns = matrices.columns @ pixels  # (B * H, P * M, I)
        modes = matrices.rows @ columns.view(batch, 2 * self.size, -1)  # (B, P * Q * R, M * I)
        return modes.view(2 * batch, 2, -1, channels).permute(0, 2, 3, 1).flatten(2)

    def _mix(self, x: Tensor) -> Tensor:
        """(B * P, R * M, I * Q) -> (R * M, O, B * P): one (O, I) matrix product per mode."""
        weight = torch.view_as_real(self.weight.permute(2, 3, 0, 1))  # (R, M, O, I, Q)
        return torch.bmm(weight.flatten(3).flatten(0, 1), x.permute(1, 2, 0))

    def _image(self, y: Tensor, matrices: FourierMatrices) -> Tensor:
        """(R * M, O, B * P) -> (B, O, H, W)."""
        channels = y.shape[1]
        modes = y.flatten(0, 1).T.reshape(-1, 4 * self.m1, self.m2 * channels)  # (B, P * R, M * O)
        columns = matrices.rows_back @ modes  # (B, H * P, M * O)
        pixels = matrices.columns_back @ columns.view(-1, 2 * self.m2, channels)  # (B * H, W, O)
        return pixels.view(-1, self.size, self.size, channels).permute(0, 3, 1, 2)


class FourierMatrices(NamedTuple):
    """The truncated transform of an image and its inverse as products of real matrices.

    Attributes:
        columns: (P * M, W), pixels of a row to horizontal frequencies.
        rows: (P * Q * R, H * P), those of every row to both frequencies, times i**q.
        rows_back: (H * P, P * R), the inverse of ``rows``.
        columns_back: (W, P * M), the inverse of ``columns``, for a real image.
    """

    columns: Tensor
    rows: Tensor
    rows_back: Tensor
    columns_back: Tensor


@functools.cache
@torch.inference_mode(False)  # the first to ask may be a validation, the next a training that keeps them for backward
def fourier_matrices(size: int, m1: int, m2: int, dtype: torch.dtype, device: torch.device) -> FourierMatrices:
    """The matrices for images of ``size`` pixels a side, made in float64."""
    vertical = torch.cat((torch.arange(m1), torch.arange(-m1, 0)))
    horizontal = torch.arange(m2)
    down, across = waves(vertical, size), waves(horizontal, size)
    units = torch.tensor((1, 1j), dtype=torch.complex128)
    times = horizontal.sign() + 1  # a horizontal frequency above 0 stands for its opposite too
    rows = units[:, None, None, None] * down[:, :, None] * units  # (Q, R, H, P)
    rows_back = down.conj().T[:, None, :] * units[:, None] / size  # (H, P, R)
    columns_back = across.conj().T[:, None, :] * units[:, None] * times / size  # (W, P, M)
    matrices = (
        torch.stack((across.real, across.imag)).flatten(0, 1),
        torch.stack((rows.real, rows.imag)).flatten(3).flatten(0, 2),
        torch.stack((rows_back.real, rows_back.imag), dim=1).flatten(2).flatten(0, 1),
        columns_back.real.flatten(1),
    )
    return FourierMatrices(*(matrix.to(device, dtype) for matrix in matrices))


def waves(frequencies: Tensor, size: int) -> Tensor:
    """(frequencies, pixels) complex128 exp(-2 pi i k x / size), exact at quarters of a turn."""
    turns = (frequencies[:, None] * torch.arange(size) % size).double() / size
    angle = -2 * math.pi * turns
    return torch.complex(angle.cos().round(decimals=15), angle.sin().round(decimals=15))
