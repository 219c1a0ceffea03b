"""Optimizers and schedules by name: one step of each by hand, and the rate over the steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ptycho.errors import InputError
from ptycho_torch.config_params import TrainingConfig
from ptycho_torch.optimizers import OPTIMIZERS, make_optimizer, make_scheduler, warmup_cosine

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])


def steps(dtype: torch.dtype, n: int, **settings: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    """A weight, the gradients of ``n`` steps, and the weight after them."""
    torch.manual_seed(0)
    start = torch.randn(5, dtype=dtype)
    weight, gradients = nn.Parameter(start.clone()), [torch.randn(5, dtype=dtype) for _ in range(n)]
    optimizer = make_optimizer([weight], TrainingConfig(learning_rate=0.1, **settings))
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return start, gradients, weight.detach()


def parts(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


@DTYPES
def test_sgd_by_hand(dtype: torch.dtype) -> None:
    start, (first, second), found = steps(dtype, 2, optimizer="sgd", momentum=0.7, weight_decay=0.01)
    velocity = first + 0.01 * start
    weight = start - 0.1 * velocity
    velocity = 0.7 * velocity + second + 0.01 * weight
    torch.testing.assert_close(found, weight - 0.1 * velocity)


@DTYPES
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_by_hand(name: str, dtype: torch.dtype) -> None:
    """Kingma & Ba 2015, Algorithm 1, real and imaginary parts each on their own; decay inside or beside it."""
    start, gradients, found = steps(dtype, 3, optimizer=name, momentum=0.8, weight_decay=0.05)
    weight, mean, square = parts(start), torch.tensor(0.0), torch.tensor(0.0)
    for t, complex_gradient in enumerate(gradients, start=1):
        gradient = parts(complex_gradient)
        if name == "adam":
            gradient = gradient + 0.05 * weight
        else:
            weight = weight * (1 - 0.1 * 0.05)
        mean, square = 0.8 * mean + 0.2 * gradient, 0.999 * square + 0.001 * gradient**2
        weight = weight - 0.1 * (mean / (1 - 0.8**t)) / ((square / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(parts(found), weight, rtol=1e-4, atol=1e-6)


def test_every_name_of_the_setting_is_in_the_table() -> None:
    for name in OPTIMIZERS:
        assert TrainingConfig(optimizer=name).optimizer == name  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"optimizer: unknown value 'lion'; known: {', '.join(OPTIMIZERS)}"):
        TrainingConfig(optimizer="lion")  # type: ignore[arg-type]


# schedules


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_the_cosine_rises_in_a_line_and_falls_to_its_floor(warmup: int, floor: float) -> None:
    total = 40
    curve = [warmup_cosine(step, warmup, total, floor) for step in range(total + 10)]
    assert curve[:warmup] == [(step + 1) / warmup for step in range(warmup)]
    assert curve[warmup] == pytest.approx(1)
    assert curve[warmup + (total - warmup) // 2] == pytest.approx((1 + floor) / 2, abs=0.05)
    assert all(a >= b for a, b in zip(curve[warmup:], curve[warmup + 1 :], strict=False))
    assert curve[total:] == [pytest.approx(floor)] * 10


def test_a_warm_up_longer_than_the_training_only_rises() -> None:
    assert [warmup_cosine(step, 10, 4, 0.0) for step in range(4)] == [0.1, 0.2, 0.3, 0.4]


def test_the_schedule_multiplies_the_rate() -> None:
    config = TrainingConfig(learning_rate=0.3, scheduler="warmup_cosine", warmup_steps=3, scheduler_floor=0.1)
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))], config)
    schedule = make_scheduler(optimizer, config, 10)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.3 * warmup_cosine(step, 3, 10, 0.1) for step in range(10)])


def test_a_plateau_lowers_the_rate_to_its_floor() -> None:
    config = TrainingConfig(
        learning_rate=0.4, scheduler="plateau", plateau_patience=1, plateau_factor=0.5, scheduler_floor=0.2
    )
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))], config)
    schedule = make_scheduler(optimizer, config, 100)
    rates = []
    for loss in (1.0, 0.5, 0.5, 0.5, 0.4, math.nan, math.nan, 0.4, 0.4, 0.4):
        schedule.step(loss)  # type: ignore[arg-type]
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.4, 0.4, 0.4, 0.2, 0.2, 0.2, 0.1, 0.1, 0.08, 0.08])


def test_no_schedule_is_none() -> None:
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))], TrainingConfig())
    assert make_scheduler(optimizer, TrainingConfig(), 10) is None
