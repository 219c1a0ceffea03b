"""Which part of the frames is used, where their zero frequency lies, and which pixels can be believed.

Shape legend: F frames, (H, W) a frame as the detector wrote it, S side of the part that is used, b pixels
binned along each axis, N = S / b side of a frame that is handed on, its zero frequency at [N // 2, N // 2].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import ScanConfig, beam_centre
from ptycho.diagnosis import suspected_pixels
from ptycho.errors import InputError
from ptycho.npz import LARGEST
from ptycho.readers.raw import FrameStack, RawScan

FAR_OFF_PX = 1.5  # a beam's centre further than this from that of the frames is worth a word


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The part of each frame that is used.

    Attributes:
        top, left: its first row and column, in a frame whose zero frequency is in the centre.
        side: S.
        bin: b.
        corner: whether the stored frames have their zero frequency at [0, 0].
        note: what is worth saying about the beam's centre; empty where nothing is.
    """

    top: int
    left: int
    side: int
    bin: int
    corner: bool
    note: str = ""

    @property
    def size(self) -> int:
        """N."""
        return self.side // self.bin


def choose_window(raw: RawScan, settings: ScanConfig) -> Window:
    """The window that the settings ask for, around the beam's centre.

    Raises:
        InputError: frames that are not square and not cropped, or a crop or bin that does not fit them.
    """
    _, height, width = raw.frames.shape
    side = _side(raw, settings)
    place = beam_centre(settings.zero_frequency)
    if place == "auto":
        place = raw.centre_px or ("corner" if zero_frequency_at_corner(raw.frames.sample()) else "centre")
    middle = (height // 2, width // 2)
    row, column = middle if isinstance(place, str) else place
    if side % settings.scan_bin:
        raise InputError(f"scan_bin: {settings.scan_bin} does not divide frames of {side} px; allowed: a divisor")
    note = ""
    if settings.scan_crop is None:
        if max(abs(row - middle[0]), abs(column - middle[1])) > FAR_OFF_PX:
            largest = _largest(row, column, height, width)
            note = (
                f"the beam's centre ({row:g}, {column:g}) is not that of the frames; "
                f"--scan-crop {largest} or less cuts them around it"
            )
        row, column = middle
    top, left = round(row) - side // 2, round(column) - side // 2
    if min(top, left) < 0 or top + side > height or left + side > width:
        raise InputError(
            f"scan_crop: {side} px around the beam's centre ({row:g}, {column:g}) reach beyond frames of "
            f"{height} x {width} px in {raw.path}; allowed: at most {_largest(row, column, height, width)}"
        )
    return Window(top=top, left=left, side=side, bin=settings.scan_bin, corner=place == "corner", note=note)


def _side(raw: RawScan, settings: ScanConfig) -> int:
    _, height, width = raw.frames.shape
    if settings.scan_crop is not None:
        if settings.scan_crop > min(height, width):
            raise InputError(
                f"scan_crop: {settings.scan_crop} px, but the frames of {raw.path} have {height} x {width} px; "
                f"allowed: at most {min(height, width)}"
            )
        return settings.scan_crop
    if height != width:
        raise InputError(
            f"{raw.path}: {raw.frames.name} has frames of {height} x {width} px; "
            f"allowed: square frames, or --scan-crop {min(height, width)} or less"
        )
    return height


def _largest(row: float, column: float, height: int, width: int) -> int:
    """The largest even side that fits around a centre."""
    r, c = round(row), round(column)
    return max(0, 2 * min(r, c, height - r, width - c))


def zero_frequency_at_corner(frames: NDArray[Any]) -> bool:
    """Whether frames (F, H, W) have their zero frequency at [0, 0] and not in the centre.

    Far-field patterns are brightest around the zero frequency. On the circle that the periodic pixel
    axis is, the centre of mass then lies nearer to index 0 or to the middle, which the sign of the first
    cosine moment tells. Values that are not finite, or negative, count for nothing.
    """
    mean = np.where(np.isfinite(frames) & (frames > 0), frames, 0).mean(axis=0, dtype=np.float64)
    rows, columns = (np.cos(2 * np.pi * np.arange(side) / side) for side in mean.shape)
    return bool(np.sum(mean * (rows[:, None] + columns[None, :])) > 0)


def cut(frames: NDArray[Any], window: Window) -> NDArray[Any]:
    """Whole frames (..., H, W) to their window (..., S, S), zero frequency in the centre."""
    if window.corner:
        frames = np.fft.fftshift(frames, axes=(-2, -1))
    rows, columns = slice(window.top, window.top + window.side), slice(window.left, window.left + window.side)
    return frames[..., rows, columns]


def binned(values: NDArray[Any], bin_px: int) -> NDArray[Any]:
    """Sums over squares of b x b pixels: (..., S, S) to (..., N, N); counts are kept."""
    if bin_px == 1:
        return values
    size = values.shape[-1] // bin_px
    return values.reshape(*values.shape[:-2], size, bin_px, size, bin_px).sum(axis=(-3, -1))


def good_pixels(raw: RawScan, window: Window, mask_hot: bool) -> tuple[NDArray[np.bool_], str]:
    """(S, S) pixels that can be believed, and a note on those that the file does not name.

    A pixel counts as bad where the file's mask says so, and where no sampled frame has a value that a
    detector measures: not finite, negative, or the largest number of its unsigned type, with which
    detectors mark gaps and broken pixels. Where it is asked, hot and dead pixels count as bad too.
    """
    sample = cut(raw.frames.sample(), window)
    broken = (~np.isfinite(sample) | (sample < 0)).all(axis=0)
    if sample.dtype.kind == "u" and sample.dtype.itemsize > 1:
        broken |= (sample == np.iinfo(sample.dtype).max).all(axis=0)
    good = np.ones_like(broken) if raw.good is None else cut(raw.good, window).astype(bool)
    note = _masked_note(broken & good, "without a value in any frame")
    good = good & ~broken
    if mask_hot:
        odd = suspected_pixels(sample, good)
        wrong = (odd.hot | odd.dead) & good
        note = "; ".join(filter(None, (note, _masked_note(wrong, "that are hot or dead"))))
        good = good & ~wrong
    return good, note


def _masked_note(bad: NDArray[np.bool_], why: str) -> str:
    return f"{np.count_nonzero(bad)} pixels {why} are masked" if bad.any() else ""


def read_intensity(
    raw: RawScan, window: Window, good: NDArray[np.bool_], settings: ScanConfig
) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64]]:
    """(B, N, N) intensities, in the unit of the file, and the numbers (B,) of their frames.

    Bad pixels (S, S) are left out of the sums.

    Raises:
        InputError: values that are not finite, or negative, where the settings do not say what to do with them.
    """
    count, dtype = raw.frames.shape[0], raw.frames.dtype
    precise = np.float64 if dtype.itemsize > 4 and dtype.kind == "f" else np.float32
    intensity = np.empty((count, window.size, window.size), dtype=precise)
    problems = Problems()
    for first, chunk in intensity_chunks(raw, window, good, problems):
        intensity[first : first + len(chunk)] = chunk
    problems.refuse(f"{raw.path}: {raw.frames.name}", settings)
    kept = np.setdiff1d(np.arange(count), problems.frames)
    intensity = intensity if len(kept) == count else intensity[kept]
    if not intensity.any():
        raise InputError(f"{raw.path}: {raw.frames.name} is zero everywhere")
    return intensity, kept


