"""Several trainings of one architecture in one process, step by step together.

Forward and backward pass are one for all; what one member sees, records and does is what it would alone, to
rounding. A member that ends is left out of the steps after. Numbers are the same to the last bit only in the
same grouping, since the order of sums depends on it.

Shape legend: B batch, K members, C stacked neighbours, N pixels a side, P real numbers of a network's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ptycho.errors import InputError
from ptycho_torch.clipping.norms import as_real
from ptycho_torch.dataset import PtychoBatch, SeededBatches
from ptycho_torch.generators.stacked import StackedGenerator
from ptycho_torch.losses import LOSSES, LossScale
from ptycho_torch.model import Prediction, PtychoPINN, PtychoPINN_Lightning, evaluation_record, spread_sums
from ptycho_torch.optimizers import make_optimizer, make_scheduler
from ptycho_torch.physics import diffract
from ptycho_torch.telemetry import FLUSH_EVERY_STEPS, UpdateMeter, step_records


class Member(NamedTuple):
    """One training as a Trainer would get it: its module, its training and its validation loader."""

    module: PtychoPINN_Lightning
    steps: DataLoader[PtychoBatch]
    validation: DataLoader[PtychoBatch]


class StackedWeights:
    """The weights of K models as rows of one array, of which the models' own parameters become views.

    Attributes:
        values: (K, P) real, complex weights as pairs.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        lists = [list(model.parameters()) for model in models]
        self._like = lists[0]
        self._lengths = [as_real(p.detach()).numel() for p in self._like]
        rows = [torch.cat([_as_it_lies(p) for p in parameters]) for parameters in lists]
        self.values = nn.Parameter(torch.stack(rows))
        for parameters, row in zip(lists, self.values.detach(), strict=True):
            for p, view in zip(parameters, self.views(row), strict=True):
                p.data = view

    def views(self, rows: Tensor) -> list[Tensor]:
        """Rows (..., P) as the parameters (..., *shape): the same memory."""
        parts = rows.split(self._lengths, dim=-1)
        return [_shaped(part, p) for part, p in zip(parts, self._like, strict=True)]


def _memory_order(p: Tensor) -> list[int]:
    return sorted(range(p.ndim), key=p.stride, reverse=True)


def _as_it_lies(p: Tensor) -> Tensor:
    """(n,) the real numbers of a parameter in the order in which they lie in memory."""
    return as_real(p.detach().permute(_memory_order(p)).contiguous()).view(-1)


def _shaped(numbers: Tensor, like: Tensor) -> Tensor:
    """Numbers (..., n) as :func:`_as_it_lies` gives them, as a parameter (..., *shape) again."""
    order = _memory_order(like)
    lead = numbers.shape[:-1]
    shape = [*lead, *(like.shape[axis] for axis in order)]
    there = torch.view_as_complex(numbers.view(*shape, 2)) if like.is_complex() else numbers.view(shape)
    back = [len(lead) + order.index(axis) for axis in range(like.ndim)]
    return there.permute([*range(len(lead)), *back])


class Ensemble(nn.Module):
    """K models of one architecture, each followed by its own experiment and its own loss.

    Args:
        modules: their trainings' modules; the weights stay theirs.

    Raises:
        InputError: a layer that has no form for several members.
    """

    def __init__(self, modules: Sequence[PtychoPINN_Lightning]) -> None:
        super().__init__()
        models = [module.model for module in modules]
        self.weights = StackedWeights(models)
        self._loss = LOSSES[modules[0].training_config.torch_loss_mode]
        self._scales = [module.loss_scale for module in modules]
        self._probes = torch.stack([model.probe for model in models])[:, None]
        self._network = StackedGenerator(models[0].generator)
        self._names = [name for name, _ in self._network.named_parameters()]
        self.take(range(len(modules)))

    def take(self, members: Sequence[int]) -> None:
        """Go on with these members alone."""
        everyone = len(members) == len(self._scales)
        self._members = None if everyone else torch.tensor(members, device=self._probes.device)
        self._probe = self._probes[list(members)]
        self._scale = LossScale.stack([self._scales[k] for k in members])

    def forward(self, amplitude: Tensor) -> Prediction:
        """(B, K, C, N, N) measured amplitudes -> the object patches that explain them, and what they diffract."""
        rows = self.weights.values if self._members is None else self.weights.values[self._members]
        weights = {
            name: view.view(-1, 1, 1, 1) if view.ndim == 1 else view  # a number for all of a member's pixels
            for name, view in zip(self._names, self.weights.views(rows), strict=True)
        }
        patches = torch.func.functional_call(self._network, weights, (amplitude,))
        return Prediction(patches, diffract(patches, self._probe))

    def frame_losses(self, amplitude: Tensor, prediction: Prediction) -> Tensor:
        """(B, K) loss of each frame of each member."""
        return self._loss(prediction.intensity, amplitude, self._scale)


