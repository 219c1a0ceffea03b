"""Spectral convolution: a linear map of a few low spatial frequencies (Li et al. 2021, eq. 5).

Shape legend: B batch, I and O channels, (H, W) pixels, R = 2 * m1 kept rows (vertical frequencies
0 .. m1-1 and -m1 .. -1), M = m2 kept columns (horizontal frequencies 0 .. m2-1).
"""

from __future__ import annotations

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
        self.weight = nn.Parameter(torch.view_as_complex(weight))

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) real -> (B, O, H, W) real."""
        height, width = x.shape[-2:]
        if (height, width) != (self.size, self.size):
            raise ValueError(f"this layer was built for images of {self.size} px, got {height} x {width}")
        with torch.autocast(x.device.type, enabled=False):  # there is no half-precision FFT off powers of two
            y = self._mix(self._low_frequencies(x.float()))
            return self._image(y).to(x.dtype)

    def _low_frequencies(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, I, R, M): the short axis first, so that the second transform is small."""
        columns = torch.fft.fft(torch.fft.rfft(x, dim=-1)[..., : self.m2], dim=-2)
        return torch.cat((columns[..., : self.m1, :], columns[..., -self.m1 :, :]), dim=-2)

    def _mix(self, x: Tensor) -> Tensor:
        """(B, I, R, M) -> (B, O, R, M): one (I, O) matrix product per mode."""
        batch, _, rows, cols = x.shape
        per_mode = x.flatten(2).permute(2, 0, 1)  # (R*M, B, I)
        weight = self.weight.flatten(2).permute(2, 1, 0)  # (R*M, I, O)
        return torch.bmm(per_mode, weight).permute(1, 2, 0).reshape(batch, -1, rows, cols)

    def _image(self, y: Tensor) -> Tensor:
        """(B, O, R, M) -> (B, O, H, W)."""
        gap = y.new_zeros(*y.shape[:2], self.size - 2 * self.m1, self.m2)
        rows = torch.cat((y[..., : self.m1, :], gap, y[..., self.m1 :, :]), dim=-2)
        return torch.fft.irfft(torch.fft.ifft(rows, dim=-2), n=self.size, dim=-1)
