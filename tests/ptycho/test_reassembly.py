"""Patches put together again: round trips, weights and phases."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho.errors import InputError
from ptycho.probe import disk_probe, gaussian_probe
from ptycho.reassembly import align_patch_phases, stitch
from ptycho.scan import extract_patches, raster_scan

N, SIZE = 16, 40


def field(seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed).normal(size=(2, SIZE, SIZE))
    return (draw[0] + 1j * draw[1]).astype(np.complex64)


@pytest.mark.parametrize("gridsize", [1, 2])
def test_what_is_cut_out_of_an_object_comes_back_exactly(gridsize: int) -> None:
    obj, positions = field(), raster_scan(SIZE, N, 3, gridsize)
    probe = np.concatenate([gaussian_probe(N, 0.5, 2.0), 0.3 * disk_probe(N, 0.5)])
    stitched = stitch(extract_patches(obj, positions, N), positions, probe)
    height, width = stitched.object.shape
    assert np.array_equal(stitched.origin_px, [0, 0])
    assert np.abs(stitched.object - obj[:height, :width]).max() < 1e-6
    assert stitched.object.dtype == np.complex64
    assert stitched.weight.dtype == np.float32


def test_the_origin_says_where_the_canvas_lies() -> None:
    obj, positions = field(), raster_scan(SIZE, N, 3, 1)[[4, 30, 40]]
    stitched = stitch(extract_patches(obj, positions, N), positions, gaussian_probe(N, 0.5, 0))
    row, column = stitched.origin_px.astype(int)
    height, width = stitched.object.shape
    assert (row, column) == tuple(positions.reshape(-1, 2).min(axis=0).astype(int) - N // 2)
    lit = stitched.weight > 0
    assert np.abs(stitched.object - obj[row : row + height, column : column + width])[lit].max() < 1e-6


def test_the_weights_are_the_light_that_fell_and_dark_pixels_are_zero() -> None:
    positions = np.array([[[20.0, 20.0]], [[20.0, 23.0]]])
    disk = 2 * disk_probe(N, 0.5)
    stitched = stitch(np.ones((2, 1, N, N), np.complex64), positions, disk)
    expected = np.zeros((N, N + 3))
    expected[:, :N] += np.abs(disk[0]) ** 2
    expected[:, 3:] += np.abs(disk[0]) ** 2
    assert stitched.weight == pytest.approx(expected)
    assert np.array_equal(stitched.object, (expected > 0).astype(complex))


def test_where_patches_disagree_the_light_decides() -> None:
    patches = np.stack([np.full((1, N, N), 1.0), np.full((1, N, N), 4.0)]).astype(np.complex64)
    positions = np.array([[[20.0, 20.0]], [[20.0, 22.0]]])
    probe = gaussian_probe(N, 0.5, 0)
    near_first = stitch(patches, positions, probe).object[N // 2]
    assert np.all(np.diff(np.abs(near_first[2:N])) > 0), "the picture goes over from the first to the second patch"
    assert np.abs(near_first[N // 2 + 1]) == pytest.approx(2.5), "half-way between, both count the same"


def test_moving_every_position_moves_the_origin_only() -> None:
    positions = np.random.default_rng(1).uniform(10, 20, size=(5, 1, 2))
    patches = np.random.default_rng(2).normal(size=(5, 1, N, N)).astype(np.complex64)
    first = stitch(patches, positions, disk_probe(N, 0.5))
    moved = stitch(patches, positions + np.array([100, -7]), disk_probe(N, 0.5))
    assert np.array_equal(first.object, moved.object)
    assert np.array_equal(moved.origin_px - first.origin_px, [100, -7])


@pytest.mark.parametrize(("offset", "pixel"), [(0.4, 0), (0.5, 1), (0.6, 1), (-0.5, 0), (-0.6, -1)])
def test_parts_of_a_pixel_are_rounded_halves_up(offset: float, pixel: int) -> None:
    position = np.array([[[20.0 + offset, 20.0]]])
    assert stitch(np.ones((1, 1, N, N)), position, disk_probe(N, 1)).origin_px[0] == 20 - N // 2 + pixel


def test_phases_of_patches_are_brought_together() -> None:
    obj, positions = field(), raster_scan(SIZE, N, 3, 1)
    probe = gaussian_probe(N, 0.5, 1.0)
    patches = extract_patches(obj, positions, N)
    turns = np.exp(1j * np.random.default_rng(3).uniform(-np.pi, np.pi, size=(len(patches), 1, 1, 1)))
    aligned = align_patch_phases((patches * turns).astype(np.complex64), positions, probe)
    assert aligned == pytest.approx(patches * turns[0], abs=1e-4)


def test_a_patch_that_overlaps_nothing_keeps_its_phase() -> None:
    patches = np.exp(1j * np.array([0.3, 1.1]))[:, None, None, None] * np.ones((2, 1, N, N))
    positions = np.array([[[10.0, 10.0]], [[50.0, 50.0]]])
    aligned = align_patch_phases(patches, positions, disk_probe(N, 0.5))
    assert aligned == pytest.approx(patches, abs=1e-6)


@pytest.mark.parametrize(
    ("patches", "positions", "probe"),
    [((2, N, N), (2, 1, 2), (1, N, N)), ((2, 1, N, N), (2, 2), (1, N, N)), ((2, 1, N, N), (2, 1, 2), (1, 8, 8))],
)
def test_shapes_that_do_not_go_together_are_refused(
    patches: tuple[int, ...], positions: tuple[int, ...], probe: tuple[int, ...]
) -> None:
    with pytest.raises(InputError, match="do not go together"):
        stitch(np.ones(patches), np.ones(positions), np.ones(probe))