def intensity_chunks(
    raw: RawScan, window: Window, good: NDArray[np.bool_], problems: Problems
) -> Iterator[tuple[int, NDArray[Any]]]:
    """The number of the first frame and some intensities (f, N, N), one after the other.

    Bad pixels (S, S) and values that cannot be counts are zero; the latter are told to ``problems``.
    """
    for first, stored in _chunks(raw.frames, window):
        chunk = np.where(good, stored, 0)
        if problems.look(first, chunk):
            chunk = np.where(np.isfinite(chunk) & (chunk > 0), chunk, 0)
        if raw.values == "amplitudes":
            chunk = np.square(chunk, dtype=np.float64)
        yield first, binned(chunk, window.bin)


def _chunks(frames: FrameStack, window: Window) -> Iterator[tuple[int, NDArray[Any]]]:
    """Windows (f, S, S) of the frames; where the zero frequency is in the centre, no more is read."""
    if window.corner:
        yield from ((first, cut(chunk, window)) for first, chunk in frames.chunks())
        return
    rows, columns = slice(window.top, window.top + window.side), slice(window.left, window.left + window.side)
    yield from frames.chunks(rows, columns)


@dataclasses.dataclass(slots=True)
class Problems:
    """What cannot be a count, gathered over the chunks of a scan."""

    not_finite: int = 0
    frames: list[int] = dataclasses.field(default_factory=list)
    lowest: float = 0.0
    highest: float = 0.0

    def look(self, first: int, chunk: NDArray[Any]) -> bool:
        """Take in the frames from number ``first`` on; whether there is a problem with any of them."""
        bad = ~np.isfinite(chunk)
        if bad.any():
            self.not_finite += int(np.count_nonzero(bad))
            self.frames += (first + np.flatnonzero(bad.any(axis=(1, 2)))).tolist()
        lowest = float(np.min(chunk, initial=0, where=~bad))
        highest = float(np.max(chunk, initial=0, where=~bad))
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        return bool(bad.any()) or lowest < 0 or highest > LARGEST

    def refuse(self, what: str, settings: ScanConfig) -> None:
        """Raise for the first kind of problem that was met and that the settings do not deal with.

        Raises:
            InputError: there was one.
        """
        if self.not_finite and not settings.drop_nan:
            numbers = ", ".join(map(str, self.frames[:5])) + (", ..." if len(self.frames) > 5 else "")
            raise InputError(
                f"{what} has {self.not_finite} values that are not finite (frames {numbers}); "
                "allowed: finite ones, or --drop-nan"
            )
        if self.highest > LARGEST:
            raise InputError(f"{what} has values up to {self.highest:g}; allowed: up to {LARGEST:g}")
        if self.lowest < 0 and not settings.clip_negative:
            raise InputError(
                f"{what} has negative values (lowest {self.lowest:g}); allowed: zero or above, or --clip-negative"
            )
