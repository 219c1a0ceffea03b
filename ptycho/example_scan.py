"""A small simulated scan in a CXI file, for those who want to try the programs before their own scan."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import h5py
import numpy as np

from ptycho.errors import InputError
from ptycho.objects import lines_object
from ptycho.probe import gaussian_probe
from ptycho.scan import extract_patches, raster_scan
from ptycho.simulate import diffraction_intensity

ENERGY_J = 8.8e3 * 1.602176634e-19
WAVELENGTH_M = 1.40890e-10  # of 8.8 keV
DISTANCE_M, PIXEL_M = 1.92, 75e-6
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
    rng = np.random.default_rng(seed)
    sample = lines_object(size_px, LINES, True, rng)
    sample /= np.abs(sample) ** 0.75  # most of the contrast is phase, as in a thin sample
    positions = raster_scan(size_px - 2 * JITTER_PX, N, STEP_PX, 1)[:, 0] + JITTER_PX
    positions += rng.integers(-JITTER_PX, JITTER_PX, positions.shape, endpoint=True)
    probe = gaussian_probe(N, 0.6, 1.0)
    intensity = diffraction_intensity(extract_patches(sample, positions, N), probe)
    counts = rng.poisson(COUNTS_PER_FRAME * intensity / intensity.sum(axis=(1, 2)).mean())
    y, x = positions.T * WAVELENGTH_M * DISTANCE_M / (N * PIXEL_M)
    try:
        with h5py.File(path, "x") as file:
            file["cxi_version"] = 160
            instrument = file.create_group("entry_1/instrument_1")
            instrument["source_1/energy"] = ENERGY_J
            instrument["source_1/illumination"] = probe
            instrument["detector_1/data"] = counts.astype(np.uint32)
            instrument["detector_1/distance"] = DISTANCE_M
            instrument["detector_1/x_pixel_size"] = instrument["detector_1/y_pixel_size"] = PIXEL_M
            file["entry_1/data_1/data"] = h5py.SoftLink("/entry_1/instrument_1/detector_1/data")
            file["entry_1/sample_1/geometry_1/translation"] = np.stack([x, y, np.zeros_like(x)], axis=-1)
    except OSError as error:
        reason = "it is there already" if Path(path).exists() else os.strerror(error.errno or errno.EIO)
        raise InputError(f"{path}: {reason}; allowed: a new file in a writable folder") from None
    return Path(path)
