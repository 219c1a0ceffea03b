"""Both losses against plain NumPy in float64, and what each promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from ptycho.arrays import PtychoArrays
from ptycho_torch.losses import BACKGROUND_PHOTONS, LOSSES, TINY_INTENSITY, LossScale

EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)
SCALE = LossScale(amplitude=1.3, intensity=2.1, photons_per_intensity=400.0)


def intensities(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 + 5 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def twin(name: str, predicted: Tensor, amplitude: Tensor, scale: LossScale) -> NDArray[Any]:
    """Frame by frame, pixel by pixel, in float64."""
    losses = []
    for rate, measured in zip(predicted.double().numpy(), amplitude.double().numpy(), strict=True):
        if name == "mae":
            losses.append(np.mean(np.abs(np.sqrt(rate + TINY_INTENSITY) - measured)) / scale.amplitude)
        else:
            expected = rate * scale.photons_per_intensity + BACKGROUND_PHOTONS
            counts = measured**2 * scale.photons_per_intensity + BACKGROUND_PHOTONS
            deviance = expected - counts + counts * np.log(counts / expected)
            losses.append(deviance.mean() / scale.photons_per_intensity / scale.intensity)
    return np.array(losses)


@EVERY_LOSS
def test_it_equals_the_twin_frame_by_frame(name: str) -> None:
    predicted, amplitude = intensities(5, 2, 4, 4), intensities(5, 2, 4, 4, seed=1).sqrt()
    losses = LOSSES[name](predicted, amplitude, SCALE)
    assert losses.shape == (5,)
    np.testing.assert_allclose(losses.numpy(), twin(name, predicted, amplitude, SCALE), rtol=1e-5)


@EVERY_LOSS
def test_a_frames_loss_is_its_own(name: str) -> None:
    predicted, amplitude = intensities(5, 2, 4, 4), intensities(5, 2, 4, 4, seed=1).sqrt()
    alone = torch.cat([LOSSES[name](p[None], a[None], SCALE) for p, a in zip(predicted, amplitude, strict=True)])
    torch.testing.assert_close(LOSSES[name](predicted, amplitude, SCALE), alone)


@EVERY_LOSS
def test_the_truth_costs_nothing_and_all_else_more(name: str) -> None:
    truth = intensities(3, 1, 4, 4).double()
    least = LOSSES[name](truth, truth.sqrt(), SCALE)
    assert least.abs().max() < 1e-9
    for factor in (0.5, 0.99, 1.01, 2.0):
        assert (LOSSES[name](factor * truth, truth.sqrt(), SCALE) > 10 * least.abs() + 1e-6).all()


def test_the_poisson_slope_vanishes_at_the_truth() -> None:
    truth = intensities(3, 1, 4, 4).double()
    predicted = truth.clone().requires_grad_()
    LOSSES["poisson"](predicted, truth.sqrt(), SCALE).sum().backward()
    assert predicted.grad.abs().max() < 1e-12


def test_the_poisson_loss_is_the_likelihood_of_counts() -> None:
    """Far above the background, two predictions differ as SciPy's Poisson probabilities do."""
    counts = torch.randint(20_000, 90_000, (1, 1, 4, 4)).double()
    amplitude = (counts / SCALE.photons_per_intensity).sqrt()
    log_likelihood, loss = [], []
    for seed in (1, 2):
        rate = counts * (0.9 + 0.2 * torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(seed)))
        log_likelihood.append(stats.poisson.logpmf(counts.numpy(), rate.numpy()).mean())
        loss.append(float(LOSSES["poisson"](rate / SCALE.photons_per_intensity, amplitude, SCALE)))
    photons = SCALE.photons_per_intensity * SCALE.intensity
    assert (loss[0] - loss[1]) * photons == pytest.approx(log_likelihood[1] - log_likelihood[0], rel=1e-4)


@EVERY_LOSS
@pytest.mark.parametrize("measured", [0.0, 1.0])
def test_no_intensity_at_all_has_a_finite_slope(name: str, measured: float) -> None:
    predicted = torch.zeros(2, 1, 4, 4, requires_grad=True)
    losses = LOSSES[name](predicted, torch.full((2, 1, 4, 4), measured), SCALE)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert predicted.grad.isfinite().all()
    assert (predicted.grad != 0).all() or (name == "poisson" and measured == 0)


@EVERY_LOSS
def test_the_unit_of_intensity_does_not_matter(name: str) -> None:
    predicted, amplitude = intensities(3, 1, 4, 4), intensities(3, 1, 4, 4, seed=1).sqrt()
    other = LossScale(
        amplitude=SCALE.amplitude * 10,
        intensity=SCALE.intensity * 100,
        photons_per_intensity=SCALE.photons_per_intensity / 100,
    )
    torch.testing.assert_close(
        LOSSES[name](100 * predicted, 10 * amplitude, other), LOSSES[name](predicted, amplitude, SCALE)
    )


def test_an_empty_prediction_costs_one_in_mae() -> None:
    amplitude = intensities(50, 1, 8, 8).sqrt()
    scale = LossScale(amplitude=float(amplitude.mean()), intensity=1.0, photons_per_intensity=1.0)
    assert float(LOSSES["mae"](torch.zeros_like(amplitude), amplitude, scale).mean()) == pytest.approx(1, abs=1e-5)


def test_the_scale_is_what_the_frames_measure_on_average() -> None:
    amplitude = intensities(6, 1, 4, 4).sqrt().numpy()
    arrays = PtychoArrays(
        amplitude=amplitude,
        positions_px=np.zeros((6, 1, 2), np.float32),
        probe=np.ones((1, 4, 4), np.complex64),
        photons_per_intensity=7.0,
    )
    scale = LossScale.of(arrays)
    assert scale.amplitude == pytest.approx(amplitude.mean(), rel=1e-6)
    assert scale.intensity == pytest.approx((amplitude**2).mean(), rel=1e-6)
    assert scale.photons_per_intensity == 7.0
