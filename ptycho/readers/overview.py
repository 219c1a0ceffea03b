"""What was understood of a scan, with nothing refused that can be looked at: for ``study.inspect``.

Shape legend: F frames, S side of the part of a frame that is used, N its side after binning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import ScanConfig
from ptycho.diagnosis import FrameFacts, SuspectedPixels, gather_facts, suspected_frames, suspected_pixels
from ptycho.errors import InputError
from ptycho.probe import match_power, normalise_probe
from ptycho.readers.formats import open_scan
from ptycho.readers.frames import Problems, Window, choose_window, cut, good_pixels, intensity_chunks
from ptycho.readers.geometry import Geometry, Missing, geometry_of, nearest_step, refuse_near_field
from ptycho.readers.probes import FoundProbe, find_probe
from ptycho.readers.raw import Pair, RawScan
from ptycho.readers.scans import binned_mask, positions_px


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A scan as it would be trained on, and what is odd about it.

    Attributes:
        path, format, values: the file, its kind, and what its frames hold.
        frame_px: (H, W) of a frame in the file.
        window: the part of it that is used.
        geometry: wavelength, distance, pixels.
        object_pixel_m: (row, column) side of an object pixel under the window; None where it is not known.
        positions_px: (F, 2) scan positions as (row, column); None where they cannot be converted.
        facts: sums over the frames; counts, or squared amplitudes.
        mask: (N, N) good pixels; None where all are.
        probe: on the grid of the frames, not scaled.
        probe_factor: on its power, that would bring the mean frame's counts to the detector.
        pixels: (S, S) hot and dead ones that are not masked.
        frames: numbers of suspected frames, by what is suspected.
        negative: the lowest value, where any is below zero.
        missing: what training waits for.
        notes: what was assumed.
    """

    path: Path
    format: str
    values: str
    frame_px: tuple[int, int]
    window: Window
    geometry: Geometry
    object_pixel_m: Pair | None
    positions_px: NDArray[np.float32] | None
    facts: FrameFacts
    mask: NDArray[np.bool_] | None
    probe: FoundProbe
    probe_factor: float
    pixels: SuspectedPixels
    frames: Mapping[str, NDArray[np.int64]]
    negative: float
    missing: tuple[Missing, ...]
    notes: tuple[str, ...]

    @property
    def step_px(self) -> float | None:
        """Median distance of a scan position from the nearest other one."""
        if self.positions_px is None or len(self.positions_px) < 2:
            return None
        return nearest_step(self.positions_px)

    @property
    def probe_diameter_px(self) -> float:
        """Of the disk of even brightness that is as spread out as the probe: its area is (sum I)**2 / sum I**2."""
        intensity = np.sum(np.abs(self.probe.modes.astype(np.complex128)) ** 2, axis=0)
        return float(2 * np.sqrt(intensity.sum() ** 2 / np.sum(intensity**2) / np.pi))

    @property
    def overlap(self) -> float | None:
        """Linear overlap of neighbouring frames, 1 - step / diameter of the probe; below 0 there is none."""
        return None if self.step_px is None else 1 - self.step_px / self.probe_diameter_px


def look_at(path: Path, settings: ScanConfig) -> Overview:
    """Look at a scan.

    Raises:
        InputError: no known format, near-field data, or nothing that can be looked at.
    """
    with open_scan(path, settings) as raw:
        geometry = geometry_of(raw, settings)
        refuse_near_field(raw, geometry)
        window = choose_window(raw, settings)
        good, note = good_pixels(raw, window, settings.mask_hot)
        mask, problems = binned_mask(raw.path, good, window.bin), Problems()
        facts = gather_facts(intensity_chunks(raw, window, good, problems))
        if not facts.totals.any():
            raise InputError(f"{path}: {raw.frames.name} is zero everywhere")
        probe = find_probe(raw, window, settings.scan_probe, facts.mean[None], mask)
        missing = geometry.missing() if raw.positions_unit == "m" else []
        return Overview(
            path=path,
            format=raw.format,
            values=raw.values,
            frame_px=raw.frames.shape[1:],
            window=window,
            geometry=geometry,
            object_pixel_m=_object_pixel(raw, geometry, window),
            positions_px=None if missing else positions_px(raw, geometry, window, settings.scan_axes),
            facts=facts,
            mask=mask,
            probe=probe,
            probe_factor=_factor(probe, facts, mask),
            pixels=suspected_pixels(cut(raw.frames.sample(), window), good),
            frames=suspected_frames(facts, problems.frames),
            negative=problems.lowest,
            missing=tuple(missing),
            notes=tuple(text for text in (*raw.notes, window.note, note, probe.note) if text),
        )


def _object_pixel(raw: RawScan, geometry: Geometry, window: Window) -> Pair | None:
    if geometry.object_pixel_m is None:
        return None
    (_, height, width), (row, column) = raw.frames.shape, geometry.object_pixel_m
    return row * height / window.side, column * width / window.side


def _factor(probe: FoundProbe, facts: FrameFacts, mask: NDArray[np.bool_] | None) -> float:
    """As training scales the probe, which it refuses where there is no power near the centre."""
    matched, factor = match_power(probe.modes, float(facts.totals.mean()), mask)
    normalise_probe(matched)
    return factor
