"""A small simulated scan in a CXI file, for those who want to try the programs before their own scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ptycho.arrays import PtychoArrays
from ptycho.errors import InputError
from ptycho.export import write_cxi
from ptycho.objects import lines_object
from ptycho.probe import gaussian_probe
from ptycho.scan import extract_patches, raster_scan
from ptycho.simulate import diffraction_intensity

N, STEP_PX, JITTER_PX, LINES = 32, 4, 1, 60
COUNTS_PER_FRAME = 1e6


def write_example_scan(path: str | Path, size_px: int = 96, seed: int = 1) -> Path:
    """Simulate a jittered raster over an object of lines, 32 px a frame, and write it as a beamline would.

    Args:
        path: the CXI file to write.
        size_px: side of the object; 96 px give 256 frames.
        seed: of every random number.

    Raises:
        InputError: the file is there already, or cannot be written; the object is too small.
    """
    if Path(path).exists():
        raise InputError(f"{path}: it is there already; allowed: a new file")
    rng = np.random.default_rng(seed)
    sample = lines_object(size_px, LINES, True, rng)
    sample /= np.abs(sample) ** 0.75  # most of the contrast is phase, as in a thin sample
    positions = raster_scan(size_px - 2 * JITTER_PX, N, STEP_PX, 1) + JITTER_PX
    positions += rng.integers(-JITTER_PX, JITTER_PX, positions.shape, endpoint=True)
    probe = gaussian_probe(N, 0.6, 1.0)
    intensity = diffraction_intensity(extract_patches(sample, positions, N), probe)
    photons = COUNTS_PER_FRAME / intensity.sum(axis=(-2, -1)).mean()
    amplitude = np.sqrt(rng.poisson(photons * intensity) / photons).astype(np.float32)
    scan = PtychoArrays(
        amplitude=amplitude, positions_px=positions, probe=probe, photons_per_intensity=float(photons), name="example"
    )
    write_cxi(path, scan, energy_kev=8.8, distance_m=1.92, pixel_size_um=75)
    return Path(path)
