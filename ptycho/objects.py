"""The grid-lines test object: random line segments, blurred at three scales.

Shape legend: (H, W) the object. The recipe (line count, blurs, phase) is the one of the grid-lines
study, so that its numbers stay comparable.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

BLURS_PX = ((1.0, 1.0), (5.0, 2.0), (10.0, 5.0))  # (standard deviation in pixels, weight)


def random_lines(side_px: int, n_lines: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A (side, side) canvas of zeros with ``n_lines`` segments of value 1 between uniform random points."""
    canvas = np.zeros((side_px, side_px), dtype=np.float32)
    for r0, c0, r1, c1 in rng.integers(0, side_px, size=(n_lines, 4)):
        steps = max(abs(r1 - r0), abs(c1 - c0)) + 1  # one pixel for each step along the longer side
        rows, columns = np.rint(np.linspace((r0, c0), (r1, c1), steps)).astype(np.int64).T
        canvas[rows, columns] = 1.0
    return canvas


def lines_object(size_px: int, n_lines: int, set_phi: bool, rng: np.random.Generator) -> NDArray[np.complex64]:
    """Draw one random-lines object.

    The segments are drawn on a canvas of twice the side and the centre is cut out, so that the edges
    look like the middle. Nothing in the recipe depends on the side; where the side is small, the number
    of lines sets how densely they cover it (400 at 392 px; in proportion to the side for the same density).

    Args:
        size_px: side of the object.
        n_lines: segments on the canvas.
        set_phi: give the object a phase; without it the object is real and positive.
        rng: source of every random number.

    Returns:
        (size, size) complex64, amplitude about 0.5 to 5.
    """
    canvas = random_lines(2 * size_px, n_lines, rng)
    blurred = np.sum([weight * gaussian_filter(canvas, sigma, mode="reflect") for sigma, weight in BLURS_PX], axis=0)
    start = size_px // 2
    amplitude = blurred[start : start + size_px, start : start + size_px].astype(np.float64)
    phase = phase_of(amplitude) if set_phi else np.zeros_like(amplitude)
    return np.asarray(amplitude * np.exp(1j * phase), dtype=np.complex64)


def phase_of(amplitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """Phase in radians, pi * tanh((Y - max(Y) / 2) / (3 * mean(Y))), of an amplitude Y of any shape."""
    mean = amplitude.mean()
    if mean == 0:
        return np.zeros_like(amplitude)
    return np.asarray(np.pi * np.tanh((amplitude - amplitude.max() / 2) / (3 * mean)))
