"""What one training records: a row per optimizer step and per validation, gathered without stalls."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ptycho_torch.clipping.norms import CHUNK

FLUSH_EVERY_STEPS = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        step: number of the step, from 0.
        loss: training loss of the step's batches before the update.
        grad_norm_preclip: global L2 norm of the gradient as computed.
        grad_norm_postclip: the same after clipping, as the optimizer saw it.
        clipped_fraction: part of the tensors (or units) that were scaled down.
        update_ratio: ||dW|| / ||W|| of the step.
        weight_norm: ||W|| before the step.
        learning_rate: rate of the step.
    """

    step: int
    loss: float
    grad_norm_preclip: float
    grad_norm_postclip: float
    clipped_fraction: float
    update_ratio: float
    weight_norm: float
    learning_rate: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvalRecord:
    """One validation after ``step`` optimizer steps.

    Attributes:
        step: optimizer steps taken so far.
        val_loss: mean validation loss.
        amp_spread: standard deviation of the predicted object amplitude over its mean.
        phase_spread: circular standard deviation of the predicted object phase, rad.
    """

    step: int
    val_loss: float
    amp_spread: float
    phase_spread: float


class Sink(Protocol):
    """Where a training's records go. Either method may return True to end the training."""

    def on_steps(self, records: Sequence[StepRecord]) -> bool:
        """Take some consecutive steps."""

    def on_eval(self, record: EvalRecord) -> bool:
        """Take one validation."""

    def on_layer_norms(self, step: int, norms: dict[str, float]) -> None:
        """Take the gradient norm of every parameter tensor before clipping."""


class NoSink:
    """Keeps nothing and ends nothing."""

    def on_steps(self, records: Sequence[StepRecord]) -> bool:
        return False

    def on_eval(self, record: EvalRecord) -> bool:
        return False

    def on_layer_norms(self, step: int, norms: dict[str, float]) -> None:
        pass


COLUMNS = (
    "loss",
    "grad_norm_preclip",
    "grad_norm_postclip",
    "clipped_fraction",
    "update_ratio",
    "weight_norm",
)


class StepBuffer:
    """Rows that stay on the device until ``FLUSH_EVERY_STEPS`` of them are copied to the host at once."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._rates: list[float] = []
        self._first_step = 0

    def add(self, step: int, row: Sequence[Tensor], learning_rate: float) -> None:
        """Keep one step: ``row`` holds 0-d tensors in the order of ``COLUMNS``."""
        if not self._rows:
            self._first_step = step
        self._rows.append(torch.stack([value.detach().double() for value in row]))
        self._rates.append(learning_rate)

    @property
    def full(self) -> bool:
        """Whether it is time to flush."""
        return len(self._rows) >= FLUSH_EVERY_STEPS

    def flush(self) -> list[StepRecord]:
        """The rows kept since the last flush; empties the buffer."""
        if not self._rows:
            return []
        records = step_records(self._first_step, torch.stack(self._rows).tolist(), self._rates)
        self._rows, self._rates = [], []
        return records


def step_records(first: int, rows: Sequence[Sequence[float]], rates: Sequence[float]) -> list[StepRecord]:
    """Consecutive steps from step ``first`` on: rows in the order of ``COLUMNS``, and the learning rates."""
    return [
        StepRecord(step=first + k, learning_rate=rate, **dict(zip(COLUMNS, row, strict=True)))
        for k, (row, rate) in enumerate(zip(rows, rates, strict=True))
    ]


class UpdateMeter:
    """||dW|| and ||W|| of one optimizer step, complex weights as pairs of reals."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        trainable = [p for p in parameters if p.requires_grad]
        self._weights = [torch.view_as_real(p.data) if p.is_complex() else p.data for p in trainable]
        self._before = [torch.empty_like(w) for w in self._weights]

    def mark(self) -> None:
        """Remember the weights as they are before the step."""
        torch._foreach_copy_(self._before, self._weights)

    def measure(self) -> tuple[Tensor, Tensor]:
        """(||dW|| / ||W||, ||W||) since the mark, 0-d tensors."""
        weight_norm = _norm(self._before)
        torch._foreach_sub_(self._before, self._weights)
        return _norm(self._before) / weight_norm, weight_norm


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """0-d float64 norm: float32 sums of ``CHUNK`` numbers, float64 across them, exact to 1e-6 at any length."""
    parts = []
    for numbers in (tensor.reshape(-1) for tensor in tensors):
        whole = len(numbers) - len(numbers) % CHUNK
        parts += [torch.linalg.vector_norm(numbers[:whole].view(-1, CHUNK), dim=1), numbers[whole:]]
    return torch.linalg.vector_norm(torch.cat(parts), dtype=torch.float64)
