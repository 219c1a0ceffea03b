"""The illumination: ideal disk, defocused Gaussian, or from a file; its units.

Shape legend: P probe modes, N side of a frame in pixels. Modes add incoherently: the power of a probe
is the sum over all modes and pixels of |probe|**2.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import DataConfig
from ptycho.errors import InputError
from ptycho.npz import check_numbers, read_npz, require

NORMALISATION = 10.0  # the grid-lines study divides its probe by 10 * mean|mask * probe|


def radius_px(N: int) -> NDArray[np.float64]:
    """(N, N) distance in pixels from the centre [N // 2, N // 2]."""
    axis = np.arange(N) - N // 2
    return np.hypot(axis[:, None], axis[None, :])


def disk_probe(N: int, diameter: float) -> NDArray[np.complex64]:
    """(1, N, N) ideal disk of amplitude 1; its diameter is a fraction of the frame."""
    return (radius_px(N) <= diameter * N / 2).astype(np.complex64)[None]


def gaussian_probe(N: int, diameter: float, defocus_rad: float) -> NDArray[np.complex64]:
    """(1, N, N) Gaussian beam with the quadratic phase of a defocused lens.

    Args:
        N: side of the frame.
        diameter: where the intensity has fallen to 1/e**2, as a fraction of the frame (the usual 2 w).
        defocus_rad: phase at that diameter, against the centre.
    """
    relative = (radius_px(N) / (diameter * N / 2)) ** 2
    return np.exp(-relative + 1j * defocus_rad * relative).astype(np.complex64)[None]


def load_probe(path: str | Path, N: int) -> NDArray[np.complex64]:
    """Read ``probeGuess``, (N, N) or (P, N, N), from an NPZ file.

    Raises:
        InputError: file missing or damaged, key missing, wrong size, not finite, or without power.
    """
    arrays = read_npz(path, ["probeGuess"])
    require(path, arrays, ["probeGuess"])
    return as_modes(path, "probeGuess", arrays["probeGuess"], N)


def as_modes(path: str | Path, key: str, probe: NDArray[np.generic], N: int) -> NDArray[np.complex64]:
    """Bring a probe of shape (..., N, N) to (P, N, N) complex64, checked.

    Raises:
        InputError: wrong size, not finite, or without power.
    """
    if probe.ndim < 2 or probe.shape[-2:] != (N, N):
        raise InputError(
            f"{path}: {key} has shape {probe.shape}; frames of {N} px need ({N}, {N}) or (modes, {N}, {N})"
        )
    check_numbers(path, key, probe)
    modes = probe.reshape(-1, N, N).astype(np.complex64)
    if probe_power(modes) == 0:
        raise InputError(f"{path}: {key} is zero everywhere")
    return modes


def probe_power(probe: NDArray[np.complexfloating]) -> float:
    """Sum of |probe|**2 over modes and pixels."""
    return float(np.sum(np.abs(probe.astype(np.complex128)) ** 2))


def normalise_probe(probe: NDArray[np.complex64]) -> tuple[NDArray[np.complex64], float]:
    """Divide a probe by its unit, 10 * mean|mask * probe|: that makes the model's units.

    The mask is the disk of half the frame; of several modes the root of the summed intensity is taken.

    Returns:
        the (P, N, N) probe in model units, and the unit it was divided by.

    Raises:
        InputError: the probe has no power inside the mask.
    """
    N = probe.shape[-1]
    mask = disk_probe(N, 0.5)[0].real
    amplitude = np.sqrt(np.sum(np.abs(probe.astype(np.complex128)) ** 2, axis=0))
    unit = NORMALISATION * float(np.mean(mask * amplitude))
    if unit == 0:
        raise InputError(f"probe: no power within {N // 4} px of the centre of its {N} px frame")
    return (probe / unit).astype(np.complex64), unit


def match_power(
    probe: NDArray[np.complex64], mean_counts: float, mask: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.complex64], float]:
    """Rescale a probe so that it brings the mean number of counts of a frame to the detector.

    An object of modulus 1 then gives frames as bright as the measured ones.

    Args:
        probe: (P, N, N).
        mean_counts: of a frame, over its good pixels.
        mask: (N, N) good pixels; what the probe sends to others is not counted.

    Returns:
        the rescaled probe, and the factor on its power (the amplitude takes the factor's root).

    Raises:
        InputError: all of the probe's light falls on masked pixels.
    """
    power = probe_power(probe)
    if mask is not None:
        far_field = np.fft.fftshift(np.fft.fft2(probe.astype(np.complex128), norm="ortho"), axes=(-2, -1))
        power = float(np.sum(np.abs(far_field[:, mask]) ** 2))
    if power == 0:
        raise InputError("mask: it hides all pixels to which the probe sends light")
    factor = mean_counts / power
    return (probe * np.sqrt(factor)).astype(np.complex64), factor


def make_probe(data: DataConfig, N: int) -> NDArray[np.complex64]:
    """The simulated probe that the settings ask for, (P, N, N) in model units.

    Raises:
        InputError: a defocus for another probe than the Gaussian, or a file that cannot be used.
    """
    if data.probe != "gaussian" and data.probe_defocus != 0:
        raise InputError(f"probe_defocus: {data.probe_defocus} has no effect on probe {data.probe!r}; allowed: 0")
    if data.probe == "gaussian":
        found = gaussian_probe(N, data.probe_diameter, data.probe_defocus)
    elif data.probe == "disk":
        found = disk_probe(N, data.probe_diameter)
    elif Path(data.probe).is_file():
        found = load_probe(data.probe, N)
    else:
        raise InputError(f"probe: {data.probe!r} is no file; allowed: disk, gaussian, or an NPZ file with probeGuess")
    return normalise_probe(found)[0]
