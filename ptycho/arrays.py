"""One scan, held as arrays: the type every reader and the simulation hand on.

Shape legend: B frames, C = gridsize**2 neighbouring frames stacked as channels, P probe modes,
N side of a frame in pixels, (H, W) the object.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import InputError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PtychoArrays:
    """Diffraction patterns of one scan with everything needed to model them.

    Attributes:
        amplitude: (B, C, N, N) float32, square root of the measured intensity in model units,
            zero frequency at [N // 2, N // 2]. ``amplitude**2 * photons_per_intensity`` are counts.
        positions_px: (B, C, 2) float32, (row, column) of the probe's centre in object pixels.
            In a simulation the origin is the object's [0, 0]; in a real scan it is arbitrary.
        probe: (P, N, N) complex64 in model units; modes add incoherently.
        photons_per_intensity: photons for one unit of model intensity.
        object_true: (H, W) complex64, or None where the truth is not known.
        patches_true: (B, C, N, N) complex64, the object under each frame, or None.
        probe_scale: factor that brought the power of the probe as found to the counts (1 if simulated).
        faulty: (B,) bool, frames that carry a fault that was put in.
        mask: (N, N) bool, True where the detector can be believed; None where it can everywhere. Other pixels
            have amplitude 0, and no loss, baseline, score or scale looks at them.
        name: what the arrays are, in a few words.
        about: what a real scan's file and settings said, for the record.
    """

    amplitude: NDArray[np.float32]
    positions_px: NDArray[np.float32]
    probe: NDArray[np.complex64]
    photons_per_intensity: float
    object_true: NDArray[np.complex64] | None = None
    patches_true: NDArray[np.complex64] | None = None
    probe_scale: float = 1.0
    faulty: NDArray[np.bool_] | None = None
    mask: NDArray[np.bool_] | None = None
    name: str = ""
    about: Mapping[str, str | float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        b, c, n, n2 = self.amplitude.shape if self.amplitude.ndim == 4 else (0, 0, 0, -1)
        if n != n2:
            raise InputError(
                f"{self.name}: amplitude has shape {self.amplitude.shape}; allowed: (frames, channels, N, N)"
            )
        if self.positions_px.shape != (b, c, 2):
            raise InputError(
                f"{self.name}: positions have shape {self.positions_px.shape}; {b} frames of {c} need {(b, c, 2)}"
            )
        if self.probe.ndim != 3 or self.probe.shape[1:] != (n, n):
            raise InputError(
                f"{self.name}: probe has shape {self.probe.shape}; frames of {n} px need (modes, {n}, {n})"
            )
        if self.mask is not None:
            self._hide(self.mask)

    def _hide(self, mask: NDArray[np.bool_]) -> None:
        """Set masked pixels to zero, in a copy where they are anything else."""
        n = self.frame_size_px
        if mask.shape != (n, n) or mask.dtype != np.bool_ or not mask.any():
            raise InputError(
                f"{self.name}: mask has shape {mask.shape}, type {mask.dtype} and {np.count_nonzero(mask)} "
                f"good pixels; frames of {n} px need ({n}, {n}) bool with some"
            )
        if self.amplitude[..., ~mask].any():
            object.__setattr__(self, "amplitude", np.where(mask, self.amplitude, np.float32(0)))

    @property
    def n_frames(self) -> int:
        """B."""
        return int(self.amplitude.shape[0])

    @property
    def frame_size_px(self) -> int:
        """N."""
        return int(self.amplitude.shape[-1])

    def counts(self) -> NDArray[np.float32]:
        """(B, C, N, N) photon counts."""
        return (self.amplitude**2 * np.float32(self.photons_per_intensity)).astype(np.float32)

    def take(self, index: NDArray[np.int64]) -> PtychoArrays:
        """The frames at ``index``, in that order."""
        return dataclasses.replace(
            self,
            amplitude=self.amplitude[index],
            positions_px=self.positions_px[index],
            patches_true=None if self.patches_true is None else self.patches_true[index],
            faulty=None if self.faulty is None else self.faulty[index],
        )

    def digest(self) -> str:
        """Hash of the measured numbers: the first 32 hexadecimal digits of a SHA-256."""
        sha = hashlib.sha256()
        masks = () if self.mask is None else (self.mask,)
        for array in (self.amplitude, self.positions_px, self.probe, *masks):
            sha.update(str((array.dtype, array.shape)).encode())
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()[:32]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScanSplits:
    """Training, validation and test frames. Validation frames steer; test frames are only scored."""

    train: PtychoArrays
    validation: PtychoArrays
    test: PtychoArrays
