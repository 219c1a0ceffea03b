"""Algorithms with a history, where their twins do not go: layers that come late, rises that last, models that move."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ptycho_torch.train_utils import ALGORITHMS, GradientClipper


def parameters(n: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(4)) for _ in range(n)]


def give(p: nn.Parameter, norm: float | None) -> None:
    p.grad = None if norm is None else torch.full((4,), norm / 2)


def norm(p: nn.Parameter) -> float:
    assert p.grad is not None
    return float(p.grad.norm())


def test_adagc_is_not_locked_at_zero_by_a_zero_gradient() -> None:
    one, other = pair = parameters(2)
    clipper = GradientClipper(pair, algorithm="adagc", threshold=1.05)
    for step in range(101):
        give(one, 0.0 if step == 50 else 0.5)
        give(other, 0.5)
        clipper()
    give(one, 0.5)
    give(other, 50.0)
    clipper()
    assert norm(one) == pytest.approx(0.5)
    assert norm(other) == pytest.approx(0.525)


def test_adagc_keeps_the_average_of_each_parameter_when_others_come_and_go() -> None:
    early, late = pair = parameters(2)
    clipper = GradientClipper(pair, algorithm="adagc", threshold=1.05)
    for step in range(101):
        give(early, 0.5)
        give(late, None if step < 60 else 0.01)
        clipper()
    give(early, None)
    give(late, 100.0)
    clipper()
    assert norm(late) == pytest.approx(0.0105)
    give(early, 100.0)
    give(late, 0.01)
    clipper()
    assert norm(early) == pytest.approx(0.525)
    assert norm(late) == pytest.approx(0.01)


def test_a_parameter_that_adagc_meets_after_its_warmup_starts_unclipped() -> None:
    early, late = pair = parameters(2)
    clipper = GradientClipper(pair, algorithm="adagc", threshold=1.05)
    for _ in range(101):
        give(early, 0.5)
        clipper()
    for expected in (7.0, 7.35):  # the first norm becomes the average
        give(early, 0.5)
        give(late, expected if expected == 7.0 else 100.0)
        clipper()
        assert norm(late) == pytest.approx(expected)


def test_skip_lets_the_training_go_on_after_a_lasting_rise() -> None:
    (p,) = parameters(1)
    clipper = GradientClipper([p], algorithm="skip", threshold=10.0)
    kept = []
    for step in range(400):
        give(p, 1.0 if step < 200 else 1000.0)
        kept.append(bool(clipper().keep))
    assert all(kept[:200])
    assert kept[200:] == [False] * 65 + [True] * 135


def test_skip_and_autoclip_do_not_count_steps_that_were_not_finite() -> None:
    (p,) = parameters(1)
    clipper = GradientClipper([p], algorithm="skip", threshold=2.0)
    for _ in range(30):
        give(p, math.nan)
        assert not bool(clipper().keep)
    give(p, 1.0)
    clipper()
    give(p, 1e6)  # one finite norm is too few to judge by
    assert bool(clipper().keep)
    auto = GradientClipper([p], algorithm="autoclip", threshold=100.0)
    for size in (1.0, math.inf, 3.0):
        give(p, size)
        auto()
    give(p, 2.0)
    assert float(auto().smallest_scale) == 1.0


@pytest.mark.parametrize("algorithm", [name for name, info in ALGORITHMS.items() if info.stateful])
def test_a_model_may_change_its_type_on_the_way(algorithm: str) -> None:
    model = nn.Linear(3, 2)
    clipper = GradientClipper(model, algorithm=algorithm, threshold=ALGORITHMS[algorithm].default)
    for step in range(120):
        if step == 60:
            model.double()
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.1 if step < 119 else 1e200)
        report = clipper()
    assert model.weight.grad.dtype == torch.float64
    assert float(report.norm_before) == pytest.approx(1e200 * math.sqrt(8))
    left = 0.0 if algorithm == "skip" else 0.1 * math.sqrt(8)
    assert float(report.norm_after) == pytest.approx(left, rel=0.1)