class _Training:
    """What a member does by itself: serve frames, clip, step, record."""

    def __init__(self, member: Member, weights: Tensor) -> None:
        self.module, config = member.module, member.module.training_config
        self.batches = _endless(member.steps)
        self.validation = list(member.validation)
        self.weights = nn.Parameter(weights)
        self.module.clipper = self.module.make_clipper()
        self.optimizer = make_optimizer([self.weights], config)
        self.scheduler = make_scheduler(self.optimizer, config, self.module.total_steps)
        self.meter = UpdateMeter([self.weights])

    def step(self, loss: Tensor) -> tuple[Tensor, float]:
        """Clip and step; the row for its record, and the learning rate."""
        module = self.module
        rate = float(self.optimizer.param_groups[0]["lr"])
        report = module.clipper()
        self.meter.mark()
        if not module.clipper.can_skip or bool(report.keep):
            self.optimizer.step()
        update_ratio, weight_norm = self.meter.measure()
        row = (loss, report.norm_before, report.norm_after, report.clipped_fraction, update_ratio, weight_norm)
        config = module.training_config
        if config.log_grad_norm and module.steps_done % config.grad_norm_log_freq == 0:
            module.sink.on_layer_norms(module.steps_done, module.clipper.layer_norms())
        module.steps_done += 1
        if config.scheduler == "warmup_cosine":
            self.scheduler.step()
        return torch.stack([value.double() for value in row]), rate


def _endless(loader: DataLoader[PtychoBatch]) -> Iterator[PtychoBatch]:
    while True:
        yield from loader


class EnsembleTrainer:
    """Trains members together, each to its own end.

    Args:
        members: trainings that differ in nothing that decides the shape of a step: see :func:`same_step`.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.ensemble = Ensemble([member.module for member in members])
        values = self.ensemble.weights.values
        values.grad = torch.zeros_like(values)
        self._trainings = []
        for member, weights, gradients in zip(members, values.detach(), values.grad, strict=True):
            training = _Training(member, weights)
            training.weights.grad = gradients
            for p, view in zip(
                member.module.model.parameters(), self.ensemble.weights.views(gradients), strict=True
            ):
                p.grad = view
            self._trainings.append(training)
        self._alive = list(range(len(members)))
        self._rows: list[Tensor] = []
        self._rates: list[list[float]] = []

    def fit(self) -> None:
        """Step until every member has ended."""
        while self._alive:
            self._step()
            modules = [self._trainings[k].module for k in self._alive]
            done, config = modules[0].steps_done, modules[0].training_config
            over = done >= modules[0].total_steps
            ending = set(self._alive) if over else set()
            if len(self._rows) >= FLUSH_EVERY_STEPS or done % config.eval_every == 0 or over:
                ending |= self._flush()
            due = set(self._alive) if done % config.eval_every == 0 else ending
            if due:
                ending |= self._evaluate(sorted(due))
            if ending:
                self._alive = [k for k in self._alive if k not in ending]
                self.ensemble.take(self._alive) if self._alive else None

    def _step(self) -> None:
        now = [self._trainings[k] for k in self._alive]
        batches = [next(training.batches) for training in now]
        amplitude = torch.stack([batch.amplitude for batch in batches], dim=1)
        size = now[0].module.training_config.batch_size
        losses: Tensor | float = 0.0
        for part in amplitude.split(size):
            each = self.ensemble.frame_losses(part, self.ensemble(part)).sum(0) / len(amplitude)
            each.sum().backward()
            losses = losses + each.detach()
        rows = [training.step(loss) for training, loss in zip(now, losses, strict=True)]
        self.ensemble.weights.values.grad.zero_()
        self._rows.append(torch.stack([row for row, _ in rows]))
        self._rates.append([rate for _, rate in rows])

    def _flush(self) -> set[int]:
        """Hand the rows over to the members' sinks; those whose sink wants to end."""
        if not self._rows:
            return set()
        first = self._trainings[self._alive[0]].module.steps_done - len(self._rows)
        table = torch.stack(self._rows, dim=1).tolist()
        rates = zip(*self._rates, strict=True)
        self._rows, self._rates = [], []
        return {
            k
            for k, rows, own in zip(self._alive, table, rates, strict=True)
            if self._trainings[k].module.sink.on_steps(step_records(first, rows, own))
        }

    @torch.no_grad()
    def _evaluate(self, members: list[int]) -> set[int]:
        """Validate; those whose sink wants to end."""
        self.ensemble.take(members)
        trainings = [self._trainings[k] for k in members]
        sums: list[list[Tensor]] = [[] for _ in members]
        for batches in zip(*(training.validation for training in trainings), strict=True):
            amplitude = torch.stack([batch.amplitude for batch in batches], dim=1)
            prediction = self.ensemble(amplitude)
            losses = self.ensemble.frame_losses(amplitude, prediction)
            for k, own in enumerate(sums):
                count = losses.new_tensor(len(losses))
                own.append(torch.cat((torch.stack((losses[:, k].sum(), count)), spread_sums(prediction.patches[:, k]))))
        self.ensemble.take(self._alive)
        ending = set()
        for k, training, own in zip(members, trainings, sums, strict=True):
            record = evaluation_record(training.module.steps_done, own)
            if training.module.sink.on_eval(record):
                ending.add(k)
            if training.module.training_config.scheduler == "plateau":
                training.scheduler.step(record.val_loss)
        return ending
