"""How good a reconstruction is: differences from the truth, and agreement over spatial frequencies.

Shape legend: (H, W) one complex picture, R rings of spatial frequency.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from ptycho.alignment import align
from ptycho.errors import InputError

SSIM: Callable[..., Any] = structural_similarity  # scikit-image declares no types
WINDOW_PX = 7  # side of the window of structural similarity
FLAT = 1e-6  # a picture whose range is below this part of its size has no structure to be found


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A reconstruction against the truth, after alignment, borders trimmed.

    ``amp`` is the modulus, ``phase`` the angle in radians. ``ssim`` (1 is best) and ``psnr`` (in dB; inf
    without any difference) use the range of the truth and are nan where the truth is flat: there is
    nothing to find, as with the phase of an object without one. ``mae`` and ``mse`` are always defined.
    ``frc50`` is the spatial frequency, as a fraction of Nyquist, up to which the two agree. All scores
    are nan for a reconstruction that is not finite.
    """

    amp_ssim: float
    phase_ssim: float
    amp_mae: float
    phase_mae: float
    amp_mse: float
    phase_mse: float
    amp_psnr: float
    phase_psnr: float
    frc50: float


def score(reconstruction: NDArray[Any], truth: NDArray[Any], border_px: int = 0) -> Scores:
    """Score a reconstruction after alignment of phase, tilt and scale; see ``ptycho.alignment``.

    Args:
        reconstruction: (H, W) complex.
        truth: (H, W) complex, finite.
        border_px: pixels trimmed on each side first.

    Raises:
        InputError: shapes that differ, a truth that is not finite, or too little left by the border.
    """
    found, wanted = _trimmed(reconstruction, truth, border_px)
    if not np.isfinite(found).all():
        return Scores(**{field.name: math.nan for field in dataclasses.fields(Scores)})
    aligned = align(found, wanted)
    turn = _turn_to_phase_zero(wanted)
    phase = np.angle(wanted * turn)
    error = np.angle(np.exp(1j * (np.angle(aligned * turn) - phase)))  # wrapped; of a zero pixel the phase is 0
    modulus = np.abs(wanted)
    amplitude = _compare(np.abs(aligned), modulus, flat=FLAT * float(modulus.max()))
    angle = _compare(phase + error, phase, flat=FLAT)
    return Scores(
        **{f"amp_{name}": value for name, value in amplitude.items()},
        **{f"phase_{name}": value for name, value in angle.items()},
        frc50=frc50(*fourier_ring_correlation(aligned, wanted)),
    )


def _trimmed(
    reconstruction: NDArray[Any], truth: NDArray[Any], border_px: int
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    if reconstruction.shape != truth.shape or truth.ndim != 2:
        raise InputError(
            f"score: a reconstruction of shape {reconstruction.shape} and a truth of {truth.shape}; "
            "allowed: the same (height, width)"
        )
    if not np.isfinite(truth).all():
        raise InputError("score: the truth has values that are not finite")
    left = min(truth.shape) - 2 * border_px
    if border_px < 0 or left < WINDOW_PX:
        raise InputError(
            f"score: border_px {border_px} leaves {left} px of {truth.shape}; allowed: at least {WINDOW_PX}"
        )
    window = tuple(slice(border_px, side - border_px) for side in truth.shape)
    return reconstruction[window].astype(np.complex128), truth[window].astype(np.complex128)


def _turn_to_phase_zero(picture: NDArray[np.complex128]) -> complex:
    """The factor of modulus 1 that makes the sum of a picture real; 1 where the sum is zero."""
    total = complex(picture.sum())
    return total.conjugate() / abs(total) if total != 0 else 1.0


def _compare(found: NDArray[np.float64], wanted: NDArray[np.float64], flat: float) -> dict[str, float]:
    """Differences of two real pictures; no more than ``flat`` of a range in the wanted one is none."""
    mae, mse = float(np.mean(np.abs(found - wanted))), float(np.mean((found - wanted) ** 2))
    span = float(np.ptp(wanted))
    if span <= flat:
        return {"ssim": math.nan, "mae": mae, "mse": mse, "psnr": math.nan}
    ssim = float(SSIM(found, wanted, win_size=WINDOW_PX, data_range=span))
    return {"ssim": ssim, "mae": mae, "mse": mse, "psnr": 10 * math.log10(span**2 / mse) if mse > 0 else math.inf}


def fourier_ring_correlation(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Correlation of two pictures over rings of spatial frequency (van Heel 1987; Saxton and Baumeister 1982).

    The mean is taken off and a Hann window put on, since the edges of a picture do not match each other
    and would correlate. A ring in which either picture has nothing correlates with 0.

    Args:
        a, b: (H, W) real or complex.

    Returns:
        (R,) frequencies as fractions of Nyquist, up to 1, and (R,) correlations between -1 and 1.
    """
    rings = min(a.shape) // 2
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side) for side in a.shape), indexing="ij"))
    ring = np.rint(2 * rings * frequency).astype(np.int64).ravel()
    fa, fb = _spectrum(a).ravel(), _spectrum(b).ravel()
    cross, power_a, power_b = (
        np.bincount(ring, values)[1 : rings + 1] for values in ((fa * fb.conj()).real, np.abs(fa) ** 2, np.abs(fb) ** 2)
    )
    scale = np.sqrt(power_a) * np.sqrt(power_b)
    correlation = np.divide(cross, scale, out=np.zeros(rings), where=scale > 0)
    return np.arange(1, rings + 1) / rings, correlation


def _spectrum(picture: NDArray[Any]) -> NDArray[np.complex128]:
    """Windowed spectrum of a picture without its mean; zero for a flat picture."""
    structure = picture - picture.mean()
    if np.abs(structure).max() <= FLAT * np.abs(picture).max():
        return np.zeros(picture.shape, dtype=np.complex128)
    window = np.outer(*(np.hanning(side) for side in picture.shape))
    return np.fft.fft2(structure * window).astype(np.complex128)


def frc50(frequency: NDArray[np.float64], correlation: NDArray[np.float64]) -> float:
    """Frequency at which a ring correlation first falls below 0.5, linearly interpolated.

    0 where already the first ring is below, 1 (Nyquist) where none is.
    """
    below = np.flatnonzero(correlation < 0.5)
    if below.size == 0:
        return 1.0
    i = int(below[0])
    if i == 0:
        return 0.0
    part = (correlation[i - 1] - 0.5) / (correlation[i - 1] - correlation[i])
    return float(frequency[i - 1] + part * (frequency[i] - frequency[i - 1]))


def r_factor(measured: NDArray[Any], predicted: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> float:
    """Sum of |measured - predicted| amplitudes over the sum of the measured ones, any shape.

    Only pixels (N, N) of a mask count, where there is one. nan where nothing was measured, or where either
    is not finite.
    """
    if mask is not None:
        measured, predicted = measured[..., mask], predicted[..., mask]
    measured, predicted = measured.astype(np.float64), predicted.astype(np.float64)
    total = float(np.sum(measured))
    if total == 0 or not (np.isfinite(total) and np.isfinite(predicted).all()):
        return math.nan
    return float(np.sum(np.abs(measured - predicted))) / total
