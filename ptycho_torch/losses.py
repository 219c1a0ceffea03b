"""The losses, each divided by what the training set measures on average, so that scans compare.

Both take intensities (B, C, N, N) in model units and return one value per frame, (B,). Masked pixels of the
detector count in neither a loss nor its scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ptycho.arrays import PtychoArrays

TINY_INTENSITY = 1e-12  # keeps the slope of the square root finite at zero intensity
BACKGROUND_PHOTONS = 0.1  # a rate of exactly zero would make one stray photon impossible


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LossScale:
    """What the training frames measure on average, of one training or of the K members of an ensemble.

    Attributes:
        amplitude: mean amplitude per pixel, model units.
        intensity: mean intensity per pixel, model units.
        photons_per_intensity: photons for one unit of model intensity.
        mask: (N, N) bool, True where the detector can be believed; None where it can everywhere.
    """

    amplitude: float | Tensor
    intensity: float | Tensor
    photons_per_intensity: float | Tensor
    mask: Tensor | None = None

    @classmethod
    def of(cls, train: PtychoArrays) -> LossScale:
        """The scale of a training set."""
        seen = train.amplitude if train.mask is None else train.amplitude[..., train.mask]
        amplitude = seen.astype(np.float64)
        return cls(
            amplitude=float(amplitude.mean()),
            intensity=float((amplitude**2).mean()),
            photons_per_intensity=train.photons_per_intensity,
            mask=None if train.mask is None else torch.from_numpy(train.mask),
        )

    @classmethod
    def stack(cls, scales: Sequence[LossScale]) -> LossScale:
        """The scales of K members, for losses of (B, K, C, N, N)."""
        masks = [scale.mask for scale in scales if scale.mask is not None]
        return cls(
            amplitude=torch.tensor([scale.amplitude for scale in scales]),
            intensity=torch.tensor([scale.intensity for scale in scales]),
            photons_per_intensity=torch.tensor([scale.photons_per_intensity for scale in scales])[:, None, None, None],
            mask=torch.stack(masks)[:, None] if masks else None,
        )

    def frame_means(self, pixels: Tensor) -> Tensor:
        """(B,) means of (B, C, N, N) over the pixels that can be believed; no gradient reaches the others."""
        if self.mask is None:
            return pixels.mean(dim=(-3, -2, -1))
        mask = self.mask.to(pixels.device).expand(pixels.shape[1:])
        return pixels.where(mask, 0).sum(dim=(-3, -2, -1)) / mask.sum(dim=(-3, -2, -1))


def mae(predicted: Tensor, measured_amplitude: Tensor, scale: LossScale) -> Tensor:
    """Mean absolute error of amplitudes over their mean, per frame."""
    amplitude = torch.sqrt(predicted + TINY_INTENSITY)
    return scale.frame_means((amplitude - measured_amplitude).abs()) / scale.amplitude


def poisson(predicted: Tensor, measured_amplitude: Tensor, scale: LossScale) -> Tensor:
    """Poisson deviance per photon (half of it), per frame: zero where the rate equals the counts.

    rate - counts + counts * log(counts / rate), the negative log-likelihood less its smallest
    value (Thibault & Guizar-Sicairos 2012, eq. 5), with a small background added to both.
    """
    background = BACKGROUND_PHOTONS / scale.photons_per_intensity
    rate = predicted + background
    counts = measured_amplitude * measured_amplitude + background
    deviance = rate - counts + counts * torch.log(counts / rate)
    return scale.frame_means(deviance) / scale.intensity


LOSSES: Mapping[str, Callable[[Tensor, Tensor, LossScale], Tensor]] = {"mae": mae, "poisson": poisson}
