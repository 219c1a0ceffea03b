"""Predictions that do not look at their input: each the best of its kind, and in their order."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ptycho.arrays import PtychoArrays, ScanSplits
from ptycho.simulate import diffraction_intensity
from ptycho_torch.baselines import best_constant, best_patch, compute_baselines
from ptycho_torch.losses import LOSSES, LossScale
from ptycho_torch.physics import diffract

EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES)


def noiseless(n_frames: int, patches: np.ndarray | None = None, size: int = 8) -> PtychoArrays:
    """Frames of a random object (or of given patches) under a random probe of two modes."""
    rng = np.random.default_rng(3)
    probe = (rng.normal(size=(2, size, size)) + 1j * rng.normal(size=(2, size, size))).astype(np.complex64)
    if patches is None:
        patches = 1 + 0.5 * rng.normal(size=(n_frames, 1, size, size)) + 0.5j
    return PtychoArrays(
        amplitude=np.sqrt(diffraction_intensity(patches, probe)).astype(np.float32),
        positions_px=np.zeros((n_frames, 1, 2), np.float32),
        probe=probe,
        photons_per_intensity=100.0,
        patches_true=patches.astype(np.complex64),
    )


@EVERY_LOSS
def test_the_truth_beats_the_best_patch_beats_the_best_constant(toy_splits: ScanSplits, loss: str) -> None:
    baselines = compute_baselines(toy_splits, loss)
    assert baselines.oracle is not None
    assert 0 < baselines.oracle < 0.5 * baselines.mean_patch
    assert baselines.mean_patch < baselines.constant


@EVERY_LOSS
def test_the_constant_is_the_best_one(loss: str) -> None:
    arrays = noiseless(20)
    frames, probe, scale = torch.from_numpy(arrays.amplitude), torch.from_numpy(arrays.probe), LossScale.of(arrays)

    def mean_loss(constant: float) -> float:
        flat = torch.full((1, 1, 8, 8), constant, dtype=torch.complex64)
        return float(LOSSES[loss](diffract(flat, probe), frames, scale).mean())

    found = best_constant(frames, probe, loss, scale)
    assert mean_loss(found) <= min(mean_loss(found * factor) for factor in (0.5, 0.97, 1.03, 2.0))


def test_the_best_constant_of_the_poisson_loss_matches_the_mean_counts() -> None:
    """Its slope is zero where expected and measured counts have the same sum."""
    arrays = dataclasses.replace(noiseless(20), photons_per_intensity=1e9)
    probe = torch.from_numpy(arrays.probe)
    empty = diffract(torch.ones(1, 1, 8, 8, dtype=torch.complex64), probe)
    found = best_constant(torch.from_numpy(arrays.amplitude), probe, "poisson", LossScale.of(arrays))
    assert found**2 == pytest.approx(float((arrays.amplitude**2).mean() / empty.mean()), rel=1e-3)


@EVERY_LOSS
def test_the_patch_explains_frames_that_are_all_alike(loss: str) -> None:
    patch = 1 + 0.3 * np.random.default_rng(0).normal(size=(1, 1, 8, 8)) + 0.2j
    arrays = noiseless(6, np.repeat(patch, 6, axis=0))
    frames, probe, scale = torch.from_numpy(arrays.amplitude), torch.from_numpy(arrays.probe), LossScale.of(arrays)
    flat = torch.ones(1, 8, 8, dtype=torch.complex64)
    found = best_patch(frames, probe, loss, scale, flat)
    before, after = (float(LOSSES[loss](diffract(p[None], probe), frames, scale).mean()) for p in (flat, found))
    assert after < 0.1 * before


def test_the_poisson_patch_needs_the_mean_frame_only() -> None:
    """The short cut of the fit: all frames and their mean intensity have the same slope."""
    arrays = noiseless(10)
    frames, probe, scale = torch.from_numpy(arrays.amplitude), torch.from_numpy(arrays.probe), LossScale.of(arrays)
    slopes = []
    for measured in (frames, (frames**2).mean(0, keepdim=True).sqrt()):
        patch = torch.full((1, 8, 8), 1 + 0.1j, dtype=torch.complex64, requires_grad=True)
        LOSSES["poisson"](diffract(patch[None], probe), measured, scale).mean().backward()
        slopes.append(patch.grad)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-6)


def test_without_a_truth_there_is_no_oracle_and_all_else_is_the_same(toy_splits: ScanSplits) -> None:
    unknown = dataclasses.replace(toy_splits.validation, patches_true=None)
    baselines = compute_baselines(dataclasses.replace(toy_splits, validation=unknown), "poisson")
    assert baselines == dataclasses.replace(compute_baselines(toy_splits, "poisson"), oracle=None)


@EVERY_LOSS
def test_the_validation_frames_are_scored_frame_by_frame(loss: str) -> None:
    """More frames than are worked on at once: the oracle is the mean over all of them."""
    arrays = noiseless(300)
    noisy = dataclasses.replace(
        arrays, amplitude=arrays.amplitude * np.linspace(0.9, 1.3, 300)[:, None, None, None].astype("f4")
    )
    splits = ScanSplits(train=noiseless(20), validation=noisy, test=noisy)
    scale = LossScale.of(splits.train)
    predicted = diffract(torch.from_numpy(arrays.patches_true), torch.from_numpy(arrays.probe))
    expected = float(LOSSES[loss](predicted, torch.from_numpy(noisy.amplitude), scale).mean())
    assert compute_baselines(splits, loss).oracle == pytest.approx(expected, rel=1e-5)
