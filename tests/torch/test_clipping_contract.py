"""The contract of clipping: every algorithm is put through every property."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ptycho_torch.train_utils import ALGORITHMS, ClipReport, GradientClipper, clip_gradients_

EVERY = pytest.mark.parametrize("algorithm", list(ALGORITHMS))
TINY_THRESHOLD = {"autoclip": 10.0, "zclip": 1e-3, "adagc": 1e-3, "skip": 1e-3}
HUGE_THRESHOLD = {"autoclip": 100.0}  # a percentile; the others take any number
HISTORY_STEPS = {"adagc": 101, "zclip": 26}  # steps after which the algorithm is past its warm-up
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-6, torch.float64: 1e-12}

seeds = st.integers(0, 2**31)
magnitudes = st.floats(-6, 6).map(lambda e: 10.0**e)
examples = settings(max_examples=12, deadline=None)


class Net(nn.Module):
    """One parameter of every kind: complex, convolutions of both kinds, a matrix, a vector, a number."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        double = dtype == torch.float64
        self.spectral = nn.Parameter(torch.zeros(3, 2, 2, 2, dtype=torch.complex128 if double else torch.complex64))
        self.conv = nn.Conv2d(2, 3, 3, dtype=dtype)
        self.up = nn.ConvTranspose2d(4, 2, 2, groups=2, dtype=dtype)
        self.linear = nn.Linear(3, 2, dtype=dtype)
        self.scale = nn.Parameter(torch.zeros((), dtype=dtype))

    unit_axis = 0


