"""What a training records: a row for each step, none lost, none doubled, in order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from ptycho_torch.telemetry import COLUMNS, FLUSH_EVERY_STEPS, NoSink, StepBuffer, UpdateMeter


def rows(buffer: StepBuffer, steps: range) -> None:
    for step in steps:
        buffer.add(step, [torch.tensor(float(100 * step + k)) for k in range(len(COLUMNS))], learning_rate=step / 10)


def test_rows_come_out_as_they_went_in_and_once() -> None:
    buffer = StepBuffer()
    rows(buffer, range(4, 7))
    records = buffer.flush()
    assert [record.step for record in records] == [4, 5, 6]
    assert [record.learning_rate for record in records] == [0.4, 0.5, 0.6]
    for record in records:
        assert [getattr(record, name) for name in COLUMNS] == [100 * record.step + k for k in range(len(COLUMNS))]
    assert buffer.flush() == []
    rows(buffer, range(7, 8))
    assert [record.step for record in buffer.flush()] == [7]


def test_a_buffer_is_full_after_a_fixed_number_of_steps() -> None:
    buffer = StepBuffer()
    rows(buffer, range(FLUSH_EVERY_STEPS - 1))
    assert not buffer.full
    rows(buffer, range(FLUSH_EVERY_STEPS - 1, FLUSH_EVERY_STEPS))
    assert buffer.full
    buffer.flush()
    assert not buffer.full


def test_numbers_that_are_not_finite_pass_through() -> None:
    buffer = StepBuffer()
    buffer.add(0, [torch.tensor(value) for value in (math.nan, math.inf, 1.0, 0.0, math.nan, 2.0)], 0.1)
    (record,) = buffer.flush()
    assert math.isnan(record.loss)
    assert record.grad_norm_preclip == math.inf


# the meter


def norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(t.detach().abs().double().square().sum()) for t in tensors))


def test_the_meter_measures_a_real_step() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5, dtype=torch.complex64))]
    frozen = nn.Parameter(torch.full((2,), 100.0), requires_grad=False)
    optimizer = torch.optim.SGD(weights, lr=0.5)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    before = [weight.detach().clone() for weight in weights]
    meter = UpdateMeter([*weights, frozen])
    meter.mark()
    optimizer.step()
    ratio, weight_norm = meter.measure()
    assert float(weight_norm) == pytest.approx(norm(before), rel=1e-6)
    moved = [after - start for after, start in zip(weights, before, strict=True)]
    assert float(ratio) == pytest.approx(norm(moved) / norm(before), rel=1e-6)


def test_no_step_is_no_update() -> None:
    meter = UpdateMeter([nn.Parameter(torch.randn(3))])
    meter.mark()
    assert float(meter.measure()[0]) == 0


def test_a_weight_that_is_not_finite_shows_at_once() -> None:
    weight = nn.Parameter(torch.ones(3))
    meter = UpdateMeter([weight])
    meter.mark()
    with torch.no_grad():
        weight[1] = math.nan
    assert math.isnan(meter.measure()[0])


# under the Trainer


@pytest.mark.parametrize("steps", [3, FLUSH_EVERY_STEPS, FLUSH_EVERY_STEPS + 3])
def test_every_step_is_recorded_once_in_order(toy_fit: Callable[..., Any], steps: int) -> None:
    sink = toy_fit(max_steps=steps).sink
    assert [record.step for record in sink.steps] == list(range(steps))
    assert all(record.update_ratio > 0 for record in sink.steps)


def test_steps_reach_the_sink_in_chunks_and_before_their_validation(toy_fit: Callable[..., Any]) -> None:
    sink = toy_fit(max_steps=24, eval_every=14).sink
    assert sink.calls == ["10 steps", "4 steps", "evaluation", "10 steps", "evaluation"]
    assert [record.step for record in sink.evals] == [14, 24]


class NoValidation(L.Callback):
    def setup(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        trainer.limit_val_batches = 0


def test_the_last_steps_reach_the_sink_without_a_validation_too(toy_fit: Callable[..., Any]) -> None:
    assert toy_fit(callbacks=[NoValidation()], max_steps=13).sink.calls == ["10 steps", "3 steps"]


def test_the_numbers_are_those_of_the_step(toy_fit: Callable[..., Any]) -> None:
    """Plain gradient descent: ||dW|| is the rate times the gradient's norm."""
    fit = toy_fit(max_steps=2, optimizer="sgd", momentum=0.0, learning_rate=0.3, gradient_clip_val=0.1)
    for record in fit.sink.steps:
        assert record.learning_rate == 0.3
        assert record.grad_norm_postclip == pytest.approx(0.1, rel=1e-5)
        assert record.update_ratio * record.weight_norm == pytest.approx(0.3 * 0.1, rel=1e-3)
        assert record.clipped_fraction == 1
    assert fit.sink.steps[1].weight_norm != fit.sink.steps[0].weight_norm


def test_a_sink_can_end_the_training_after_steps_or_a_validation(toy_fit: Callable[..., Any], toy_sink: Any) -> None:
    by_steps = toy_fit(max_steps=50, sink=toy_sink(enough_steps=15))
    assert by_steps.module.steps_done == 20
    by_validation = toy_fit(max_steps=50, eval_every=3, sink=toy_sink(enough_evals=2))
    assert by_validation.module.steps_done == 6
    assert [record.step for record in by_validation.sink.steps] == list(range(6))


def test_without_a_sink_the_training_runs_to_its_end(toy_fit: Callable[..., Any]) -> None:
    assert toy_fit(max_steps=12, sink=NoSink()).module.steps_done == 12


def test_layer_norms_are_those_before_the_clip(toy_fit: Callable[..., Any]) -> None:
    fit = toy_fit(max_steps=5, log_grad_norm=True, grad_norm_log_freq=2, gradient_clip_val=1e-3)
    assert list(fit.sink.layer_norms) == [0, 2, 4]
    names = [name for name, _ in fit.module.model.named_parameters()]
    for step, norms in fit.sink.layer_norms.items():
        assert list(norms) == names
        total = math.sqrt(sum(value**2 for value in norms.values()))
        assert total == pytest.approx(fit.sink.steps[step].grad_norm_preclip, rel=1e-6)
    assert not toy_fit(max_steps=2).sink.layer_norms
