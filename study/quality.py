"""What a trained network reconstructs, and how good it is: against the truth, or against held-out frames."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.arrays import PtychoArrays, ScanSplits
from ptycho.metrics import r_factor, score
from ptycho.reassembly import Stitched, stitch

SCORES = ("amp_ssim", "phase_ssim", "amp_mae", "phase_mae", "amp_psnr", "phase_psnr", "frc50", "r_factor")
WELL_SEEN = 0.1  # of the largest weight: canvas pixels below it saw too little light to be scored

Predict = Callable[[PtychoArrays], tuple[NDArray[np.complex64], NDArray[np.float32]]]
"""Frames -> object patches (B, C, N, N) and the amplitudes (B, C, N, N) that they predict."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Scores of a reconstruction, and the reconstruction.

    Attributes:
        scores: one number per name of ``SCORES``; NaN where it cannot be had.
        stitched: the object on its canvas; None where nothing was reconstructed.
        truth: (H, W) complex64 on the same canvas; None where it is not known.
    """

    scores: dict[str, float]
    stitched: Stitched | None = None
    truth: NDArray[np.complex64] | None = None

    @classmethod
    def unscored(cls) -> Quality:
        """Of a run that has nothing to show."""
        return cls(scores=dict.fromkeys(SCORES, math.nan))

    def save(self, path: Path) -> None:
        """Write the reconstruction as NPZ; nothing where there is none."""
        if self.stitched is None:
            return
        arrays: dict[str, Any] = {"reconstruction": self.stitched.object, "weight": self.stitched.weight}
        if self.truth is not None:
            arrays["truth"] = self.truth
        np.savez_compressed(path, **arrays)


def compute_metrics(predict: Predict, splits: ScanSplits) -> Quality:
    """Reconstruct and score: a simulation on its test object, a real scan on all its frames.

    The R-factor is that of the test frames in both cases.
    """
    test_patches, test_amplitude = predict(splits.test)
    scores = Quality.unscored().scores
    scores["r_factor"] = r_factor(splits.test.amplitude, test_amplitude, splits.test.mask)
    if splits.test.object_true is None:
        stitched = _stitch_all(predict, splits, test_patches)
        return Quality(scores=scores, stitched=stitched)
    stitched = stitch(test_patches, splits.test.positions_px, splits.test.probe)
    truth = on_canvas(splits.test.object_true, stitched)
    seen = bounding_box(stitched.weight >= WELL_SEEN * stitched.weight.max())
    found = score(stitched.object[seen], truth[seen], border_px=0)
    scores |= {name: getattr(found, name) for name in SCORES if hasattr(found, name)}
    return Quality(scores=scores, stitched=stitched, truth=truth)


def _stitch_all(predict: Predict, splits: ScanSplits, test_patches: NDArray[np.complex64]) -> Stitched:
    parts = (splits.train, splits.validation, splits.test)
    patches = [predict(splits.train)[0], predict(splits.validation)[0], test_patches]
    positions = np.concatenate([part.positions_px for part in parts])
    return stitch(np.concatenate(patches), positions, splits.train.probe)


def on_canvas(object_true: NDArray[np.complex64], stitched: Stitched) -> NDArray[np.complex64]:
    """The true object cut to a reconstruction's canvas; zero where the canvas leaves the object."""
    canvas = np.zeros_like(stitched.object)
    top, left = (round(float(v)) for v in stitched.origin_px)
    height, width = canvas.shape
    rows = slice(max(0, top), min(object_true.shape[0], top + height))
    cols = slice(max(0, left), min(object_true.shape[1], left + width))
    canvas[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left] = object_true[rows, cols]
    return canvas


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The smallest rectangle that holds every true pixel of a mask; the whole mask where there is none."""
    if not mask.any():
        return slice(None), slice(None)
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)
