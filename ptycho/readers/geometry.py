"""From metres to object pixels: wavelength, distance, detector pixel, and whether a far field is what was measured.

In a far field, a detector pixel of side p at distance z sees the spatial frequency p / (lambda z), so a frame
of S pixels samples an object in steps of

    dx = lambda z / (S p),

and the illumination has to fit into S dx = lambda z / p, whatever S is (Rodenburg and Maiden, Springer Handbook
of Microscopy 2019, ch. 17). Cropping frames therefore makes the object's pixels larger; binning them, which makes p
larger, makes the field of view smaller.

Planck's constant, the speed of light and the elementary charge have their exact SI values (BIPM 2019).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

from ptycho.config.config import ScanConfig
from ptycho.errors import InputError
from ptycho.readers.raw import Pair, RawScan

JOULE_METRES = 6.62607015e-34 * 299792458  # h c
ELECTRON_VOLT_J = 1.602176634e-19
KEV_J = 1e3 * ELECTRON_VOLT_J


class Missing(NamedTuple):
    """Something that a file does not say, and the flag that does."""

    what: str
    flag: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What settings and file together say of the experiment; None where neither does.

    Attributes:
        wavelength_m, distance_m: of the light; from the sample to the detector.
        pixel_m: (row, column) side of a detector pixel.
        object_pixel_m: (row, column) side of an object pixel under a whole frame.
    """

    wavelength_m: float | None
    distance_m: float | None
    pixel_m: Pair | None
    object_pixel_m: Pair | None

    @property
    def field_of_view_m(self) -> float | None:
        """lambda z / p, the largest illumination that a far field can hold."""
        if self.wavelength_m is None or self.distance_m is None or self.pixel_m is None:
            return None
        return self.wavelength_m * self.distance_m / max(self.pixel_m)

    def missing(self) -> list[Missing]:
        """What the object's pixel size waits for; nothing where it is known."""
        asked = {
            "the photon energy": (self.wavelength_m, "--energy-kev"),
            "the distance to the detector": (self.distance_m, "--distance-m"),
            "the detector's pixel size": (self.pixel_m, "--pixel-size-um"),
        }
        if self.object_pixel_m is not None:
            return []
        return [Missing(what, flag) for what, (value, flag) in asked.items() if value is None]


def wavelength_m(energy_j: float) -> float:
    """Wavelength of photons of an energy.

    >>> round(wavelength_m(12.398419843 * KEV_J) * 1e10, 6)
    1.0
    """
    return JOULE_METRES / energy_j


def energy_kev(wavelength: float) -> float:
    """Energy of photons of a wavelength in metres."""
    return JOULE_METRES / wavelength / KEV_J


def geometry_of(raw: RawScan, settings: ScanConfig) -> Geometry:
    """The geometry of a scan; a setting that is given goes before what the file says."""
    wavelength = raw.wavelength_m if settings.energy_kev is None else wavelength_m(settings.energy_kev * KEV_J)
    distance = raw.distance_m if settings.distance_m is None else settings.distance_m
    side = settings.pixel_size_um
    pixel = raw.pixel_m if side is None else (side * 1e-6, side * 1e-6)
    object_pixel = raw.object_pixel_m
    if wavelength is not None and distance is not None and pixel is not None:
        _, height, width = raw.frames.shape
        object_pixel = (wavelength * distance / (height * pixel[0]), wavelength * distance / (width * pixel[1]))
    return Geometry(wavelength_m=wavelength, distance_m=distance, pixel_m=pixel, object_pixel_m=object_pixel)


def refuse_near_field(raw: RawScan, geometry: Geometry) -> None:
    """Refuse a scan that is no far field.

    A file that says so is believed. Otherwise the scan must be able to overlap: neighbouring positions that
    are further apart than the largest illumination that a far field of this geometry can hold are frames of
    a near field, or the geometry is wrong.

    Raises:
        InputError: with the reason.
    """
    if raw.near_field:
        raise InputError(
            f"{raw.path}: near-field data ({raw.near_field}); allowed: far-field patterns, "
            "which a Fourier transform of the exit wave explains"
        )
    field = geometry.field_of_view_m
    if field is None or raw.positions_unit != "m" or len(raw.positions) < 2:
        return
    step = nearest_step(raw.positions)
    if step > field:
        raise InputError(
            f"{raw.path}: neighbouring positions are {step * 1e6:.3g} um apart, but a far field at this distance and "
            f"pixel size holds an illumination of {field * 1e6:.3g} um at most: near-field data, or a wrong "
            "--energy-kev, --distance-m or --pixel-size-um"
        )


def nearest_step(positions: np.ndarray) -> float:
    """Median distance of a position (F, 2) from the nearest other one, in the positions' unit."""
    distance, _ = KDTree(positions).query(positions, k=2)
    return float(np.median(distance[:, 1]))
