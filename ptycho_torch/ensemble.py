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
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from ptycho_torch.clipping.norms import as_real, norms_of_rows
from ptycho_torch.clipping.record import ClipReport
from ptycho_torch.clipping.together import ClippersTogether
from ptycho_torch.dataset import PtychoBatch
from ptycho_torch.generators.stacked import StackedGenerator
from ptycho_torch.losses import LOSSES, LossScale
from ptycho_torch.model import Prediction, PtychoPINN_Lightning, evaluation_record, spread_sums
from ptycho_torch.optimizers import make_optimizer, make_scheduler
from ptycho_torch.physics import diffract
from ptycho_torch.telemetry import FLUSH_EVERY_STEPS, step_records

CACHE_LINE = 16  # numbers


class Member(NamedTuple):
    """One training as a Trainer would get it: its module, its training and its validation loader."""

    module: PtychoPINN_Lightning
    steps: DataLoader[PtychoBatch]
    validation: DataLoader[PtychoBatch]


class StackedWeights:
    """The weights of K models as rows of one array, of which the models' own parameters become views.

    Attributes:
        values: (K, P) real, complex weights as pairs and in front; each row is filled up to whole cache lines.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        lists = [list(model.parameters()) for model in models]
        self._like = lists[0]
        self._order = sorted(range(len(self._like)), key=lambda i: not self._like[i].is_complex())
        self._lengths = [as_real(self._like[i].detach()).numel() for i in self._order]
        self._lengths.append(-sum(self._lengths) % CACHE_LINE)
        rows = [
            torch.cat(
                [*(_as_it_lies(own[i]) for i in self._order), as_real(own[0].detach()).new_zeros(self._lengths[-1])]
            )
            for own in lists
        ]
        self.values = torch.stack(rows)
        for own, row in zip(lists, self.values, strict=True):
            for p, view in zip(own, self.views(row), strict=True):
                p.data = view

    def views(self, rows: Tensor) -> list[Tensor]:
        """Rows (..., P) as the parameters (..., *shape), in the models' order: the same memory."""
        parts = dict(zip(self._order, rows.split(self._lengths, dim=-1), strict=False))
        return [_shaped(parts[i], p) for i, p in enumerate(self._like)]


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


class ModelsTogether:
    """K models of one architecture as one, each followed by its own experiment and its own loss.

    Args:
        network: of the architecture.
        weights: from rows (K, P) to the network's parameters.
        modules: the members' modules.
    """

    def __init__(
        self, network: StackedGenerator, weights: StackedWeights, modules: Sequence[PtychoPINN_Lightning]
    ) -> None:
        self._network, self._weights = network, weights
        self._names = [name for name, _ in network.named_parameters()]
        self._probe = torch.stack([module.model.probe for module in modules])[:, None]
        self._loss = LOSSES[modules[0].training_config.torch_loss_mode]
        self._scale = LossScale.stack([module.loss_scale for module in modules])

    def explain(self, rows: Tensor, amplitude: Tensor) -> Prediction:
        """(B, K, C, N, N) measured amplitudes -> what they show under weights (K, P)."""
        weights = {
            name: view.view(-1, 1, 1, 1) if view.ndim == 1 else view  # one number for all of a member's pixels
            for name, view in zip(self._names, self._weights.views(rows), strict=True)
        }
        patches = torch.func.functional_call(self._network, weights, (amplitude,))
        return Prediction(patches, diffract(patches, self._probe))

    def frame_losses(self, amplitude: Tensor, prediction: Prediction) -> Tensor:
        """(B, K) loss of each frame of each member."""
        return self._loss(prediction.intensity, amplitude, self._scale)


class _Training:
    """What a member has of its own: frames, clipper, optimizer, schedule.

    Attributes:
        weights: (P,) all of its model's, the same memory.
    """

    def __init__(self, member: Member, weights: Tensor) -> None:
        self.module, self.config = member.module, member.module.training_config
        self.batches = _endless(member.steps)
        self.validation = list(member.validation)
        self.weights = nn.Parameter(weights)
        self.module.clipper = self.module.make_clipper()
        self.optimizer = make_optimizer([self.weights], self.config)
        self._schedule = make_scheduler(self.optimizer, self.config, self.module.total_steps)

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, gradient: Tensor, report: ClipReport) -> None:
        """Move the weights by a clipped gradient (P,)."""
        module, config = self.module, self.config
        self.weights.grad = gradient
        if not module.clipper.can_skip or bool(report.keep):
            self.optimizer.step()
        self.optimizer.zero_grad()
        if config.log_grad_norm and module.steps_done % config.grad_norm_log_freq == 0:
            module.sink.on_layer_norms(module.steps_done, module.clipper.layer_norms())
        module.steps_done += 1
        if self._schedule is not None and not isinstance(self._schedule, ReduceLROnPlateau):
            self._schedule.step()

    def evaluated(self, sums: Sequence[Tensor]) -> bool:
        """Record a validation; whether the training ends with it."""
        record = evaluation_record(self.module.steps_done, sums)
        ends = self.module.sink.on_eval(record)
        if isinstance(self._schedule, ReduceLROnPlateau):
            self._schedule.step(record.val_loss)
        return ends


