"""The probe of a real scan: from its file, from another one, or estimated from the frames.

Shape legend: P modes, (H, W) a frame as the detector wrote it, S side of the part that is used, N side of
a frame that is handed on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ptycho.errors import InputError
from ptycho.npz import read_npz
from ptycho.probe import as_modes, probe_power
from ptycho.readers.cxi import PROBES, complex_array
from ptycho.readers.formats import is_hdf5
from ptycho.readers.frames import Window
from ptycho.readers.hdf5 import find, open_hdf5
from ptycho.readers.ptychodus import first_eigenprobes
from ptycho.readers.raw import RawScan

NPZ_PROBES = ("probeGuess", "probe")
SMOOTHING_PX = 0.5  # of the mean amplitude, against the object's speckle; it damps what lies N / 3 px off the axis
LOSS_WORTH_A_WORD = 0.02  # part of the probe's power that binning cuts off


class FoundProbe(NamedTuple):
    """modes (P, N, N) complex64, where they come from, and what is worth saying; empty where nothing is."""

    modes: NDArray[np.complex64]
    source: str
    note: str = ""


def find_probe(
    raw: RawScan, window: Window, other: str | None, intensity: NDArray[Any], mask: NDArray[np.bool_] | None
) -> FoundProbe:
    """The probe of a scan on the grid of its frames; not scaled to anything.

    Args:
        raw: the scan.
        window: the part of the frames that is used.
        other: another file that holds the probe.
        intensity: (F, N, N) frames, from which it is estimated where there is none.
        mask: (N, N) good pixels.

    Raises:
        InputError: a probe that does not fit the frames, or none in the other file.
    """
    if other is not None:
        name, stored = read_probe(Path(other))
        return fit_probe(Path(other), name, stored, raw, window)
    if raw.probe is not None:
        return fit_probe(raw.path, raw.probe_name, raw.probe, raw, window)
    note = "no probe in the file: estimated from the mean pattern, in focus; --scan-probe gives another"
    return FoundProbe(estimate_probe(intensity, mask), "estimated", note)


def read_probe(path: Path) -> tuple[str, NDArray[Any]]:
    """The name and the array of the probe in an NPZ or HDF5 file.

    Raises:
        InputError: the file cannot be read, or holds none.
    """
    if not is_hdf5(path):
        arrays = read_npz(path, NPZ_PROBES)
        for name in NPZ_PROBES:
            if name in arrays:
                return name, arrays[name]
        raise InputError(f"scan_probe: {path} has no probe; allowed: an NPZ file with {' or '.join(NPZ_PROBES)}")
    with open_hdf5(path) as file:
        dataset = find(file, "probe", *(f"entry_1/{name}" for name in PROBES))
        if dataset is None:
            raise InputError(f"scan_probe: {path} has no probe; allowed: an HDF5 file with /probe, or a CXI file")
        return str(dataset.name), first_eigenprobes(complex_array(path, dataset))


def fit_probe(path: Path, name: str, stored: NDArray[Any], raw: RawScan, window: Window) -> FoundProbe:
    """Bring a probe to the grid of the frames that are handed on.

    One as large as a whole frame is treated as the frames are: a crop takes away the far field's outer
    part, a bin the outer part of the field of view. One of the final size is taken as it is.

    Raises:
        InputError: it has another size, or is not finite, or without power.
    """
    whole = raw.frames.shape[1:]
    if stored.shape[-2:] != whole or whole == (window.size, window.size):
        return FoundProbe(as_modes(path, name, stored, window.size), name)
    if whole[0] != whole[1]:
        raise InputError(f"{path}: {name} has frames of {whole[0]} x {whole[1]} px; allowed: a square probe")
    modes = cropped_far_field(as_modes(path, name, stored, whole[0]), window.side)
    kept = middle(modes, window.size)
    lost = 1 - probe_power(kept) / probe_power(modes)
    note = f"binning leaves {lost:.0%} of the probe outside the field of view" if lost > LOSS_WORTH_A_WORD else ""
    return FoundProbe(as_modes(path, name, kept, window.size), name, note)


def middle(array: NDArray[Any], side: int) -> NDArray[Any]:
    """The middle (..., side, side) of an array (..., n, n), pixel n // 2 at side // 2."""
    start = array.shape[-1] // 2 - side // 2
    return array[..., start : start + side, start : start + side]


def cropped_far_field(modes: NDArray[np.complex64], side: int) -> NDArray[np.complex128]:
    """A probe (P, n, n) whose far field is cut to its middle (P, side, side): the same view in larger pixels."""
    axes = (-2, -1)
    far_field = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(modes.astype(np.complex128), axes), norm="ortho"), axes)
    near = np.fft.ifft2(np.fft.ifftshift(middle(far_field, side), axes), norm="ortho")
    return np.asarray(np.fft.fftshift(near, axes))


def estimate_probe(intensity: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[np.complex64]:
    """(1, N, N) probe whose far field is the root of the mean frame, smoothed, with a flat phase.

    Masked pixels take the mean of their surroundings, weighted as the smoothing weights them. Without a
    phase the probe is the most compact that the pattern allows, as one in focus is.
    """
    amplitude = np.sqrt(intensity.mean(axis=0, dtype=np.float64))
    good = np.ones(amplitude.shape) if mask is None else mask.astype(np.float64)
    weight = gaussian_filter(good, SMOOTHING_PX)
    smooth = gaussian_filter(amplitude * good, SMOOTHING_PX) / np.maximum(weight, 1e-3)
    near = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(smooth), norm="ortho"))
    return near.astype(np.complex64)[None]
