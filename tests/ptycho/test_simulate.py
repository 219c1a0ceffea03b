"""The simulated experiment, held against the physics it stands for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptycho.config.config import DataConfig
from ptycho.errors import InputError
from ptycho.objects import lines_object, phase_of, random_lines
from ptycho.scan import extract_patches, neighbour_groups, raster_scan
from ptycho.simulate import diffraction_intensity, simulate_grid_lines

SMALL = DataConfig(object_size=40, n_lines=30, outer_offset_train=8, outer_offset_test=16)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_field(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    draw = rng(seed).normal(size=(2, *shape))
    return draw[0] + 1j * draw[1]


def test_intensities_of_a_frame_sum_to_the_power_of_the_exit_wave() -> None:
    patch, probe = random_field((5, 16, 16)), random_field((2, 16, 16), 1)
    exit_power = np.sum(np.abs(patch[:, None] * probe) ** 2, axis=(1, 2, 3))
    assert diffraction_intensity(patch, probe).sum(axis=(1, 2)) == pytest.approx(exit_power)


def test_a_flat_object_under_a_flat_probe_is_one_bright_pixel_at_the_centre() -> None:
    intensity = diffraction_intensity(np.ones((8, 8)), np.ones((1, 8, 8)))
    assert intensity[4, 4] == pytest.approx(64)
    assert intensity.sum() == pytest.approx(64)


def test_a_phase_ramp_shifts_the_pattern() -> None:
    patch, probe = random_field((16, 16)), np.ones((1, 16, 16))
    rows = np.arange(16)[:, None]
    shifted = diffraction_intensity(patch * np.exp(2j * np.pi * 3 * rows / 16), probe)
    assert shifted == pytest.approx(np.roll(diffraction_intensity(patch, probe), 3, axis=0))


@given(st.floats(-np.pi, np.pi), st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_a_global_phase_is_invisible_and_a_scale_acts_squared(phase: float, scale: float) -> None:
    patch, probe = random_field((8, 8)), random_field((1, 8, 8), 1)
    changed = diffraction_intensity(patch * scale * np.exp(1j * phase), probe)
    assert changed == pytest.approx(scale**2 * diffraction_intensity(patch, probe))


def test_probe_modes_add_without_interference() -> None:
    patch, probe = random_field((8, 8)), random_field((2, 8, 8), 1)
    apart = diffraction_intensity(patch, probe[:1]) + diffraction_intensity(patch, probe[1:])
    assert diffraction_intensity(patch, probe) == pytest.approx(apart)


def test_the_grid_lines_object_has_the_published_range() -> None:
    obj = lines_object(392, 400, True, rng())
    assert obj.shape == (392, 392)
    assert obj.dtype == np.complex64
    assert 0.3 < np.abs(obj).min() < 1.2
    assert 4.2 < np.abs(obj).max() < 5.5
    assert -0.9 < np.angle(obj).min() < -0.4
    assert 0.6 < np.angle(obj).max() < 1.2


def test_without_a_phase_the_object_is_real_and_otherwise_the_same() -> None:
    plain, phased = lines_object(40, 30, False, rng()), lines_object(40, 30, True, rng())
    assert np.all(plain.imag == 0)
    assert np.abs(phased) == pytest.approx(plain.real, rel=1e-5)
    assert np.ptp(np.angle(phased)) > 0.1


def test_lines_join_their_ends_without_gaps() -> None:
    canvas = random_lines(50, 1, rng(3))
    r0, c0, r1, c1 = rng(3).integers(0, 50, size=(1, 4))[0]
    assert canvas[r0, c0] == canvas[r1, c1] == 1
    assert canvas.sum() == max(abs(r1 - r0), abs(c1 - c0)) + 1


def test_an_object_without_any_amplitude_has_phase_zero() -> None:
    assert np.all(phase_of(np.zeros((4, 4))) == 0)


@pytest.mark.parametrize(("stride", "frames"), [(4, 6889), (10, 1089)])
def test_the_raster_gives_the_published_numbers_of_frames(stride: int, frames: int) -> None:
    assert raster_scan(392, 64, stride, 1).shape == (frames, 1, 2)


@given(st.integers(8, 16), st.integers(0, 40), st.integers(1, 6), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_every_raster_frame_lies_inside_and_is_used_once(N: int, extra: int, stride: int, gridsize: int) -> None:
    size = N + (gridsize - 1) * stride + extra
    positions = raster_scan(size, N, stride, gridsize)
    assert positions.min() >= N // 2
    assert positions.max() - N // 2 + N <= size
    flat = positions.reshape(-1, 2)
    assert len(np.unique(flat, axis=0)) == len(flat)
    assert np.ptp(positions, axis=1).max() == (gridsize - 1) * stride
    extract_patches(np.zeros((size, size), np.complex64), positions, N)


def test_a_patch_is_the_object_around_its_position() -> None:
    obj = random_field((20, 30)).astype(np.complex64)
    patch = extract_patches(obj, np.array([[[9.0, 12.4]]], np.float32), 8)
    assert np.array_equal(patch[0, 0], obj[5:13, 8:16])


@pytest.mark.parametrize("position", [(3, 10), (17, 10), (10, 3), (10, 27)])
def test_a_patch_beyond_the_object_is_refused(position: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="beyond the object of 20 x 30"):
        extract_patches(np.zeros((20, 30), np.complex64), np.array([position], np.float32), 8)


def test_neighbour_groups_use_each_position_once_and_are_compact() -> None:
    positions = rng().uniform(0, 100, size=(403, 2)).astype(np.float32)
    groups = neighbour_groups(positions, 4)
    assert groups.shape == (100, 4)
    assert len(np.unique(groups)) == 400
    assert np.ptp(positions[groups], axis=1).mean() < 10
    with pytest.raises(InputError, match="3 frames are too few"):
        neighbour_groups(positions[:3], 4)


@pytest.mark.parametrize("gridsize", [1, 2])
def test_the_simulation_fills_every_field_consistently(gridsize: int) -> None:
    splits = simulate_grid_lines(SMALL, 16, gridsize, 5)
    assert splits.train.n_frames + splits.validation.n_frames == (7 // gridsize) ** 2
    assert splits.test.n_frames == (4 // gridsize) ** 2
    for part in (splits.train, splits.validation, splits.test):
        assert part.amplitude.shape[1] == gridsize**2
        assert part.amplitude.dtype == part.positions_px.dtype == np.float32
        assert part.patches_true is not None
        assert part.object_true is not None
        assert np.array_equal(part.patches_true, extract_patches(part.object_true, part.positions_px, 16))
        assert part.photons_per_intensity == splits.train.photons_per_intensity


def test_the_test_object_is_another_one_and_validation_frames_are_apart() -> None:
    splits = simulate_grid_lines(SMALL, 16, 1, 5)
    assert np.array_equal(splits.train.object_true, splits.validation.object_true)
    assert not np.array_equal(splits.train.object_true, splits.test.object_true)
    both = np.concatenate([splits.train.positions_px, splits.validation.positions_px])[:, 0]
    assert len(np.unique(both, axis=0)) == len(both) == 49
    assert splits.validation.n_frames == 5


def test_frames_carry_the_photons_asked_for_on_average() -> None:
    splits = simulate_grid_lines(SMALL, 16, 1, 5)
    counts = np.concatenate([splits.train.counts(), splits.validation.counts()])
    assert counts.sum(axis=(2, 3)).mean() == pytest.approx(1e9, rel=1e-3)


def test_counts_are_whole_numbers_with_poisson_variance() -> None:
    splits = simulate_grid_lines(dataclasses.replace(SMALL, nphotons=2e4), 16, 1, 5)
    train = splits.train
    counts = train.counts().astype(np.float64)
    assert counts == pytest.approx(np.rint(counts), abs=1e-2)
    expected = diffraction_intensity(train.patches_true, train.probe) * train.photons_per_intensity
    pull = (counts - expected)[expected > 5] / np.sqrt(expected[expected > 5])
    assert pull.size > 1000
    assert np.mean(pull) == pytest.approx(0, abs=0.1)
    assert np.var(pull) == pytest.approx(1, abs=0.1)


def test_amplitudes_do_not_depend_on_the_photons_where_there_are_many() -> None:
    bright = simulate_grid_lines(dataclasses.replace(SMALL, nphotons=1e12), 16, 1, 5).train
    ideal = np.sqrt(diffraction_intensity(bright.patches_true, bright.probe))
    assert bright.amplitude == pytest.approx(ideal, abs=float(1e-4 * ideal.max()))


def test_the_seed_decides_everything() -> None:
    first, again, other = (simulate_grid_lines(SMALL, 16, 1, seed) for seed in (5, 5, 6))
    for part in ("train", "validation", "test"):
        assert getattr(first, part).digest() == getattr(again, part).digest()
        assert getattr(first, part).digest() != getattr(other, part).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"object_size": 44},
        {"n_lines": 31},
        {"set_phi": False},
        {"outer_offset_train": 6},
        {"nphotons": 1e6},
        {"probe": "gaussian"},
        {"probe_diameter": 0.4},
        {"probe": "gaussian", "probe_defocus": 2.0},
        {"validation_fraction": 0.3},
    ],
    ids=str,
)
def test_every_data_setting_changes_the_training_frames(change: dict[str, object]) -> None:
    before = simulate_grid_lines(SMALL, 16, 1, 5).train
    after = simulate_grid_lines(dataclasses.replace(SMALL, **change), 16, 1, 5).train
    assert before.digest() != after.digest()


def test_the_test_scan_has_a_step_of_its_own() -> None:
    before = simulate_grid_lines(SMALL, 16, 1, 5)
    after = simulate_grid_lines(dataclasses.replace(SMALL, outer_offset_test=10), 16, 1, 5)
    assert after.test.n_frames == 25
    assert before.train.digest() == after.train.digest()


@pytest.mark.parametrize("size", [16, 17, 20])
def test_an_object_as_small_as_two_frames_works(size: int) -> None:
    data = dataclasses.replace(SMALL, object_size=size + 1, outer_offset_train=2)
    assert simulate_grid_lines(data, 16, 1, 0).validation.n_frames >= 1


@pytest.mark.parametrize(
    ("change", "N", "message"),
    [
        ({"object_size": 20}, 32, "object_size: 20 px is too small"),
        ({"object_size": 16}, 16, "training and validation need 2"),
        ({"nphotons": 1e30}, 16, "nphotons: the brightest pixel"),
    ],
)
def test_an_impossible_simulation_is_one_clear_error(change: dict[str, float], N: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate_grid_lines(dataclasses.replace(SMALL, **change), N, 1, 0)
