"""What diffraction cannot tell is taken out before two pictures are compared: phase, tilt, scale.

Shape legend: (H, W) one complex picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.complex128]


def phase_tilt(shape: tuple[int, ...], slope: NDArray[np.float64]) -> Picture:
    """(H, W) of modulus 1 whose phase rises by ``slope`` (row, column), in radians per pixel, from the centre."""
    rows = np.arange(shape[0])[:, None] - (shape[0] - 1) / 2
    columns = np.arange(shape[1])[None, :] - (shape[1] - 1) / 2
    return np.asarray(np.exp(1j * (slope[0] * rows + slope[1] * columns)))


def fit_tilt(product: Picture) -> NDArray[np.float64]:
    """Slope (row, column) in radians per pixel of the phase of a picture, weighted by its modulus.

    A first guess is the mean phase step between neighbours, which knows no wrapping. What is left is
    small, and a weighted straight-line fit to its phase follows. Of no tilt, the guess and the fit, the
    slope is returned after whose removal the picture adds up to the most.
    """
    steps = [np.vdot(product[:-1], product[1:]), np.vdot(product[:, :-1], product[:, 1:])]
    guess = np.asarray(np.angle(steps), dtype=np.float64)
    level = product * phase_tilt(product.shape, -guess)
    rest = np.asarray(level * np.exp(-1j * np.angle(level.sum())))
    fit = guess + _straight_line(np.angle(rest), np.abs(rest))
    candidates = [np.zeros(2), guess, fit]
    return max(candidates, key=lambda slope: abs(np.sum(product * phase_tilt(product.shape, -slope))))


def _straight_line(phase: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slopes (row, column) of the weighted least-squares plane through a phase picture."""
    rows, columns = np.indices(phase.shape)
    plane = np.stack([rows.ravel(), columns.ravel(), np.ones(phase.size)], axis=1)
    root = np.sqrt(weight.ravel())
    return np.asarray(np.linalg.lstsq(plane * root[:, None], phase.ravel() * root, rcond=None)[0][:2])


def align(reconstruction: NDArray[Any], truth: NDArray[Any]) -> Picture:
    """Bring a reconstruction as near to the truth as one tilt, one phase and one scale can.

    With the tilt removed, the best complex factor in the least-squares sense is <r, t> / <r, r>. A
    reconstruction that is zero everywhere stays zero.
    """
    found, wanted = reconstruction.astype(np.complex128), truth.astype(np.complex128)
    found = found * phase_tilt(found.shape, fit_tilt(wanted * found.conj()))
    power = np.vdot(found, found).real
    return found * (np.vdot(found, wanted) / power) if power > 0 else found
