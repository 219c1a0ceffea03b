"""Scans to files that other programs read."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho.arrays import PtychoArrays
from ptycho.errors import InputError
from ptycho.readers.geometry import KEV_J, wavelength_m

CXI_VERSION = 160
BAD_PIXEL = 1  # the bit of a pixel that cannot be believed
DETECTOR, SOURCE = "entry_1/instrument_1/detector_1", "entry_1/instrument_1/source_1"
WHOLE = 1e-3  # counts that all lie so close to whole numbers, float32's own error apart, are whole numbers


def write_cxi(
    path: str | Path,
    scan: PtychoArrays,
    *,
    energy_kev: float | None = None,
    distance_m: float | None = None,
    pixel_size_um: float | None = None,
) -> None:
    """Write a scan as CXI 1.6: counts, positions in metres, the detector's geometry and mask, the probe.

    Reading it gives the scan again, to float32's precision. Axes are those of :mod:`ptycho.readers.cxi`.

    Args:
        path: the file; one that is there is replaced, when the new one is whole.
        scan: of one channel, as ``read_scan`` returns it for ``gridsize`` 1; its zero frequency is in the centre.
        energy_kev, distance_m, pixel_size_um: of the photons, from sample to detector, and side of a pixel of these
            frames; by default as the scan's own file said.

    Raises:
        InputError: several channels, or a geometry that neither the arguments nor the scan know; a folder that cannot
            be written.
    """
    if scan.amplitude.shape[1] != 1:
        raise InputError(f"{scan.name}: frames have {scan.amplitude.shape[1]} channels; allowed: 1 (gridsize 1)")
    own_pixel = scan.about.get("pixel_size_um")
    binned = None if own_pixel is None else float(own_pixel) * float(scan.about.get("bin_px", 1))
    energy = _known(scan, "energy_kev", energy_kev, scan.about.get("energy_kev"))
    distance = _known(scan, "distance_m", distance_m, scan.about.get("distance_m"))
    pixel = _known(scan, "pixel_size_um", pixel_size_um, binned) * 1e-6
    object_pixel = wavelength_m(energy * KEV_J) * distance / (scan.frame_size_px * pixel)
    rows, columns = scan.positions_px[:, 0].astype(np.float64).T * object_pixel
    good = np.ones(scan.amplitude.shape[2:], bool) if scan.mask is None else scan.mask
    content = {
        "cxi_version": CXI_VERSION,
        "entry_1/sample_1/geometry_1/translation": np.stack([columns, rows, np.zeros_like(rows)], axis=-1),
        f"{DETECTOR}/distance": distance,
        f"{DETECTOR}/x_pixel_size": pixel,
        f"{DETECTOR}/y_pixel_size": pixel,
        f"{DETECTOR}/mask": np.where(good, 0, BAD_PIXEL).astype(np.uint32),
        f"{SOURCE}/energy": energy * KEV_J,
        f"{SOURCE}/illumination": scan.probe * np.float32(np.sqrt(scan.photons_per_intensity)),
    }
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            for name, value in content.items():
                file[name] = value
            file.create_dataset(
                f"{DETECTOR}/data", data=whole_counts(scan), chunks=(1, *good.shape), compression="gzip"
            )
            file["entry_1/data_1/data"] = h5py.SoftLink(f"/{DETECTOR}/data")
            file["entry_1/data_1/translation"] = h5py.SoftLink("/entry_1/sample_1/geometry_1/translation")
        os.replace(temporary, target)
    except OSError as error:
        there = target.parent.is_dir()
        why = (error.strerror or error) if there else f"there is no folder {target.parent}"
        raise InputError(f"{target}: cannot be written ({why}); allowed: a writable folder") from None
    finally:
        temporary.unlink(missing_ok=True)


def whole_counts(scan: PtychoArrays) -> NDArray[np.float32] | NDArray[np.uint32]:
    """(B, N, N) counts of a scan of one channel, as whole numbers where that is what they were."""
    counts = scan.counts()[:, 0]
    whole = np.rint(counts)
    near = np.abs(counts - whole) <= WHOLE + 4 * np.finfo(np.float32).eps * counts
    return whole.astype(np.uint32) if near.all() and whole.max() < 2**24 else counts


def _known(scan: PtychoArrays, name: str, given: float | None, found: str | float | None) -> float:
    value = found if given is None else given
    if value is None:
        raise InputError(f"{name}: neither given nor said by {scan.name or 'the scan'}; allowed: a number above 0")
    if not (np.isfinite(float(value)) and float(value) > 0):
        raise InputError(f"{name}: {value}; allowed: a number above 0")
    return float(value)
