"""A scan's file to arrays in model units: open, convert, cut, mask, scale.

Units. Whatever the file holds is brought to counts first. The probe is rescaled so that it brings the mean
count of a frame to the detector (an object of modulus 1 then explains the data), and then divided by its
unit as in the simulation; the square of that unit is ``photons_per_intensity``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.arrays import PtychoArrays
from ptycho.cache import load_split
from ptycho.config.config import ScanAxes, ScanConfig
from ptycho.errors import InputError
from ptycho.npz import check_numbers
from ptycho.probe import match_power, normalise_probe
from ptycho.readers.formats import open_scan
from ptycho.readers.frames import Window, binned, choose_window, good_pixels, read_intensity
from ptycho.readers.geometry import Geometry, energy_kev, geometry_of, refuse_near_field
from ptycho.readers.probes import find_probe
from ptycho.readers.raw import RawScan
from ptycho.scan import group_neighbours

FAR_AWAY_PX = 1e4  # positions beyond this lose part of a pixel in float32; their origin is moved


def read_scan(
    path: str | Path, gridsize: int = 1, nphotons: float = 1e9, settings: ScanConfig | None = None
) -> PtychoArrays:
    """Read a scan in any known format.

    Args:
        path: the file.
        gridsize: g; g*g neighbouring frames are stacked as channels, see ``group_neighbours``.
        nphotons: mean photons of a frame where the file holds amplitudes without a unit.
        settings: what the file does not say, and what part of it is used.

    Raises:
        InputError: no known format, near-field data, or anything in the file that is missing or cannot be
            used; one line that names the file, what was found and what is allowed.
    """
    settings = settings or ScanConfig()
    with open_scan(Path(path), settings) as raw:
        arrays = _cached(raw, settings) if raw.format == "cached" else to_arrays(raw, settings, nphotons)
    return group_neighbours(arrays, gridsize)


def scan_sources(path: Path, settings: ScanConfig) -> tuple[Path, ...]:
    """Every file that a scan is read from: links, parts and a probe of its own included.

    Raises:
        InputError: no known format, or a file that cannot be read.
    """
    with open_scan(path, settings) as raw:
        return raw.sources if settings.scan_probe is None else (*raw.sources, Path(settings.scan_probe))


def _cached(raw: RawScan, settings: ScanConfig) -> PtychoArrays:
    if settings != ScanConfig():
        raise InputError(f"{raw.path}: cached frames are in their final form; allowed: the scan that they were made of")
    return load_split(raw.path)


def to_arrays(raw: RawScan, settings: ScanConfig, nphotons: float) -> PtychoArrays:
    """Bring an open scan to model units, zero frequency in the centre, one channel.

    Raises:
        InputError: see :func:`read_scan`.
    """
    geometry = geometry_of(raw, settings)
    refuse_near_field(raw, geometry)
    window = choose_window(raw, settings)
    positions = positions_px(raw, geometry, window, settings.scan_axes)
    good, gap_note = good_pixels(raw, window, settings.mask_hot)
    mask = binned_mask(raw.path, good, window.bin)
    intensity, kept = read_intensity(raw, window, good, settings)
    if mask is not None:
        intensity[:, ~mask] = 0
    found = find_probe(raw, window, settings.scan_probe, intensity, mask)
    dropped = raw.frames.shape[0] - len(kept)
    drop_note = f"{dropped} frames that are not finite are left out" if dropped else ""
    notes = [note for note in (*raw.notes, window.note, gap_note, drop_note, found.note) if note]
    total = float(intensity.sum(dtype=np.float64)) / len(intensity)
    mean_counts = total if raw.values == "counts" else nphotons
    matched, factor = match_power(found.modes, mean_counts, mask)
    probe, unit = normalise_probe(matched)
    amplitude = np.sqrt(intensity, dtype=np.float32) * np.float32(np.sqrt(mean_counts / total) / unit)
    return PtychoArrays(
        amplitude=amplitude[:, None],
        positions_px=positions[kept, None],
        probe=probe,
        photons_per_intensity=unit**2,
        probe_scale=factor,
        mask=mask,
        name=raw.path.name,
        about=about(raw, geometry, window, mask, found.source, notes),
    )


def positions_px(raw: RawScan, geometry: Geometry, window: Window, axes: ScanAxes) -> NDArray[np.float32]:
    """(F, 2) scan positions as (row, column) in pixels of the object under the window.

    Raises:
        InputError: metres that cannot be converted; says what is missing and which flag supplies it.
    """
    places = turned(raw.positions, axes).astype(np.float64)
    if raw.positions_unit == "m":
        places = places / np.array(known_pixel(raw, geometry))
    px = places * (window.side / np.array(raw.frames.shape[1:]))
    if raw.positions_unit == "m" and np.abs(px).max() > FAR_AWAY_PX:
        px = px - px.mean(axis=0)
    check_numbers(raw.path, f"{raw.positions_name} in pixels of the object", px)
    return px.astype(np.float32)


def known_pixel(raw: RawScan, geometry: Geometry) -> tuple[float, float]:
    """(row, column) side in metres of an object pixel under a whole frame.

    Raises:
        InputError: it is not known; one line on what is missing.
    """
    if geometry.object_pixel_m is None:
        missing = geometry.missing()
        raise InputError(
            f"{raw.path}: its positions are in metres, and {' and '.join(what for what, _ in missing)} "
            f"to convert them {'is' if len(missing) == 1 else 'are'} missing; "
            f"give {' '.join(flag for _, flag in missing)}"
        )
    return geometry.object_pixel_m


def turned(positions: NDArray[Any], axes: ScanAxes) -> NDArray[Any]:
    """Positions (F, 2) as (y, x) with the axes swapped first and flipped then, as ``axes`` says."""
    if axes.startswith("swap"):
        positions = positions[:, ::-1]
    y = -1 if axes.endswith(("flip_y", "flip_both")) else 1
    x = -1 if axes.endswith(("flip_x", "flip_both")) else 1
    return positions * np.array([y, x])


def binned_mask(path: Path, good: NDArray[np.bool_], bin_px: int) -> NDArray[np.bool_] | None:
    """(N, N) good pixels after binning, those whose parts are all good; None where all are.

    Raises:
        InputError: none is left.
    """
    mask = binned(good.astype(np.int64), bin_px) == bin_px**2
    if not mask.any():
        raise InputError(f"{path}: no pixel is left that is not masked, and has finite values of zero or above")
    return None if mask.all() else mask


def about(
    raw: RawScan, geometry: Geometry, window: Window, mask: NDArray[np.bool_] | None, probe: str, notes: list[str]
) -> dict[str, str | float]:
    """What was understood, for the record; what is not known is left out."""
    full = geometry.object_pixel_m
    known: dict[str, Any] = {
        "format": raw.format,
        "values": raw.values,
        "energy_kev": None if geometry.wavelength_m is None else energy_kev(geometry.wavelength_m),
        "distance_m": geometry.distance_m,
        "pixel_size_um": None if geometry.pixel_m is None else geometry.pixel_m[0] * 1e6,
        "object_pixel_nm": None if full is None else full[0] * raw.frames.shape[1] / window.side * 1e9,
        "zero_frequency": "corner" if window.corner else "centre",
        "crop_px": window.side,
        "bin_px": window.bin,
        "masked": 0.0 if mask is None else 1 - float(mask.mean()),
        "probe_source": probe,
        "notes": "; ".join(notes),
    }
    return {name: value for name, value in known.items() if value is not None}
