"""The forward model of far-field ptychography, read as the experiment.

Shape legend: B frames, C stacked neighbours, P probe modes, N pixels a side. An axis of ensemble members may
stand between B and C; each member then has a probe of its own, (K, 1, P, N, N).
"""

from __future__ import annotations

import torch
from torch import Tensor


def interaction(patches: Tensor, probe: Tensor) -> Tensor:
    """Exit waves (B, C, P, N, N): object patches (B, C, N, N) times each probe mode (P, N, N)."""
    return patches.unsqueeze(-3) * probe


def propagation(exit_waves: Tensor) -> Tensor:
    """Far-field waves (..., N, N), zero frequency at [N // 2, N // 2]; energy is conserved."""
    return torch.fft.fftshift(torch.fft.fft2(exit_waves, norm="ortho"), dim=(-2, -1))


def measurement(waves: Tensor) -> Tensor:
    """Intensities (B, C, N, N): probe modes are mutually incoherent, so their intensities add."""
    real = torch.view_as_real(waves)
    return (real * real).sum(dim=(-4, -1))


def diffract(patches: Tensor, probe: Tensor) -> Tensor:
    """Diffraction intensities (B, C, N, N) of object patches (B, C, N, N) under ``probe`` (P, N, N)."""
    return measurement(propagation(interaction(patches, probe)))
