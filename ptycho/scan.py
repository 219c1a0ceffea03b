"""Where the probe stands: raster scans, groups of neighbours, patches of the object.

Shape legend: B frames, C = gridsize**2 neighbours stacked as channels, N side of a frame, (H, W) the
object. A position is the (row, column) of the probe's centre: the frame of a position (r, c) covers
rows r - N // 2 to r - N // 2 + N - 1, columns likewise.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.arrays import PtychoArrays, ScanSplits
from ptycho.errors import InputError


def raster_scan(size_px: int, N: int, stride_px: int, gridsize: int) -> NDArray[np.float32]:
    """Raster positions whose frames lie wholly inside the object, grouped into squares of neighbours.

    Each position belongs to one group only: the raster is cut into blocks of gridsize x gridsize
    positions, rows and columns left over are not used. Channels run along the rows of a block.

    Returns:
        (B, C, 2) float32.

    Raises:
        InputError: the object is too small for one block.
    """
    per_axis = (size_px - N) // stride_px + 1 if size_px >= N else 0
    blocks = per_axis // gridsize
    if blocks == 0:
        raise InputError(
            f"object_size: {size_px} px is too small; {gridsize} x {gridsize} frames of {N} px "
            f"every {stride_px} px need at least {N + (gridsize - 1) * stride_px} px"
        )
    axis = np.arange(blocks * gridsize) * stride_px + N // 2
    rows, columns = np.meshgrid(axis, axis, indexing="ij")
    grid = np.stack([rows, columns], axis=-1).reshape(blocks, gridsize, blocks, gridsize, 2)
    return grid.swapaxes(1, 2).reshape(blocks**2, gridsize**2, 2).astype(np.float32)


def corners_px(positions_px: NDArray[np.floating[Any]], N: int) -> NDArray[np.int64]:
    """First row and column of each frame: positions rounded to whole pixels (halves up), less N // 2."""
    return np.floor(positions_px.astype(np.float64) + 0.5).astype(np.int64) - N // 2


def extract_patches(
    obj: NDArray[np.complex64], positions_px: NDArray[np.floating[Any]], N: int
) -> NDArray[np.complex64]:
    """The object under each frame, (..., N, N), for positions (..., 2) rounded to whole pixels.

    Raises:
        InputError: a frame reaches beyond the object.
    """
    corners = corners_px(positions_px, N)
    if corners.min() < 0 or (corners.max(axis=tuple(range(corners.ndim - 1))) + N > obj.shape).any():
        raise InputError(f"positions: frames of {N} px reach beyond the object of {obj.shape[0]} x {obj.shape[1]} px")
    windows = np.lib.stride_tricks.sliding_window_view(obj, (N, N))
    return windows[corners[..., 0], corners[..., 1]]


def neighbour_groups(positions_px: NDArray[np.floating[Any]], group_size: int) -> NDArray[np.int64]:
    """Cut scattered positions into compact groups of equal size, each position in one group.

    The set is halved across its longer side, again and again, until each part is one group (a k-d tree's
    leaves). What is left over, less than one group, is dropped from the end.

    Args:
        positions_px: (F, 2).
        group_size: positions in a group.

    Returns:
        (F // group_size, group_size) int64 indices, by row and then column inside a group.

    Raises:
        InputError: fewer positions than one group needs.
    """
    n_groups = len(positions_px) // group_size
    if n_groups == 0:
        raise InputError(f"gridsize: {len(positions_px)} frames are too few for one group of {group_size}")
    leaves: list[NDArray[np.int64]] = []
    parts = [np.arange(n_groups * group_size)]
    while parts:
        part = parts.pop()
        if len(part) == group_size:
            leaves.append(part[np.lexsort((positions_px[part, 1], positions_px[part, 0]))])
            continue
        axis = int(np.argmax(np.ptp(positions_px[part], axis=0)))
        ordered = part[np.argsort(positions_px[part, axis], kind="stable")]
        half = len(part) // group_size // 2 * group_size
        parts += [ordered[half:], ordered[:half]]
    return np.stack(leaves)


def split_frames(arrays: PtychoArrays, sizes: tuple[int, ...], rng: np.random.Generator) -> list[PtychoArrays]:
    """Cut a scan, in a random order, into parts of the given numbers of frames and a last part of the rest."""
    order = rng.permutation(arrays.n_frames)
    return [arrays.take(part) for part in np.split(order, np.cumsum(sizes))]


def group_neighbours(arrays: PtychoArrays, gridsize: int) -> PtychoArrays:
    """Stack neighbouring frames of a scan of single frames as channels.

    Each frame is used once, so that parts of a later split share none; see ``neighbour_groups``.

    Raises:
        InputError: too few frames, or frames that are stacked already in another way.
    """
    channels = arrays.amplitude.shape[1]
    if channels == gridsize**2:
        return arrays
    if channels != 1:
        raise InputError(f"gridsize: {gridsize} asked for, but {arrays.name} has {channels} channels")
    groups = neighbour_groups(arrays.positions_px[:, 0], gridsize**2)
    return dataclasses.replace(
        arrays,
        amplitude=arrays.amplitude[groups, 0],
        positions_px=arrays.positions_px[groups, 0],
        patches_true=None if arrays.patches_true is None else arrays.patches_true[groups, 0],
        faulty=None if arrays.faulty is None else np.any(arrays.faulty[groups], axis=1),
    )


def split_scan(arrays: PtychoArrays, validation_fraction: float, test_fraction: float, seed: int) -> ScanSplits:
    """Split the frames of one scan at random, at least one to each part.

    Neighbouring frames overlap, so a held-out frame of the same scan is a weaker test than another object.

    Raises:
        InputError: the fractions leave nothing for one of the parts.
    """
    sizes = tuple(max(1, round(part * arrays.n_frames)) for part in (validation_fraction, test_fraction))
    if sum(sizes) >= arrays.n_frames:
        raise InputError(
            f"{arrays.name}: {arrays.n_frames} frames leave none to train on; "
            f"{sizes[0]} go to validation and {sizes[1]} to the test"
        )
    validation, test, train = split_frames(arrays, sizes, np.random.default_rng(seed))
    return ScanSplits(train=train, validation=validation, test=test)
