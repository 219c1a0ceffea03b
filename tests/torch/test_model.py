"""The network with its physics, and the numbers that a validation adds up."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ptycho.arrays import ScanSplits
from ptycho.simulate import diffraction_intensity
from ptycho_torch.config_params import ModelConfig
from ptycho_torch.dataset import evaluation_loader
from ptycho_torch.losses import LOSSES, LossScale
from ptycho_torch.model import PtychoPINN, build_model, evaluation_record, spread_sums
from ptycho_torch.telemetry import EvalRecord

SMALL = ModelConfig(N=16, fno_width=4, fno_modes=3, fno_blocks=2)


def probe(modes: int = 2, size: int = 16) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(modes, size, size)) + 1j * rng.normal(size=(modes, size, size))).astype(np.complex64)


def model_and_frames(**changes: Any) -> tuple[PtychoPINN, Tensor]:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, **changes)
    return build_model(config, probe(), seed=0), 5 * torch.rand(3, config.gridsize**2, 16, 16)


@pytest.mark.parametrize("gridsize", [1, 2])
def test_the_intensity_is_what_the_patches_diffract(gridsize: int) -> None:
    model, frames = model_and_frames(gridsize=gridsize)
    prediction = model(frames)
    assert torch.equal(prediction.patches, model.generator(frames))
    expected = diffraction_intensity(prediction.patches.detach().numpy(), probe())
    np.testing.assert_allclose(prediction.intensity.detach().numpy(), expected, rtol=1e-3, atol=1e-5)


def test_the_probe_is_kept_and_never_trained() -> None:
    model, _ = model_and_frames()
    assert "probe" in model.state_dict()
    assert all(parameter is not model.probe for parameter in model.parameters())
    np.testing.assert_array_equal(model.probe.numpy(), probe())


def test_physics_stays_in_full_precision_under_autocast() -> None:
    model, frames = model_and_frames()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = model(frames)
    assert prediction.patches.dtype == torch.complex64
    assert prediction.intensity.dtype == torch.float32
    expected = diffraction_intensity(prediction.patches.detach().numpy(), probe())
    np.testing.assert_allclose(prediction.intensity.detach().numpy(), expected, rtol=1e-3, atol=1e-5)
    assert not torch.equal(prediction.patches, model(frames).patches)


# spread and loss of a validation


def record_of(patches: Tensor, loss: float = 1.0) -> EvalRecord:
    counts = torch.tensor([loss * len(patches), len(patches)], dtype=torch.float64)
    return evaluation_record(7, [torch.cat((counts, spread_sums(patches)))])


def test_spreads_are_those_of_scipy() -> None:
    rng = np.random.default_rng(1)
    amplitude, phase = rng.uniform(0.5, 2, (4, 1, 8, 8)), rng.normal(0.3, 0.4, (4, 1, 8, 8))
    record = record_of(torch.from_numpy(amplitude * np.exp(1j * phase)))
    assert record.step == 7
    assert record.amp_spread == pytest.approx(amplitude.std() / amplitude.mean(), rel=1e-9)
    assert record.phase_spread == pytest.approx(stats.circstd(phase), rel=1e-9)


def test_batches_add_up_to_the_whole() -> None:
    patches = torch.randn(7, 1, 8, 8, dtype=torch.complex64)
    losses = torch.rand(7, dtype=torch.float64)
    parts = [
        torch.cat((torch.stack((loss.sum(), torch.tensor(float(len(loss))))), spread_sums(part)))
        for part, loss in zip(patches.split(3), losses.split(3), strict=True)
    ]
    record = evaluation_record(0, parts)
    assert record.val_loss == pytest.approx(float(losses.mean()))
    whole = record_of(patches)
    assert (record.amp_spread, record.phase_spread) == pytest.approx((whole.amp_spread, whole.phase_spread))


def test_one_amplitude_everywhere_has_no_spread() -> None:
    constant = record_of(torch.full((4, 1, 8, 8), 0.7 - 0.2j, dtype=torch.complex64))
    assert constant.amp_spread < 1e-6
    assert constant.phase_spread < 1e-3


def test_no_object_at_all_is_no_error() -> None:
    nothing = record_of(torch.zeros(4, 1, 8, 8, dtype=torch.complex64))
    assert nothing.amp_spread == 0
    assert math.isnan(nothing.phase_spread)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_pixel_that_is_not_finite_shows(bad: float) -> None:
    patches = torch.ones(4, 1, 8, 8, dtype=torch.complex64)
    patches[1, 0, 2, 3] = complex(bad, 0)
    record = record_of(patches, loss=bad)
    assert math.isnan(record.amp_spread)
    assert not math.isfinite(record.val_loss)


def test_a_validation_counts_every_frame_once(toy_fit: Callable[..., Any], toy_splits: ScanSplits) -> None:
    """16 validation frames in batches of 6: the last batch is smaller."""
    fit = toy_fit(max_steps=1)
    (record,) = fit.sink.evals
    frames = torch.from_numpy(toy_splits.validation.amplitude)
    with torch.no_grad():
        prediction = fit.module.model(frames)
    losses = LOSSES["mae"](prediction.intensity, frames, LossScale.of(toy_splits.train))
    assert len(frames) % 6
    assert record.val_loss == pytest.approx(float(losses.double().mean()), rel=1e-6)
    amplitude = prediction.patches.abs().double()
    assert record.amp_spread == pytest.approx(float(amplitude.std(correction=0) / amplitude.mean()), rel=1e-5)


def test_prediction_gives_the_patches(toy_fit: Callable[..., Any], toy_splits: ScanSplits) -> None:
    fit = toy_fit(max_steps=1)
    patches = torch.cat(fit.trainer.predict(fit.module, evaluation_loader(toy_splits.test, 2)))
    with torch.no_grad():
        expected = fit.module.model(torch.from_numpy(toy_splits.test.amplitude)).patches
    torch.testing.assert_close(patches, expected, rtol=1e-4, atol=1e-5)
