"""Every algorithm against a slow, obvious twin: plain loops over NumPy arrays in double precision.

A twin takes gradients and weights as lists of arrays, step after step, keeps its history in plain
lists and numbers, and returns the gradients that the optimizer should see, or None for a step that
is to be left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from ptycho_torch.train_utils import ALGORITHMS, GradientClipper, clip_gradients_

Arrays = list[NDArray[np.complex128]]
Twin = Callable[[Arrays, Arrays], Arrays | None]
EPS = 1e-3


def norm(array: NDArray[np.complex128]) -> float:
    return math.sqrt(sum(abs(complex(x)) ** 2 for x in array.ravel()))


def total(gradients: Arrays) -> float:
    return math.sqrt(sum(norm(g) ** 2 for g in gradients))


def bounded(array: NDArray[np.complex128], bound: float) -> NDArray[np.complex128]:
    size = norm(array)
    return array * (bound / size) if size > bound else array


def bounded_jointly(gradients: Arrays, bound: float) -> Arrays:
    size = total(gradients)
    return [g * (bound / size) if size > bound else g for g in gradients]


def twin_none(threshold: float) -> Twin:
    return lambda gradients, weights: gradients


def twin_norm(threshold: float) -> Twin:
    return lambda gradients, weights: bounded_jointly(gradients, threshold)


def twin_value(threshold: float) -> Twin:
    def clamp(x: complex) -> complex:
        return complex(max(-threshold, min(threshold, x.real)), max(-threshold, min(threshold, x.imag)))

    return lambda gradients, weights: [np.vectorize(clamp, otypes=[complex])(g) for g in gradients]


def twin_agc(threshold: float) -> Twin:
    return lambda gradients, weights: [
        bounded(g, threshold * max(norm(w), EPS)) for g, w in zip(gradients, weights, strict=True)
    ]


def twin_agc_unit(threshold: float) -> Twin:
    def clip(g: NDArray[np.complex128], w: NDArray[np.complex128]) -> NDArray[np.complex128]:
        if g.ndim < 2:
            return bounded(g, threshold * max(norm(w), EPS))
        return np.stack([bounded(gu, threshold * max(norm(wu), EPS)) for gu, wu in zip(g, w, strict=True)])

    return lambda gradients, weights: [clip(g, w) for g, w in zip(gradients, weights, strict=True)]


def twin_autoclip(threshold: float) -> Twin:
    history: list[float] = []

    def step(gradients: Arrays, weights: Arrays) -> Arrays:
        history.append(total(gradients))
        return bounded_jointly(gradients, float(np.percentile(history, threshold)))

    return step


def twin_zclip(threshold: float) -> Twin:
    warmup: list[float] = []
    mean = variance = None

    def step(gradients: Arrays, weights: Arrays) -> Arrays:
        nonlocal mean, variance
        size = total(gradients)
        if mean is None or variance is None:
            warmup.append(size)
            if len(warmup) == 25:
                mean, variance = statistics.fmean(warmup), statistics.pvariance(warmup)
            return gradients
        z = (size - mean) / (math.sqrt(variance) + 1e-6 * mean)
        bound = mean + threshold * math.sqrt(variance) / (z / threshold) if z > threshold else size
        mean = 0.97 * mean + 0.03 * bound
        variance = 0.97 * variance + 0.03 * (bound - mean) ** 2
        return bounded_jointly(gradients, bound)

    return step


def twin_adagc(threshold: float) -> Twin:
    averages: list[float] = []
    steps = 0

    def step(gradients: Arrays, weights: Arrays) -> Arrays:
        nonlocal averages, steps
        steps += 1
        if steps <= 100:
            clipped = bounded_jointly(gradients, 1.0)
            sizes = [norm(g) for g in clipped]
            averages = [min(a, s) for a, s in zip(averages, sizes, strict=True)] if averages else sizes
            return clipped
        clipped = [bounded(g, threshold * a) for g, a in zip(gradients, averages, strict=True)]
        averages = [0.98 * a + 0.02 * norm(g) for a, g in zip(averages, clipped, strict=True)]
        return clipped

    return step


def twin_skip(threshold: float) -> Twin:
    history: list[float] = []

    def step(gradients: Arrays, weights: Arrays) -> Arrays | None:
        size, past = total(gradients), sorted(history[-128:])
        history.append(size)
        spike = len(past) >= 16 and size > threshold * past[(len(past) - 1) // 2]
        return None if spike else gradients

    return step


TWINS: dict[str, Callable[[float], Twin]] = {
    "none": twin_none,
    "norm": twin_norm,
    "value": twin_value,
    "agc": twin_agc,
    "agc_unit": twin_agc_unit,
    "autoclip": twin_autoclip,
    "zclip": twin_zclip,
    "adagc": twin_adagc,
    "skip": twin_skip,
}
SHAPES = [((3, 2, 3, 2), torch.complex128), ((4, 3), torch.float64), ((4,), torch.float64), ((), torch.float64)]


def weights_of(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(0.3 * torch.randn(shape, dtype=dtype, generator=generator)) for shape, dtype in SHAPES]


def give_gradients(parameters: list[nn.Parameter], step: int) -> None:
    """Gradients whose size wanders from step to step, with a spike in every tenth."""
    generator = torch.Generator().manual_seed(1000 + step)
    size = float(torch.rand((), generator=generator)) + 0.2 + (30.0 if step % 10 == 9 else 0.0)
    for p in parameters:
        p.grad = 0.2 * size * torch.randn(p.shape, dtype=p.dtype, generator=generator)


def arrays(tensors: list[torch.Tensor]) -> Arrays:
    return [t.detach().numpy().astype(np.complex128) for t in tensors]


def test_there_is_a_twin_for_every_algorithm() -> None:
    assert set(TWINS) == set(ALGORITHMS)


@pytest.mark.parametrize("algorithm", TWINS)
def test_equals_its_twin_step_after_step(algorithm: str) -> None:
    parameters = weights_of(seed=0)
    threshold = ALGORITHMS[algorithm].default
    twin = TWINS[algorithm](threshold)
    clipper = GradientClipper(enumerate_names(parameters), algorithm=algorithm, threshold=threshold)
    clipped_steps = 0
    for step in range(160):
        give_gradients(parameters, step)
        before, weights = arrays([p.grad for p in parameters]), arrays(parameters)
        expected = twin(before, weights)
        report = clipper()
        got = arrays([p.grad for p in parameters])
        assert bool(report.keep) == (expected is not None)
        assert float(report.norm_before) == pytest.approx(total(before), rel=1e-12)
        for array, wanted in zip(got, before if expected is None else expected, strict=True):
            np.testing.assert_allclose(array, wanted, rtol=1e-12, atol=1e-300)
        assert float(report.norm_after) == pytest.approx(0.0 if expected is None else total(expected), rel=1e-12)
        clipped_steps += float(report.clipped_fraction) > 0
    assert (clipped_steps > 0) == (algorithm != "none")


def enumerate_names(parameters: list[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    return [(f"layer.{i}", p) for i, p in enumerate(parameters)]


@pytest.mark.parametrize("algorithm", TWINS)
def test_the_optimizer_sees_the_clipped_gradient_in_two_steps_of_training(algorithm: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 2)).double()
    rate, threshold = 0.1, 0.5 if ALGORITHMS[algorithm].default else 0.0
    twin = TWINS[algorithm](threshold)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    clipper = GradientClipper(model, algorithm=algorithm, threshold=threshold)
    parameters = list(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        (20 * model(torch.randn(5, 1, 8, dtype=torch.float64))).square().mean().backward()
        weights = arrays(parameters)
        expected = twin(arrays([p.grad for p in parameters]), weights)
        if bool(clipper().keep):
            optimizer.step()
        assert expected is not None
        for new, old, gradient in zip(arrays(parameters), weights, expected, strict=True):
            np.testing.assert_allclose((old - new) / rate, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("algorithm", TWINS)
def test_the_plain_function_with_a_state_equals_the_clipper(algorithm: str) -> None:
    ours, theirs = weights_of(seed=0), weights_of(seed=0)
    threshold = ALGORITHMS[algorithm].default
    clipper = GradientClipper(ours, algorithm=algorithm, threshold=threshold)
    state: dict[str, object] = {}
    for step in range(30):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        kept = bool(clipper().keep)
        assert bool(clip_gradients_(theirs, algorithm=algorithm, threshold=threshold, state=state).keep) == kept
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.grad, b.grad)
