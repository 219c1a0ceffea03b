"""Object patches put together: from what is seen under each frame to one picture of the object.

Shape legend: B frames, C channels, P probe modes, N side of a frame, (H, W) the canvas.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import InputError
from ptycho.scan import corners_px


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stitched:
    """One picture.

    Attributes:
        object: (H, W) complex64, zero where no light fell.
        weight: (H, W) float32, the illumination summed over all frames.
        origin_px: (2,) where the canvas' pixel [0, 0] lies in the coordinates of the positions.
    """

    object: NDArray[np.complex64]
    weight: NDArray[np.float32]
    origin_px: NDArray[np.float64]


def stitch(patches: NDArray[Any], positions_px: NDArray[Any], probe: NDArray[Any]) -> Stitched:
    """Average overlapping patches, each pixel weighted by the probe's intensity there.

    Positions are rounded to whole pixels (halves up): half a pixel of blur at most. The canvas is the
    smallest that holds every frame.

    Args:
        patches: (B, C, N, N) complex.
        positions_px: (B, C, 2), (row, column) of the probe's centre.
        probe: (P, N, N) complex.

    Raises:
        InputError: the shapes do not go together.
    """
    N = patches.shape[-1]
    if patches.ndim != 4 or positions_px.shape != (*patches.shape[:2], 2) or probe.shape[-2:] != patches.shape[-2:]:
        raise InputError(
            f"stitch: patches {patches.shape}, positions {positions_px.shape} and probe {probe.shape} "
            "do not go together; allowed: (B, C, N, N), (B, C, 2), (P, N, N)"
        )
    intensity = np.sum(np.abs(probe.astype(np.complex128)) ** 2, axis=0)
    corners = corners_px(positions_px, N).reshape(-1, 2)
    origin = corners.min(axis=0)
    height, width = corners.max(axis=0) - origin + N
    total = np.zeros((height, width), dtype=np.complex128)
    weight = np.zeros((height, width))
    for patch, (row, column) in zip(patches.reshape(-1, N, N), corners - origin, strict=True):
        window = slice(row, row + N), slice(column, column + N)
        total[window] += intensity * patch
        weight[window] += intensity
    picture = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    return Stitched(
        object=picture.astype(np.complex64), weight=weight.astype(np.float32), origin_px=origin.astype(np.float64)
    )


def align_patch_phases(
    patches: NDArray[np.complex64], positions_px: NDArray[Any], probe: NDArray[Any]
) -> NDArray[np.complex64]:
    """Turn each patch by one phase so that it agrees with the patches before it where they overlap.

    A diffraction pattern does not fix the global phase of its patch. The patches are taken in the order
    given, each compared with the sum of those before it, weighted by the probe's intensity; a patch
    without overlap is left as it is.

    Returns:
        (B, C, N, N) complex64.
    """
    N = patches.shape[-1]
    intensity = np.sum(np.abs(probe.astype(np.complex128)) ** 2, axis=0)
    corners = corners_px(positions_px, N).reshape(-1, 2)
    corners -= corners.min(axis=0)
    canvas = np.zeros(corners.max(axis=0) + N, dtype=np.complex128)
    aligned = np.empty((len(corners), N, N), dtype=np.complex64)
    for i, (patch, (row, column)) in enumerate(zip(patches.reshape(-1, N, N), corners, strict=True)):
        window = slice(row, row + N), slice(column, column + N)
        agreement = np.vdot(patch, intensity * canvas[window])
        turned = patch * (agreement / abs(agreement) if abs(agreement) > 0 else 1.0)
        canvas[window] += intensity * turned
        aligned[i] = turned
    return aligned.reshape(patches.shape)