def _endless(loader: DataLoader[PtychoBatch]) -> Iterator[PtychoBatch]:
    while True:
        yield from loader


class EnsembleTrainer:
    """Trains members together, each to its own end.

    Args:
        members: trainings with the same network, loss, batches and numbers of steps and frames.

    Raises:
        InputError: the network has a layer without a form for several members.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        models = [member.module.model for member in members]
        self._network = StackedGenerator(models[0].generator)
        self._weights = StackedWeights(models)
        self._running = [_Training(m, row) for m, row in zip(members, self._weights.values, strict=True)]
        clippers = [training.module.clipper for training in self._running]
        self._clip = ClippersTogether(models[0], clippers, self._weights.views)
        self._models = self._together(self._running)
        self._rows: list[Tensor] = []
        self._rates: list[list[float]] = []

    def fit(self) -> None:
        """Step until every member has ended."""
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[None]:
        """Train step by step, at each caller's pace, until every member has ended."""
        while self._running:
            self._step()
            module, config = self._running[0].module, self._running[0].config
            over = module.steps_done >= module.total_steps
            ended = set(self._running) if over else set()
            validate = module.steps_done % config.eval_every == 0
            if over or validate or len(self._rows) >= FLUSH_EVERY_STEPS:
                ended |= self._flush()
            ended |= self._validate([t for t in self._running if validate or t in ended])
            if ended:
                self._running = [training for training in self._running if training not in ended]
                self._models = self._together(self._running) if self._running else self._models
            yield

    def _together(self, trainings: Sequence[_Training]) -> ModelsTogether:
        return ModelsTogether(self._network, self._weights, [training.module for training in trainings])

    def _weights_of(self, trainings: Sequence[_Training]) -> Tensor:
        """(K, P) weights, the members' own memory as long as none has ended."""
        everyone = self._weights.values
        return everyone if len(trainings) == len(everyone) else torch.stack([t.weights.detach() for t in trainings])

    def _step(self) -> None:
        running = self._running
        rows = self._weights_of(running).detach().requires_grad_()
        loss = self._backward(rows, torch.stack([next(t.batches).amplitude for t in running], dim=1))
        assert rows.grad is not None
        before = rows.detach().clone()
        reports = self._clip([t.module.clipper for t in running], before, rows.grad)
        self._rates.append([training.rate for training in running])
        for training, gradient, report in zip(running, rows.grad, reports, strict=True):
            training.step(gradient, report)
        seen = [(report.norm_before, report.norm_after, report.clipped_fraction) for report in reports]
        clipped = torch.stack([number for own in seen for number in own]).view(len(running), -1)
        weight_norm = _norms(before)
        update_norm = _norms(before.sub_(self._weights_of(running)))
        columns = [loss.double()[:, None], clipped, (update_norm / weight_norm)[:, None], weight_norm[:, None]]
        self._rows.append(torch.cat(columns, dim=1))

    def _backward(self, rows: Tensor, amplitude: Tensor) -> Tensor:
        """Give the weights (K, P) the gradient of every member's mean loss (K,); the losses."""
        total = torch.zeros(len(rows), device=rows.device)
        for part in amplitude.split(self._running[0].config.batch_size):
            losses = self._models.frame_losses(part, self._models.explain(rows, part)).sum(0) / len(amplitude)
            losses.sum().backward()
            total += losses.detach()
        return total

    def _flush(self) -> set[_Training]:
        """Hand the records over to the members' sinks; those that end with it."""
        if not self._rows:
            return set()
        first = self._running[0].module.steps_done - len(self._rows)
        tables, rates = torch.stack(self._rows, dim=1).tolist(), zip(*self._rates, strict=True)
        self._rows, self._rates = [], []
        return {
            training
            for training, table, own in zip(self._running, tables, rates, strict=True)
            if training.module.sink.on_steps(step_records(first, table, own))
        }

    @torch.no_grad()
    def _validate(self, trainings: Sequence[_Training]) -> set[_Training]:
        """Validate members; those that end with it."""
        if not trainings:
            return set()
        models, rows = self._together(trainings), self._weights_of(trainings)
        size = trainings[0].config.batch_size  # larger ones do not fit into the cache
        sums: list[list[Tensor]] = [[] for _ in trainings]
        for batches in zip(*(training.validation for training in trainings), strict=True):
            for amplitude in torch.stack([batch.amplitude for batch in batches], dim=1).split(size):
                prediction = models.explain(rows, amplitude)
                losses = models.frame_losses(amplitude, prediction)
                for own, loss, patches in zip(sums, losses.unbind(1), prediction.patches.unbind(1), strict=True):
                    own.append(torch.cat((torch.stack((loss.sum(), loss.new_tensor(len(loss)))), spread_sums(patches))))
        return {training for training, own in zip(trainings, sums, strict=True) if training.evaluated(own)}


def _norms(rows: Tensor) -> Tensor:
    """(K,) float64 norms of rows (K, P)."""
    return norms_of_rows(lambda: iter([[rows[:, None]]]), len(rows), rows.device)[:, 0]
