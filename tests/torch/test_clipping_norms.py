"""Norms against double precision: accuracy, range, and no more passes than needed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ptycho_torch.clipping.norms import norms_of_rows, scaled_norms
from ptycho_torch.train_utils import clip_gradients_


def global_norm(gradient: Tensor, algorithm: str = "norm") -> float:
    p = nn.Parameter(torch.zeros_like(gradient))
    p.grad = gradient.clone()
    return float(clip_gradients_([p], algorithm=algorithm, threshold=1e30).norm_before)


def reference(gradient: Tensor) -> float:
    """Exactly rounded: squares in double precision, summed without loss."""
    real = torch.view_as_real(gradient) if gradient.is_complex() else gradient
    scale = float(real.abs().max().double()) or 1.0
    return scale * math.sqrt(math.fsum(((real.double() / scale) ** 2).flatten().tolist()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_the_norm_is_exact_to_1e_6_up_to_2_to_the_24_elements(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(2**24, dtype=dtype, generator=generator) + 0.5
    expected = math.sqrt(sum(float(part.abs().double().square().sum()) for part in gradient.split(2**20)))
    p = nn.Parameter(torch.zeros_like(gradient))
    p.grad = gradient
    assert float(clip_gradients_([p], algorithm="none").norm_before) == pytest.approx(expected, rel=1e-6)
    units = nn.Parameter(torch.zeros_like(gradient).view(2, -1))
    units.grad = gradient.view(2, -1)
    report = clip_gradients_([units], algorithm="agc_unit", threshold=0.01)
    assert float(report.norm_before) == pytest.approx(expected, rel=1e-6)
    assert float(report.norm_after) == pytest.approx(math.sqrt(2) * 0.01 * 1e-3, rel=1e-6)
    assert float(torch.view_as_real(gradient).norm() if dtype.is_complex else gradient.norm()) != expected


@pytest.mark.parametrize("numel", [1, 1023, 1024, 1025, 2048, 16384, 16385, 50_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bfloat16, torch.float16])
def test_the_norm_at_the_edges_of_chunks(numel: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(numel)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    gradient = torch.randn(numel, dtype=wide, generator=generator).to(dtype)
    assert global_norm(gradient) == pytest.approx(reference(gradient), rel=1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("algorithm", ["norm", "agc", "agc_unit"])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float32, 0.1),
        (torch.float32, 1e30),
        (torch.float32, 3e38),
        (torch.float16, 6e4),
        (torch.float64, 1e200),
        (torch.complex64, 1e25),
    ],
)
@pytest.mark.parametrize("shape", [(3, 5), (200, 200)])
def test_the_norm_of_equal_entries_and_none_overflows_before_its_value(
    algorithm: str, dtype: torch.dtype, size: float, shape: tuple[int, int]
) -> None:
    gradient = torch.full(shape, size, dtype=dtype)
    gradient[0, 0] = -size
    assert global_norm(gradient, algorithm) == pytest.approx(reference(gradient), rel=1e-6)


def test_one_overflow_does_not_disturb_the_other_tensors() -> None:
    large, small = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(3, 3))
    large.grad, small.grad = torch.full((4,), 1e25), torch.full((3, 3), 2.0)
    report = clip_gradients_([large, small], algorithm="agc", threshold=1.0, eps=100.0)
    assert report.layer_norms.tolist() == pytest.approx([2e25, 6.0], rel=1e-6)
    assert torch.equal(small.grad, torch.full((3, 3), 2.0))
    assert large.grad.tolist() == pytest.approx([50.0] * 4, rel=1e-6)


def test_scaled_norms_of_rows_that_are_zero_or_not_finite() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [math.inf, 1.0], [math.nan, 1.0], [1e-30, 0.0]])
    norms = scaled_norms(rows)
    assert norms[:3].tolist() == [0.0, 5.0, math.inf]
    assert math.isnan(norms[3])
    assert float(norms[4]) == pytest.approx(1e-30)


def test_half_precision_norms_are_summed_in_float32() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        gradient = torch.full((70_000,), 0.01).to(dtype)
        exact = float(gradient[0]) * math.sqrt(70_000)
        assert global_norm(gradient) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_norms_without_a_look_at_them_equal_those_of_the_host(dtype: torch.dtype) -> None:
    """The way taken on an accelerator, on numbers of the host."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 3000, generator=generator).to(dtype)
    rows[4] *= 1e20
    blocks = [[rows], [rows[:4], rows[2:]]]
    there, here = (norms_of_rows(lambda: iter(blocks), 2, torch.device(name)) for name in ("cuda", "cpu"))
    assert there.shape == (2, 3 + 4)
    assert there.dtype == torch.float64
    torch.testing.assert_close(there, here, rtol=1e-6, atol=0)
