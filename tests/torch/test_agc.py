"""Adaptive gradient clipping, called as in any plain training loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ptycho_torch.train_utils import adaptive_gradient_clip_

TENSORS = [
    pytest.param((12,), torch.float32, id="1-D"),
    pytest.param((3, 4), torch.float32, id="2-D"),
    pytest.param((3, 4, 2, 2), torch.float32, id="4-D"),
    pytest.param((3, 4, 2, 2), torch.complex64, id="complex"),
]
UNITWISE = pytest.mark.parametrize("unitwise", [False, True], ids=["tensor", "unit"])


def parameter(shape: tuple[int, ...], dtype: torch.dtype, weight_norm: float, gradient_norm: float) -> nn.Parameter:
    """A parameter of a given norm with a gradient of a given norm, both alike in every unit."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape[1:], dtype=dtype, generator=generator).expand(shape).clone()
    gradient = torch.randn(shape[1:], dtype=dtype, generator=generator).expand(shape).clone()
    p = nn.Parameter(weight * (weight_norm / weight.norm()))
    p.grad = gradient * (gradient_norm / gradient.norm())
    return p


@UNITWISE
@pytest.mark.parametrize(("shape", "dtype"), TENSORS)
def test_agc_clips_large_gradients(shape: tuple[int, ...], dtype: torch.dtype, unitwise: bool) -> None:
    p = parameter(shape, dtype, weight_norm=0.5, gradient_norm=100.0)
    direction = p.grad / p.grad.norm()
    adaptive_gradient_clip_([p], clip_factor=0.01, unitwise=unitwise)
    assert float(p.grad.norm()) == pytest.approx(0.01 * 0.5, rel=1e-6)
    torch.testing.assert_close(p.grad / p.grad.norm(), direction)


@UNITWISE
@pytest.mark.parametrize(("shape", "dtype"), TENSORS)
def test_agc_preserves_small_gradients(shape: tuple[int, ...], dtype: torch.dtype, unitwise: bool) -> None:
    p = parameter(shape, dtype, weight_norm=100.0, gradient_norm=0.5)
    before = p.grad.clone()
    adaptive_gradient_clip_([p], clip_factor=0.01, unitwise=unitwise)
    assert torch.equal(p.grad, before)


@UNITWISE
@pytest.mark.parametrize(("shape", "dtype"), TENSORS)
def test_agc_handles_zero_params(shape: tuple[int, ...], dtype: torch.dtype, unitwise: bool) -> None:
    p = parameter(shape, dtype, weight_norm=0.0, gradient_norm=100.0)
    adaptive_gradient_clip_([p], clip_factor=0.01, eps=1e-3, unitwise=unitwise)
    units = shape[0] if unitwise and len(shape) > 1 else 1
    assert float(p.grad.norm()) == pytest.approx(0.01 * 1e-3 * units**0.5, rel=1e-6)  # each unit at its own bound
    assert float(p.grad.norm()) > 0


def test_agc_takes_the_generator_of_parameters() -> None:
    model = nn.Linear(3, 2)
    for p in model.parameters():
        p.grad = torch.ones_like(p) * 1e3
    adaptive_gradient_clip_(model.parameters())
    for p in model.parameters():
        assert float(p.grad.norm()) == pytest.approx(0.01 * float(p.detach().norm()), rel=1e-5)