def fill(model: nn.Module, seed: int, gradient_size: float = 1.0, weight_size: float = 1.0) -> None:
    """Random weights and gradients; sizes multiply them exactly alike for every seed."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        wide = torch.complex128 if p.is_complex() else torch.float64
        p.data.copy_(weight_size * torch.randn(p.shape, dtype=wide, generator=generator))
        p.grad = (gradient_size * torch.randn(p.shape, dtype=wide, generator=generator)).to(p.dtype)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def prepared(model: Net, algorithm: str, threshold: float, **options: Any) -> GradientClipper:
    """A clipper past its warm-up, with a history of gradients of about the size that ``fill`` gives."""
    clipper = GradientClipper(model, algorithm=algorithm, threshold=threshold, **options)
    clipper.load_state_dict(history(algorithm, threshold))
    return clipper


@functools.cache
def history(algorithm: str, threshold: float) -> dict[str, Any]:
    model = Net(torch.float64)
    clipper = GradientClipper(model, algorithm=algorithm, threshold=threshold)
    for step in range(HISTORY_STEPS.get(algorithm, 20)):
        fill(model, 10_000 + step, gradient_size=1 + 0.01 * (step % 7))
        clipper()
    return clipper.state_dict()


def tight(algorithm: str) -> float:
    """A threshold under which a gradient far above the history is clipped."""
    return TINY_THRESHOLD.get(algorithm, 1e-3)


def changes(algorithm: str) -> bool:
    """Whether the algorithm ever changes a gradient."""
    return algorithm not in ("none", "skip")


# properties -------------------------------------------------------------------------------------


@EVERY
@given(seed=seeds, size=magnitudes)
@examples
def test_nothing_grows_and_the_report_tells_the_truth(algorithm: str, seed: int, size: float) -> None:
    model = Net(torch.float64)
    clipper = prepared(model, algorithm, ALGORITHMS[algorithm].default)
    fill(model, seed, gradient_size=size)
    before = gradients(model)
    report = clipper()
    after = gradients(model)
    for a, b in zip(after, before, strict=True):
        assert bool((a.abs() <= b.abs() * (1 + 1e-12)).all())
    assert float(report.norm_before) == pytest.approx(norm_of(before), rel=1e-12)
    if bool(report.keep):
        assert float(report.norm_after) == pytest.approx(norm_of(after), rel=1e-9)
    moved = [not torch.equal(a, b) for a, b in zip(after, before, strict=True)]
    clipped = float(report.clipped_fraction) > 0
    assert clipped == (any(moved) or not bool(report.keep))
    assert clipped == (float(report.smallest_scale) < 1)
    assert 0 <= float(report.clipped_fraction) <= 1
    assert bool(report.finite)


def norm_of(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(t.abs().double().square().sum()) for t in tensors))


@EVERY
@given(seed=seeds, size=magnitudes)
@examples
def test_below_the_bound_nothing_moves(algorithm: str, seed: int, size: float) -> None:
    model = Net()
    clipper = prepared(model, algorithm, HUGE_THRESHOLD.get(algorithm, 1e9))
    fill(model, seed, gradient_size=size if algorithm != "autoclip" else min(size, 1e-3))
    before = gradients(model)
    report = clipper()
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), before, strict=True))
    assert float(report.clipped_fraction) == 0.0
    assert float(report.smallest_scale) == 1.0
    assert bool(report.keep)


@EVERY
@given(seed=seeds)
@examples
def test_twice_equals_once(algorithm: str, seed: int) -> None:
    model = Net()
    clipper = prepared(model, algorithm, tight(algorithm))
    state = clipper.state_dict()
    fill(model, seed, gradient_size=100.0)
    kept = bool(clipper().keep)
    once = gradients(model)
    clipper.load_state_dict(state)
    assert bool(clipper().keep) == kept
    for a, b in zip(gradients(model), once, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=0)
    assert kept == (algorithm != "skip")


@EVERY
@given(seed=seeds)
@examples
def test_the_direction_of_every_unit_is_kept(algorithm: str, seed: int) -> None:
    model = Net(torch.float64)
    clipper = prepared(model, algorithm, tight(algorithm))
    fill(model, seed, gradient_size=100.0)
    before = gradients(model)
    clipper()
    for (name, p), b in zip(model.named_parameters(), before, strict=True):
        if algorithm == "value":  # clamps entries, so that only their signs are kept
            real = [torch.view_as_real(t) if t.is_complex() else t for t in (p.grad, b)]
            assert torch.equal(real[0].sign(), real[1].sign())
            continue
        for unit, was in zip(units(name, p.grad, algorithm), units(name, b, algorithm), strict=True):
            ratio = (unit / was).abs()
            torch.testing.assert_close(unit / was, ratio.to(was.dtype))  # real and positive
            torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
            assert not changes(algorithm) or float(ratio.mean()) < 1


def units(name: str, tensor: Tensor, algorithm: str) -> Iterator[Tensor]:
    """Parts of a gradient that one factor multiplies."""
    if algorithm != "agc_unit" or tensor.ndim < 2:
        yield tensor
    elif name == "up.weight":  # (in, out / groups, 2, 2) in 2 groups
        yield from (tensor[2 * g : 2 * g + 2, o] for g in range(2) for o in range(tensor.shape[1]))
    else:
        yield from tensor


@EVERY
@given(seed=seeds, exponent=st.integers(-12, 12))
@examples
def test_the_rule_has_no_scale_of_its_own(algorithm: str, seed: int, exponent: int) -> None:
    """With gradients, weights, history and absolute thresholds c times as large, the result is c times as large."""
    factor, threshold = 2.0**exponent, tight(algorithm)
    results = []
    for c in (1.0, factor):
        model = Net(torch.float64)
        clipper = prepared(model, algorithm, threshold, eps=1e-3 * c)
        clipper.threshold = threshold * (c if algorithm in ("norm", "value") else 1.0)
        clipper.load_state_dict(scaled(clipper.state_dict(), c))
        fill(model, seed, gradient_size=10.0 * c, weight_size=c)
        clipper()
        results.append(gradients(model))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a * factor, rtol=1e-9, atol=0)


def scaled(state_dict: dict[str, Any], c: float) -> dict[str, Any]:
    """The state after a history whose norms were ``c`` times as large."""
    powers = {"ring": 1, "mean": 1, "averages": 1, "variance": 2}
    state = {k: v * c ** powers[k] if k in powers else v for k, v in state_dict["state"].items()}
    return {**state_dict, "state": state}


# the tensors a model can hold -------------------------------------------------------------------


@EVERY
def test_zero_weights_still_move_and_zero_gradients_stay(algorithm: str) -> None:
    model = Net()
    clipper = prepared(model, algorithm, tight(algorithm))
    fill(model, 0, gradient_size=0.1, weight_size=0.0)
    model.linear.weight.grad.zero_()
    clipper()
    for name, p in model.named_parameters():
        assert bool((p.grad == 0).all()) == (name == "linear.weight")
        assert bool(p.grad.isfinite().all())


@EVERY
def test_frozen_and_gradless_parameters_are_left_alone(algorithm: str) -> None:
    model = Net()
    clipper = prepared(model, algorithm, tight(algorithm))
    fill(model, 0, gradient_size=100.0)
    model.conv.weight.requires_grad_(False)
    model.linear.bias.grad = None
    frozen, rest = model.conv.weight.grad.clone(), [p for p in model.parameters() if p is not model.conv.weight]
    expected = norm_of([p.grad for p in rest if p.grad is not None])
    report = clipper()
    assert torch.equal(model.conv.weight.grad, frozen)
    assert model.linear.bias.grad is None
    assert float(report.norm_before) == pytest.approx(expected, rel=1e-6)
    model.conv.weight.requires_grad_(True)  # and it takes part again
    fill(model, 0, gradient_size=100.0)
    assert float(clipper().norm_before) > float(report.norm_before)


@EVERY
def test_shared_parameters_count_once(algorithm: str) -> None:
    single, tied = nn.Sequential(nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 3))
    tied.append(tied[0])
    for model in (single, tied):
        fill(model, 0, gradient_size=100.0)
    first, second = (clip_gradients_(m, algorithm=algorithm, threshold=tight(algorithm)) for m in (single, tied))
    assert same_report(first, second)
    assert torch.equal(single[0].weight.grad, tied[0].weight.grad)
    listed = clip_gradients_([tied[0].weight, tied[0].bias, tied[0].weight], algorithm="none")
    assert float(listed.norm_before) == pytest.approx(norm_of(gradients(tied)), rel=1e-6)


def same_report(a: ClipReport, b: ClipReport) -> bool:
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("norm_before", "norm_after", "clipped_fraction", "smallest_scale", "finite", "keep")
    )


@EVERY
@pytest.mark.parametrize(
    "make", [lambda m: m.parameters(), lambda m: m.named_parameters(), lambda m: list(m.parameters())]
)
def test_any_iterable_of_parameters_will_do(algorithm: str, make: Callable[[nn.Module], object]) -> None:
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    for m in (model, other):
        fill(m, 0, gradient_size=100.0)
    a = clip_gradients_(model, algorithm=algorithm, threshold=tight(algorithm))
    b = clip_gradients_(make(other), algorithm=algorithm, threshold=tight(algorithm))  # type: ignore[arg-type]
    assert same_report(a, b)
    assert torch.equal(model.weight.grad, other.weight.grad)


@EVERY
def test_without_any_gradient_nothing_is_seen(algorithm: str) -> None:
    for model in (Net(), nn.ReLU()):
        clipper = GradientClipper(model, algorithm=algorithm, threshold=tight(algorithm))
        report = clipper()
        seen = (report.norm_before, report.norm_after, report.clipped_fraction, report.smallest_scale)
        assert [float(x) for x in seen] == [0.0, 0.0, 0.0, 1.0]
        assert bool(report.finite)
        assert bool(report.keep)
        assert all(p.grad is None for p in model.parameters())


@EVERY
def test_empty_and_0_dimensional_tensors(algorithm: str) -> None:
    empty, number = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.tensor(2.0))
    empty.grad, number.grad = torch.zeros(0, 3), torch.tensor(-300.0)
    report = clip_gradients_([empty, number], algorithm=algorithm, threshold=tight(algorithm))
    assert float(report.norm_before) == 300.0
    assert report.layer_norms.tolist() == [0.0, 300.0]
    assert abs(float(number.grad)) == pytest.approx(float(report.norm_after), rel=1e-6)
    assert float(number.grad) < 0


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128])
def test_every_floating_type(algorithm: str, dtype: torch.dtype) -> None:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    results, reports = [], []
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(s, dtype=wide, generator=generator).to(dtype) for s in ((5, 7), (300,), (40, 600))]
    start = [torch.randn(w.shape, dtype=wide, generator=generator).mul(50).to(dtype) for w in weights]
    for type_ in (dtype, wide):
        parameters = [nn.Parameter(w.to(type_)) for w in weights]
        for p, g in zip(parameters, start, strict=True):
            p.grad = g.clone().to(type_)
        reports.append(clip_gradients_(parameters, algorithm=algorithm, threshold=tight(algorithm)))
        results.append([p.grad for p in parameters])
    tolerance = TOLERANCE[dtype.to_real() if dtype.is_complex else dtype]
    for a, b in zip(*results, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.to(wide), b, rtol=tolerance, atol=tolerance * float(b.abs().max()))
    assert float(reports[0].norm_before) == pytest.approx(float(reports[1].norm_before), rel=1e-6)


@EVERY
def test_mixed_types_in_one_model(algorithm: str) -> None:
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.complex64)
    parameters = [nn.Parameter(torch.ones(4, 4, dtype=dtype)) for dtype in dtypes]
    for p in parameters:
        p.grad = torch.full_like(p, 8.0)
    report = clip_gradients_(parameters, algorithm=algorithm, threshold=tight(algorithm))
    assert float(report.norm_before) == pytest.approx(64.0, rel=1e-12)  # 64 entries of 8
    if changes(algorithm) and algorithm not in ("autoclip", "zclip"):  # these see a first step
        assert all(float(p.grad.abs().max()) < 8 for p in parameters)


@EVERY
def test_channels_last_memory_gives_the_same_numbers(algorithm: str) -> None:
    plain = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(48, 48, 3), nn.ConvTranspose2d(48, 48, 3))
    fill(plain, 0, gradient_size=50.0)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    for p, q in zip(plain.parameters(), last.parameters(), strict=True):
        q.grad = p.grad.clone(memory_format=torch.channels_last if p.ndim == 4 else torch.contiguous_format)
    assert not last[1].weight.grad.is_contiguous()
    a, b = (clip_gradients_(m, algorithm=algorithm, threshold=tight(algorithm)) for m in (plain, last))
    assert float(a.norm_after) == pytest.approx(float(b.norm_after), rel=1e-6)
    for p, q in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@EVERY
def test_sparse_gradients_are_refused(algorithm: str) -> None:
    model = nn.Embedding(5, 3, sparse=True)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"gradient of weight: torch.sparse_coo; allowed: dense"):
        clip_gradients_(model, algorithm=algorithm, threshold=1.0)


# what is not finite -----------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_stays_what_it_was(algorithm: str, bad: float) -> None:
    model = Net()
    clipper = prepared(model, algorithm, tight(algorithm))
    state = clipper.state_dict()
    fill(model, 0, gradient_size=100.0)
    model.linear.weight.grad[0, 0] = bad
    before = model.linear.weight.grad.clone()
    report = clipper()
    assert not bool(report.finite)
    assert not math.isfinite(float(report.norm_before))
    rows = slice(0, 1) if algorithm == "agc_unit" else slice(None)
    assert torch.equal(model.linear.weight.grad[rows].nan_to_num(7.0), before[rows].nan_to_num(7.0))
    assert sum(not bool(p.grad.isfinite().all()) for p in model.parameters()) == 1
    assert bool(report.keep) == (algorithm != "skip")
    assert_no_history_of(clipper, state)


def assert_no_history_of(clipper: GradientClipper, state: dict[str, Any]) -> None:
    """The step that was not finite left no number in the state."""
    for name, value in clipper.state_dict()["state"].items():
        if name == "ring":
            new = int(state["state"]["calls"])
            assert math.isnan(value[new % len(value)])
        elif isinstance(value, Tensor):
            assert torch.equal(value, state["state"][name])


@EVERY
def test_a_step_that_is_not_finite_can_be_left_out(algorithm: str) -> None:
    model = Net()
    clipper = prepared(model, algorithm, ALGORITHMS[algorithm].default or 1.0, nonfinite="skip")
    assert clipper.can_skip
    fill(model, 0)
    assert bool(clipper().keep)
    model.scale.grad.fill_(math.nan)
    report = clipper()
    assert not bool(report.keep)
    seen = (report.norm_after, report.clipped_fraction, report.smallest_scale)
    assert [float(x) for x in seen] == [0.0, 1.0, 0.0]
    assert math.isnan(float(report.norm_before))


@EVERY
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_weight_does_not_switch_clipping_off(algorithm: str, bad: float) -> None:
    model = Net()
    clipper = prepared(model, algorithm, tight(algorithm))
    fill(model, 0, gradient_size=100.0)
    model.conv.weight.data[0, 0, 0, 0] = bad
    clipper()
    largest = float(model.conv.weight.grad[0].abs().max())
    assert (largest < 10) == changes(algorithm)


@EVERY
def test_a_gradient_too_large_to_be_squared_is_clipped_like_any_other(algorithm: str) -> None:
    """Entries of 1e30: their squares overflow in float32, and common clippers then zero the whole gradient."""
    model = Net()
    clipper = prepared(model, algorithm, tight(algorithm))
    fill(model, 0, gradient_size=1e30)
    report = clipper()
    assert bool(report.finite)
    assert 1e30 < float(report.norm_before) < 1e33
    if changes(algorithm):
        assert 0 < float(report.norm_after) < 1e3
        assert any(bool((p.grad != 0).any()) for p in model.parameters())


# the same everywhere ----------------------------------------------------------------------------


@EVERY
def test_layer_norms_are_those_before_clipping(algorithm: str) -> None:
    model = Net()
    clipper = prepared(model, algorithm, tight(algorithm))
    fill(model, 0, gradient_size=10.0)
    expected = {name: norm_of([p.grad]) for name, p in model.named_parameters()}
    clipper()
    assert clipper.layer_norms() == pytest.approx(expected, rel=1e-6)
    assert clipper.names == tuple(expected)


@EVERY
def test_what_is_off_is_called_none(algorithm: str) -> None:
    for off in (None, 0.0, -1.0):
        model = Net()
        clipper = GradientClipper(model, algorithm=algorithm, threshold=off)
        assert (clipper.algorithm, clipper.threshold, clipper.can_skip) == ("none", None, False)
        fill(model, 0, gradient_size=1e6)
        before = gradients(model)
        clipper()
        assert all(torch.equal(a, b) for a, b in zip(gradients(model), before, strict=True))


@EVERY
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(algorithm: str, tmp_path: Path) -> None:
    through, stopped = Net(), Net()
    threshold = ALGORITHMS[algorithm].default
    clipper = GradientClipper(through, algorithm=algorithm, threshold=threshold)
    first = GradientClipper(stopped, algorithm=algorithm, threshold=threshold)
    path = tmp_path / "state.pt"
    for step in range(140):
        if step == 70:
            torch.save(first.state_dict(), path)
            first = GradientClipper(stopped, algorithm=algorithm, threshold=threshold)
            first.load_state_dict(torch.load(path, weights_only=True))
        for model in (through, stopped):
            fill(model, step, gradient_size=1.0 + 20.0 * (step % 13 == 12))
        assert same_report(clipper(), first())
        assert all(torch.equal(a, b) for a, b in zip(gradients(through), gradients(stopped), strict=True))


def test_every_algorithm_has_a_complete_entry() -> None:
    for name, info in ALGORITHMS.items():
        assert info.low <= info.default <= info.high
        assert info.stateful == bool(GradientClipper(Net(), algorithm=name, threshold=1.0).state_dict()["state"])
        assert info.can_skip == GradientClipper(Net(), algorithm=name, threshold=1.0).can_skip
        texts = [getattr(info, f.name) for f in dataclasses.fields(info) if f.type == "str"]
        assert all(texts) or name == "none"
