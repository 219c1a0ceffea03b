"""The grid-lines experiment, simulated: objects, probe, scan and photons to diffraction amplitudes.

Shape legend: B frames, C = gridsize**2 channels, P probe modes, N side of a frame.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from ptycho.arrays import PtychoArrays, ScanSplits
from ptycho.config.config import DataConfig
from ptycho.errors import InputError
from ptycho.objects import lines_object
from ptycho.probe import make_probe
from ptycho.scan import extract_patches, raster_scan, split_frames

CHUNK_FRAMES = 256  # frames worked on at once, so that a scan needs little more memory than its result
LARGEST_RATE = 1e18  # photons in one pixel; NumPy draws Poisson numbers as 64-bit integers


def diffraction_intensity(patches: NDArray[Any], probe: NDArray[Any]) -> NDArray[Any]:
    """Far-field intensity of object patches under a probe, modes added incoherently.

    The transform is orthonormal, so the intensities of a frame sum to the power of the exit waves.

    Args:
        patches: (..., N, N) complex.
        probe: (P, N, N) complex.

    Returns:
        (..., N, N), zero frequency at [N // 2, N // 2].
    """
    exit_waves = patches[..., None, :, :] * probe
    far_field = fft.fft2(exit_waves, norm="ortho")
    intensity = np.sum(far_field.real**2 + far_field.imag**2, axis=-3)
    return np.fft.fftshift(intensity, axes=(-2, -1))


def simulate_grid_lines(data: DataConfig, N: int, gridsize: int, seed: int) -> ScanSplits:
    """Simulate training, validation and test frames of the grid-lines study.

    One object is scanned for training and validation, which share its frames by a random split; a second
    one for the test. The number of photons is set on the first scan and used for both.

    Args:
        data: objects, scan, probe and photons.
        N: side of a frame in pixels.
        gridsize: g; g*g neighbouring frames are stacked as channels.
        seed: zero or above; every random number derives from it.

    Raises:
        InputError: the object is too small, the probe unusable, or the photons too many.
    """
    streams = np.random.SeedSequence(seed).spawn(5)
    rng_object, rng_test_object, rng_noise, rng_test_noise, rng_split = map(np.random.default_rng, streams)
    probe = make_probe(data, N)
    seen = _scan(data, N, gridsize, probe, data.outer_offset_train, rng_object)
    unseen = _scan(data, N, gridsize, probe, data.outer_offset_test, rng_test_object)
    n_validation = max(1, round(data.validation_fraction * seen.n_frames))
    if n_validation >= seen.n_frames:
        raise InputError(
            f"object_size: {data.object_size} px gives {seen.n_frames} frames; training and validation need 2"
        )
    photons_per_intensity = data.nphotons / _mean_frame_intensity(seen)
    seen = _measure(seen, photons_per_intensity, rng_noise)
    validation, train = split_frames(seen, (n_validation,), rng_split)
    test = _measure(unseen, photons_per_intensity, rng_test_noise)
    return ScanSplits(train=train, validation=validation, test=test)


def _scan(
    data: DataConfig, N: int, gridsize: int, probe: NDArray[np.complex64], offset_px: int, rng: np.random.Generator
) -> PtychoArrays:
    """Scan one fresh object without noise."""
    obj = lines_object(data.object_size, data.n_lines, data.set_phi, rng)
    positions = raster_scan(data.object_size, N, offset_px // 2, gridsize)
    patches = extract_patches(obj, positions, N)
    amplitude = np.empty(patches.shape, dtype=np.float32)
    for start in range(0, len(patches), CHUNK_FRAMES):
        chunk = slice(start, start + CHUNK_FRAMES)
        amplitude[chunk] = np.sqrt(diffraction_intensity(patches[chunk], probe))
    return PtychoArrays(
        amplitude=amplitude,
        positions_px=positions,
        probe=probe,
        photons_per_intensity=1.0,
        object_true=obj,
        patches_true=patches,
        name="grid-lines",
    )


def _mean_frame_intensity(arrays: PtychoArrays) -> float:
    """Mean over frames and channels of the summed intensity of a frame, in model units."""
    b, c = arrays.amplitude.shape[:2]
    return float(np.einsum("bcij,bcij->", arrays.amplitude, arrays.amplitude, dtype=np.float64) / (b * c))


def _measure(arrays: PtychoArrays, photons_per_intensity: float, rng: np.random.Generator) -> PtychoArrays:
    """Replace ideal amplitudes by the roots of Poisson counts, in model units."""
    measured = np.empty_like(arrays.amplitude)
    for start in range(0, arrays.n_frames, CHUNK_FRAMES):
        chunk = slice(start, start + CHUNK_FRAMES)
        rate = arrays.amplitude[chunk].astype(np.float64) ** 2 * photons_per_intensity
        if rate.max() > LARGEST_RATE:
            raise InputError(f"nphotons: the brightest pixel would count {rate.max():.1e}; allowed: {LARGEST_RATE:.0e}")
        measured[chunk] = np.sqrt(rng.poisson(rate) / photons_per_intensity)
    return dataclasses.replace(arrays, amplitude=measured, photons_per_intensity=photons_per_intensity)
