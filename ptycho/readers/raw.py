"""What a file says of a scan, before any of it is converted: the type that every format is read to.

Shape legend: F frames, (H, W) a frame as the detector wrote it, P probe modes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import InputError
from ptycho.npz import check_numbers, check_size

CHUNK_FRAMES = 64  # read at once, so that a scan needs little more memory than its result
SAMPLE_FRAMES = 64  # looked at where all frames would tell no more

Pair = tuple[float, float]
"""Two numbers along (row, column)."""

WHOLE = slice(None)


class Part(NamedTuple):
    """Frames that lie together: ``array[lead]`` is (F, H, W). An HDF5 dataset is read only where it is asked."""

    array: Any
    lead: tuple[int, ...] = ()

    def __len__(self) -> int:
        return int(self.array.shape[len(self.lead)])


@dataclasses.dataclass(frozen=True, slots=True)
class FrameStack:
    """Frames (F, H, W), read in pieces from where they lie.

    Attributes:
        path: the file.
        name: of the array in the file, for messages.
        parts: in the order of the frames.
    """

    path: Path
    name: str
    parts: tuple[Part, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(F, H, W)."""
        height, width = self.parts[0].array.shape[-2:]
        return sum(map(len, self.parts)), int(height), int(width)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored numbers."""
        return np.dtype(self.parts[0].array.dtype)

    def chunks(self, rows: slice = WHOLE, columns: slice = WHOLE) -> Iterator[tuple[int, NDArray[Any]]]:
        """The number of the first frame and a window of at most ``CHUNK_FRAMES`` frames, one after the other."""
        first = 0
        for part in self.parts:
            for start in range(0, len(part), CHUNK_FRAMES):
                stop = min(start + CHUNK_FRAMES, len(part))
                yield first + start, self._read(part, slice(start, stop), rows, columns)
            first += len(part)

    def sample(self) -> NDArray[Any]:
        """At most ``SAMPLE_FRAMES`` whole frames, evenly spread over the scan."""
        wanted = set(np.unique(np.linspace(0, self.shape[0] - 1, SAMPLE_FRAMES).astype(int)).tolist())
        found, first = [], 0
        for part in self.parts:
            for i in sorted(wanted & set(range(first, first + len(part)))):
                found.append(self._read(part, slice(i - first, i - first + 1), WHOLE, WHOLE))
            first += len(part)
        return np.concatenate(found)

    def _read(self, part: Part, frames: slice, rows: slice, columns: slice) -> NDArray[Any]:
        try:
            return np.asarray(part.array[(*part.lead, frames, rows, columns)])
        except OSError as error:
            reason = " ".join(str(error).split())
            hint = "; its compression may need hdf5plugin and HDF5_PLUGIN_PATH" if "filter" in reason else ""
            raise InputError(f"{self.path}: {self.name} cannot be read ({reason}){hint}") from None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RawScan:
    """A scan as its file holds it; what the file does not say is None.

    Attributes:
        path: the file.
        format: its kind, a name of ``formats.FORMATS``.
        frames: (F, H, W).
        values: what the frames hold, ``counts`` or ``amplitudes`` without a unit.
        positions: (F, 2) as (row, column) of the probe on the object.
        positions_name: of their array in the file, for messages.
        positions_unit: ``m``, or ``px`` of the object under a whole frame.
        probe: (..., n, n) complex.
        probe_name: of its array in the file, for messages.
        good: (H, W) bool, pixels that the file does not call bad.
        wavelength_m: of the light.
        distance_m: from the sample to the detector.
        pixel_m: side of a detector pixel.
        object_pixel_m: side of an object pixel under a whole frame, where the file says it itself.
        centre_px: where the beam meets a frame.
        near_field: the file's own words for a near field; empty where it has none.
        sources: every file that was opened.
        notes: what was assumed, each in one clause.
    """

    path: Path
    format: str
    frames: FrameStack
    values: Literal["counts", "amplitudes"]
    positions: NDArray[Any]
    positions_name: str
    positions_unit: Literal["m", "px"]
    probe: NDArray[Any] | None = None
    probe_name: str = "probe"
    good: NDArray[np.bool_] | None = None
    wavelength_m: float | None = None
    distance_m: float | None = None
    pixel_m: Pair | None = None
    object_pixel_m: Pair | None = None
    centre_px: Pair | None = None
    near_field: str = ""
    sources: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_frames()
        self._check_positions()
        for what in ("wavelength_m", "distance_m", "pixel_m", "object_pixel_m"):
            value = getattr(self, what)
            for number in () if value is None else np.atleast_1d(value):
                if not (math.isfinite(number) and number > 0):
                    raise InputError(f"{self.path}: {what} is {number:g}; allowed: above 0")

    def _check_frames(self) -> None:
        name, (_, height, width) = self.frames.name, self.frames.shape
        for part in self.frames.parts:
            self._check_part(part.array, (height, width))
        if self.good is not None and self.good.shape != (height, width):
            raise InputError(
                f"{self.path}: the mask has shape {self.good.shape}; frames in {name} need {(height, width)}"
            )

    def _check_part(self, array: Any, shape: tuple[int, int]) -> None:
        name, dtype = self.frames.name, np.dtype(array.dtype)
        if not (np.issubdtype(dtype, np.number) or dtype == np.bool_):
            raise InputError(f"{self.path}: {name} has type {dtype}; allowed: numbers")
        if np.issubdtype(dtype, np.complexfloating):
            raise InputError(f"{self.path}: {name} is complex; allowed: real numbers, zero or above")
        if 0 in array.shape:
            raise InputError(f"{self.path}: {name} is empty, shape {array.shape}")
        if array.shape[-2:] != shape:
            raise InputError(f"{self.path}: {name} has a part of shape {array.shape}; allowed: frames of {shape}")
        check_size(self.path, name, 4 * math.prod(array.shape))

    def _check_positions(self) -> None:
        count = self.frames.shape[0]
        if self.positions.shape != (count, 2):
            raise InputError(
                f"{self.path}: {self.positions_name} give positions of shape {self.positions.shape}; "
                f"{count} frames in {self.frames.name} need {(count, 2)}"
            )
        check_numbers(self.path, self.positions_name, self.positions)
        if np.iscomplexobj(self.positions):
            raise InputError(f"{self.path}: {self.positions_name} are complex; allowed: real numbers")
