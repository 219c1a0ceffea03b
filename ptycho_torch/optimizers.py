"""Optimizers and learning-rate schedules by name.

A small network has many small tensors, and an optimizer's step then costs calls, not arithmetic. So
small parameters become views of one array for each type, large ones are left where they are, and the
optimizer steps these arrays, as real numbers also where the parameters are complex.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from ptycho_torch.clipping.norms import as_real
from ptycho_torch.config_params import TrainingConfig

ADAM_SECOND_MOMENT_DECAY = 0.999
SMALL = 2**18  # numbers of a parameter that shares an array: to copy a larger gradient costs more than a call

Parameters = Iterable[Tensor]


class FlatParameters:
    """Parameters of one type as views of one array.

    This holds as long as they keep their memory: a module that moves to another device moves before.

    Args:
        parameters: dense, in whatever order their numbers lie in memory.

    Attributes:
        values: (n,) real, all weights, complex ones as pairs.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        parts = [_as_it_lies(p.detach(), p) for p in parameters]
        flat = parts[0] if len(parts) == 1 else torch.cat(parts)
        for p, view in zip(parameters, self._views(flat), strict=True):
            p.data = view
        self.values = nn.Parameter(as_real(flat).view(-1))
        gradient = torch.zeros_like(flat) if len(parts) > 1 else flat.new_empty(0)
        self._gradient, self._gradients = as_real(gradient).view(-1), self._views(gradient)

    def _views(self, flat: Tensor) -> list[Tensor]:
        """The parts of ``flat`` in the shapes of the parameters and as these lie in memory."""
        parts = flat.split([p.numel() for p in self._parameters]) if len(flat) else ()
        return [part.as_strided(p.shape, p.stride()) for p, part in zip(self._parameters, parts, strict=False)]

    def collect_gradient(self) -> None:
        """Give ``values`` the gradients of the parameters; a large one where it lies."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        if self._gradients:
            torch._foreach_copy_(self._gradients, gradients)
            self.values.grad = self._gradient
        else:
            self.values.grad = as_real(_as_it_lies(gradients[0], self._parameters[0])).view(-1)

    def clear_gradient(self) -> None:
        """Take them away."""
        for p in (self.values, *self._parameters):
            p.grad = None


def _as_it_lies(tensor: Tensor, like: Tensor) -> Tensor:
    """(n,) the numbers of ``tensor`` in the order in which those of ``like`` lie in memory."""
    order = sorted(range(like.ndim), key=like.stride, reverse=True)
    return tensor.permute(order).reshape(-1)


class _OnFlatParameters(torch.optim.Optimizer):
    """An optimizer over :class:`FlatParameters`, used like one over the parameters themselves."""

    def __init__(self, parameters: Iterable[Tensor], **settings: Any) -> None:
        together: dict[object, list[Tensor]] = defaultdict(list)
        for p in parameters:
            if p.requires_grad:
                together[p.dtype if p.numel() <= SMALL else id(p)].append(p)
        self._flat = [FlatParameters(group) for group in together.values()]
        super().__init__([flat.values for flat in self._flat], **settings)

    def step(self, closure: Any = None) -> Any:
        """One step with the gradients that the parameters have now; a parameter without one counts as zero."""
        loss = None if closure is None else closure()
        for flat in self._flat:
            flat.collect_gradient()
        super().step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for flat in self._flat:
            flat.clear_gradient()


class FlatAdam(_OnFlatParameters, torch.optim.Adam):
    """Adam (Kingma & Ba 2015, Algorithm 1)."""


class FlatAdamW(_OnFlatParameters, torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, Algorithm 2)."""


class FlatSGD(_OnFlatParameters, torch.optim.SGD):
    """Gradient descent with momentum."""


OPTIMIZERS: Mapping[str, Callable[[Parameters, TrainingConfig], Optimizer]] = {
    "adam": lambda parameters, c: FlatAdam(
        parameters,
        lr=c.learning_rate,
        betas=(c.momentum, ADAM_SECOND_MOMENT_DECAY),
        weight_decay=c.weight_decay,
        fused=True,
    ),
    "adamw": lambda parameters, c: FlatAdamW(
        parameters,
        lr=c.learning_rate,
        betas=(c.momentum, ADAM_SECOND_MOMENT_DECAY),
        weight_decay=c.weight_decay,
        fused=True,
    ),
    "sgd": lambda parameters, c: FlatSGD(
        parameters,
        lr=c.learning_rate,
        momentum=c.momentum,
        weight_decay=c.weight_decay,
        fused=True,
    ),
}


def make_optimizer(parameters: Parameters, config: TrainingConfig) -> Optimizer:
    """The configured optimizer over ``parameters``, which become views of flat arrays."""
    return OPTIMIZERS[config.optimizer](parameters, config)


def make_scheduler(
    optimizer: Optimizer, config: TrainingConfig, total_steps: int
) -> LRScheduler | ReduceLROnPlateau | None:
    """The configured schedule, or None. The training step steps it: Lightning does not, here."""
    if config.scheduler == "warmup_cosine":
        warmup, floor = config.warmup_steps, config.scheduler_floor
        return LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total_steps, floor))
    if config.scheduler == "plateau":
        return ReduceLROnPlateau(
            optimizer,
            factor=config.plateau_factor,
            patience=config.plateau_patience,
            min_lr=config.scheduler_floor * config.learning_rate,
        )
    return None


def warmup_cosine(step: int, warmup: int, total: int, floor: float) -> float:
    """Part of the peak rate at ``step``: a linear rise over ``warmup`` steps, then half a cosine down to ``floor``.

    >>> [round(warmup_cosine(s, 2, 6, 0.0), 3) for s in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
