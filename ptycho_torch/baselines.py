"""What a network must beat: the losses of predictions that do not look at their input.

Computed once per dataset and loss; see ``docs/protocol.md``.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from ptycho.arrays import PtychoArrays, ScanSplits
from ptycho_torch.losses import LOSSES, LossScale
from ptycho_torch.physics import diffract

PATCH_STEPS = 300
PATCH_RATE = 0.05
PATCH_PIXELS = 2**20  # of the frames that the best fixed patch is fitted to: 1024 frames of 32 px, 64 of 128 px
CHUNK_FRAMES = 256


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Baselines:
    """Validation losses of three predictions.

    Attributes:
        constant: the best constant object.
        mean_patch: the best fixed object patch, the same for every frame.
        oracle: the true object under the true probe; None where the truth is not known.
    """

    constant: float
    mean_patch: float
    oracle: float | None


def compute_baselines(splits: ScanSplits, loss_mode: str) -> Baselines:
    """The baselines of a dataset: fitted on the training frames, scored on the validation frames."""
    scale = LossScale.of(splits.train)
    probe = torch.from_numpy(splits.train.probe)
    train = torch.from_numpy(_spread_out(splits.train.amplitude))
    validation = splits.validation
    constant = best_constant(train, probe, loss_mode, scale)
    flat = torch.full(train.shape[1:], constant, dtype=torch.complex64)
    patch = best_patch(train, probe, loss_mode, scale, flat)
    oracle = None
    if validation.patches_true is not None:
        oracle = _loss(torch.from_numpy(validation.patches_true), validation, probe, loss_mode, scale)
    return Baselines(
        constant=_loss(flat[None], validation, probe, loss_mode, scale),
        mean_patch=_loss(patch[None], validation, probe, loss_mode, scale),
        oracle=oracle,
    )


def _spread_out(amplitude: NDArray[np.float32]) -> NDArray[np.float32]:
    """Frames (B, C, N, N) taken at equal distances, so many that a fit to them stays affordable."""
    kept = max(1, PATCH_PIXELS // amplitude[0].size)
    return np.ascontiguousarray(amplitude[:: max(1, -(-len(amplitude) // kept))])


def best_constant(train: Tensor, probe: Tensor, loss_mode: str, scale: LossScale) -> float:
    """The real constant object amplitude with the least mean loss on frames (B, C, N, N)."""
    empty = diffract(torch.ones(1, *train.shape[1:], dtype=torch.complex64), probe)

    def mean_loss(log_amplitude: float) -> float:
        return float(LOSSES[loss_mode](empty * math.exp(2 * log_amplitude), train, scale).mean())

    seen = empty if scale.mask is None else empty * scale.mask
    start = 0.5 * math.log(float((train**2).mean() / seen.mean()))
    found = minimize_scalar(mean_loss, bounds=(start - 3, start + 3), method="bounded", options={"xatol": 1e-5})
    return math.exp(float(found.x))


def best_patch(train: Tensor, probe: Tensor, loss_mode: str, scale: LossScale, start: Tensor) -> Tensor:
    """The object patch (C, N, N) with the least mean loss over frames (B, C, N, N), by Adam from ``start``."""
    if loss_mode == "poisson":  # its slope depends on the frames through their mean intensity alone
        train = (train**2).mean(0, keepdim=True).sqrt()
    patch = torch.view_as_real(start).clone().requires_grad_()
    optimizer = torch.optim.Adam([patch], lr=PATCH_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, PATCH_STEPS)
    best, least = start, math.inf
    for _ in range(PATCH_STEPS):
        complex_patch = torch.view_as_complex(patch)
        intensity = diffract(complex_patch[None], probe)
        loss = LOSSES[loss_mode](intensity, train, scale).mean()
        if loss.item() < least:
            best, least = complex_patch.detach().clone(), loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return best


def _loss(patches: Tensor, arrays: PtychoArrays, probe: Tensor, loss_mode: str, scale: LossScale) -> float:
    """Mean loss of predicted patches (B or 1, C, N, N) on the frames of ``arrays``, in chunks."""
    total = 0.0
    with torch.no_grad():
        for start in range(0, arrays.n_frames, CHUNK_FRAMES):
            measured = torch.from_numpy(np.ascontiguousarray(arrays.amplitude[start : start + CHUNK_FRAMES]))
            chunk = patches if len(patches) == 1 else patches[start : start + CHUNK_FRAMES]
            intensity = diffract(chunk, probe).expand_as(measured)
            total += float(LOSSES[loss_mode](intensity, measured, scale).sum())
    return total / arrays.n_frames
