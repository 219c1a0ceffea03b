"""Scores: what must not matter does not, what must does, and edge cases are defined."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from ptycho.alignment import align, fit_tilt, phase_tilt
from ptycho.errors import InputError
from ptycho.metrics import Scores, fourier_ring_correlation, frc50, r_factor, score
from ptycho.objects import lines_object

H = 48


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return lines_object(H, 60, True, np.random.default_rng(0))


def noise(seed: int, scale: float = 1.0) -> np.ndarray:
    draw = np.random.default_rng(seed).normal(scale=scale, size=(2, H, H))
    return draw[0] + 1j * draw[1]


def test_a_perfect_reconstruction_is_perfect(truth: np.ndarray) -> None:
    scores = score(truth, truth, 4)
    assert (scores.amp_ssim, scores.phase_ssim, scores.frc50) == (pytest.approx(1), pytest.approx(1), 1.0)
    assert max(scores.amp_mae, scores.phase_mae, scores.amp_mse, scores.phase_mse) < 1e-6
    assert min(scores.amp_psnr, scores.phase_psnr) > 100


@given(
    st.floats(-np.pi, np.pi),
    st.floats(0.01, 100),
    st.floats(-0.2, 0.2),
    st.floats(-0.2, 0.2),
)
@settings(max_examples=25, deadline=None)
def test_global_phase_scale_and_tilt_do_not_matter(phase: float, scale: float, row: float, column: float) -> None:
    truth = lines_object(H, 60, True, np.random.default_rng(0))
    blurred = gaussian_filter(truth, 1.5)
    changed = blurred * scale * np.exp(1j * phase) * phase_tilt(truth.shape, np.array([row, column]))
    before, after = score(blurred, truth), score(changed, truth)
    for field in dataclasses.fields(Scores):
        assert getattr(after, field.name) == pytest.approx(getattr(before, field.name), rel=1e-3, abs=1e-5), field.name


def test_the_phase_of_the_truth_itself_does_not_matter(truth: np.ndarray) -> None:
    found = truth + noise(1, 0.1)
    before, after = score(found, truth), score(found, truth * np.exp(3.1j))
    assert after.phase_ssim == pytest.approx(before.phase_ssim, rel=1e-4)
    assert after.phase_mse == pytest.approx(before.phase_mse, rel=1e-4)


def test_a_known_error_of_the_phase_is_found_in_its_scores(truth: np.ndarray) -> None:
    checks = 0.1 * (-1.0) ** np.add.outer(np.arange(H), np.arange(H))
    scores = score(truth * np.exp(1j * checks), truth)
    assert scores.phase_mae == pytest.approx(0.1, rel=0.01)
    assert scores.phase_mse == pytest.approx(0.01, rel=0.02)
    assert scores.phase_psnr == pytest.approx(20 * np.log10(np.ptp(np.angle(truth)) / 0.1), abs=0.2)
    assert scores.amp_mae < 0.01 * np.abs(truth).mean()


def test_a_known_error_of_the_modulus_is_found_in_its_scores(truth: np.ndarray) -> None:
    checks = 0.1 * (-1.0) ** np.add.outer(np.arange(H), np.arange(H))
    found = (np.abs(truth) + checks) * np.exp(1j * np.angle(truth))
    scores = score(found, truth)
    assert scores.amp_mae == pytest.approx(0.1, rel=0.05)
    assert scores.phase_mae < 1e-3
    span = np.ptp(np.abs(truth))
    assert scores.amp_psnr == pytest.approx(10 * np.log10(span**2 / scores.amp_mse))
    expected = structural_similarity(np.abs(align(found, truth)), np.abs(truth).astype(float), data_range=float(span))
    assert scores.amp_ssim == pytest.approx(expected, rel=1e-4)


def test_more_noise_is_worse_in_every_score(truth: np.ndarray) -> None:
    good, bad = score(truth + noise(1, 0.05), truth), score(truth + noise(1, 1.0), truth)
    for name in ("amp_ssim", "phase_ssim", "amp_psnr", "phase_psnr", "frc50"):
        assert getattr(good, name) > getattr(bad, name)
    for name in ("amp_mae", "phase_mae", "amp_mse", "phase_mse"):
        assert getattr(good, name) < getattr(bad, name)


def test_the_border_is_left_out(truth: np.ndarray) -> None:
    spoilt = truth.copy()
    spoilt[:5] = spoilt[-5:] = spoilt[:, :5] = spoilt[:, -5:] = 100
    assert score(spoilt, truth, 5).amp_ssim == pytest.approx(1)
    assert score(spoilt, truth, 4).amp_ssim < 0.9


@pytest.mark.parametrize("value", [0.0, 1.0, 3j, 1e-30])
def test_a_collapsed_reconstruction_scores_badly_and_without_a_warning(truth: np.ndarray, value: complex) -> None:
    scores = score(np.full((H, H), value), truth)
    assert all(math.isfinite(getattr(scores, field.name)) for field in dataclasses.fields(Scores))
    assert scores.amp_ssim < 0.5
    assert scores.phase_ssim < 0.5
    assert scores.phase_mae > 0.05
    assert scores.frc50 < 0.2


def test_a_truth_without_a_phase_has_no_score_for_its_structure() -> None:
    real = lines_object(H, 60, False, np.random.default_rng(0))
    scores = score(real * np.exp(0.3j), real)
    assert math.isnan(scores.phase_ssim)
    assert math.isnan(scores.phase_psnr)
    assert scores.phase_mae == pytest.approx(0, abs=1e-6)
    assert scores.amp_ssim == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_flat_truth_has_differences_and_nothing_else(value: float) -> None:
    scores = score(noise(1), np.full((H, H), value))
    assert math.isnan(scores.amp_ssim)
    assert math.isnan(scores.phase_psnr)
    assert math.isfinite(scores.amp_mae)
    assert scores.frc50 == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf, complex(0, np.nan)])
def test_a_reconstruction_that_is_not_finite_has_no_scores(truth: np.ndarray, value: complex) -> None:
    spoilt = truth.copy()
    spoilt[20, 20] = value
    assert all(math.isnan(getattr(score(spoilt, truth), field.name)) for field in dataclasses.fields(Scores))


@pytest.mark.parametrize(
    ("found", "wanted", "border", "message"),
    [
        (np.ones((9, 9)), np.ones((9, 8)), 0, r"shape \(9, 9\) and a truth of \(9, 8\)"),
        (np.ones((1, 9, 9)), np.ones((1, 9, 9)), 0, "allowed: the same"),
        (np.ones((9, 9)), np.full((9, 9), np.nan), 0, "truth has values that are not finite"),
        (np.ones((9, 12)), np.ones((9, 12)), 2, "border_px 2 leaves 5 px"),
        (np.ones((9, 9)), np.ones((9, 9)), -1, "border_px -1"),
    ],
)
def test_what_cannot_be_scored_is_one_clear_error(
    found: np.ndarray, wanted: np.ndarray, border: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        score(found, wanted, border)


@given(st.floats(-2.5, 2.5), st.floats(-2.5, 2.5))
@settings(max_examples=25, deadline=None)
def test_a_tilt_is_found_however_often_it_wraps(row: float, column: float) -> None:
    slope = np.array([row, column])
    assert fit_tilt(3 * phase_tilt((20, 30), slope)) == pytest.approx(slope, abs=1e-9)


def test_alignment_finds_the_least_squares_factor(truth: np.ndarray) -> None:
    found = truth * 0.5 + noise(2, 0.2)
    aligned = align(found, truth)
    for factor in (0.99, 1.01, np.exp(0.01j), np.exp(-0.01j)):
        assert np.linalg.norm(aligned - truth) < np.linalg.norm(factor * aligned - truth)


def test_a_picture_correlates_fully_with_itself_and_not_with_its_negative(truth: np.ndarray) -> None:
    frequency, correlation = fourier_ring_correlation(truth, truth)
    assert correlation == pytest.approx(1)
    assert frequency[-1] == 1
    assert fourier_ring_correlation(truth, -truth)[1] == pytest.approx(-1)


def test_independent_noise_does_not_correlate() -> None:
    _, correlation = fourier_ring_correlation(noise(1), noise(2))
    assert abs(correlation.mean()) < 0.1
    assert np.abs(correlation[5:]).max() < 0.35


def test_common_structure_below_a_frequency_is_found_there() -> None:
    """Two pictures share what lies below half of Nyquist and have noise of their own above."""
    shape = (128, 96)
    rng = np.random.default_rng(3)
    cut = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(96), indexing="ij")) < 0.25
    shared = np.fft.ifft2(np.fft.fft2(rng.normal(size=shape)) * cut)
    own = [np.fft.ifft2(np.fft.fft2(rng.normal(size=shape)) * ~cut) for _ in range(2)]
    assert frc50(*fourier_ring_correlation(shared + own[0], shared + own[1])) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("correlation", "expected"),
    [([1, 0.8, 0.4, 0.9], 0.5 + 0.75 * 0.25), ([1, 1, 1, 1], 1.0), ([0.4, 1, 1, 1], 0.0), ([1, 0.5, 0.0, 0], 0.5)],
)
def test_frc50_interpolates_the_first_fall(correlation: list[float], expected: float) -> None:
    assert frc50(np.array([0.25, 0.5, 0.75, 1.0]), np.array(correlation)) == pytest.approx(expected)


def test_the_r_factor_is_relative_to_what_was_measured() -> None:
    measured = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    assert r_factor(measured, measured) == 0
    assert r_factor(measured, 0 * measured) == 1
    assert r_factor(measured, 1.1 * measured) == pytest.approx(0.1)
    assert math.isnan(r_factor(0 * measured, measured))
    assert math.isnan(r_factor(measured, measured * np.nan))
    assert math.isnan(r_factor(measured, measured * np.inf))
