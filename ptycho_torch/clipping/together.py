"""The clippers of an ensemble: gradients are read and scaled for all at once, each clipper judges its own.

Shape legend: K members, P real numbers of a member's weights, R units of its gradient, T its parameters; one
parameter has U of the units, with L entries each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ptycho.errors import InputError
from ptycho_torch.clipping.clipper import Clipper
from ptycho_torch.clipping.norms import as_real, norms_of_rows, total_norm
from ptycho_torch.clipping.record import ClipReport
from ptycho_torch.clipping.units import Clipped, list_parameters

Views = Callable[[Tensor], list[Tensor]]


class MemberUnits(NamedTuple):
    """The ``Units`` of ``ptycho_torch.clipping.blocks``, the same for every member."""

    owner: Tensor
    exempt: Tensor
    kept: Tensor
    wide: bool


class ClippersTogether:
    """Clips the gradients of models of one architecture, each by a clipper of its own.

    Args:
        model: one of the models.
        clippers: of all of them.
        views: from rows (K, P) to their parameters, (K, *shape) each: the same memory.

    Raises:
        InputError: an algorithm that changes a gradient in a way of its own.
    """

    def __init__(self, model: nn.Module, clippers: Sequence[Clipper], views: Views) -> None:
        for clipper in clippers:
            if clipper.rule.act == "change":
                raise InputError(f"ensemble: algorithm {clipper.algorithm!r} has no form for several members")
        self._items, self._views = list_parameters(model), views
        device = self._items[0].parameter.device
        final = torch.tensor([item.final for item in self._items], device=device)
        counts = [math.prod(item.parameter.shape[a] for a in item.axes) * item.groups for item in self._items]
        owner = torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))
        wide = any(as_real(item.parameter).dtype == torch.float64 for item in self._items)
        kept = torch.ones((), dtype=torch.bool, device=device)
        self._counts = counts
        self._units = MemberUnits(owner, final[owner], kept, wide)
        self._tensors = MemberUnits(torch.arange(len(counts), device=device), final, kept, wide)

    @torch.no_grad()
    def __call__(self, clippers: Sequence[Clipper], weights: Tensor, gradients: Tensor) -> list[ClipReport]:
        """Clip the rows of ``gradients`` (K, P) in place, and say what each clipper saw."""
        compared = [weights] if any(clipper.rule.weights for clipper in clippers) else []
        of_units = self._norms(gradients, *compared)
        of_tensors = self._tensor_norms(of_units)
        seen, factors = [], []
        for k, clipper in enumerate(clippers):
            units, norms = (self._units, of_units) if clipper.rule.per_unit else (self._tensors, of_tensors)
            total = total_norm(norms[k], units.wide)
            own_weights = norms[len(clippers) + k] if clipper.rule.weights else None
            seen.append((units, norms[k], total))
            factors.append(clipper.judge(units, norms[k], total, own_weights))
        acts = [clipper.rule.act for clipper in clippers]
        if "scale" in acts:
            self._scale_(gradients, [own if act == "scale" else None for act, own in zip(acts, factors, strict=True)])
        if "clamp" in acts:
            limits = [c.threshold if c.rule.act == "clamp" else None for c in clippers]
            shrunk = self._clamp_(gradients, of_tensors[: len(clippers)], limits)
            factors = [shrunk[k] if acts[k] == "clamp" else own for k, own in enumerate(factors)]
        return [c.report(*of, factors=own) for c, of, own in zip(clippers, seen, factors, strict=True)]

    def _norms(self, *rows: Tensor) -> Tensor:
        """(n * K, R) norms of the units of n lists of rows (K, P)."""

        def matrices() -> Iterator[list[Tensor]]:
            for item, *views in zip(self._items, *(self._views(r) for r in rows), strict=True):
                yield [_units_first(view, item).entries for view in views]

        return norms_of_rows(matrices, sum(map(len, rows)), rows[0].device)

    def _tensor_norms(self, of_units: Tensor) -> Tensor:
        """(n, T) norms of whole parameters from those (n, R) of their units."""
        squares = of_units.new_zeros(len(of_units), len(self._items))
        return squares.index_add_(1, self._units.owner, of_units.square()).sqrt_()

    def _scale_(self, gradients: Tensor, factors: Sequence[Tensor | None]) -> None:
        """Multiply each member's units by its factors: 0-d, (T,) or (R,)."""
        by_unit = gradients.new_ones(len(gradients), len(self._units.owner))
        for row, own in zip(by_unit, factors, strict=True):
            if own is not None:
                row.copy_(own[self._units.owner] if own.ndim and len(own) == len(self._items) else own)
        parts = by_unit.split(self._counts, dim=1)  # type: ignore[no-untyped-call]
        for item, view, part in zip(self._items, self._views(gradients), parts, strict=True):
            _units_first(view, item).scale_(part)

    def _clamp_(self, gradients: Tensor, norms: Tensor, limits: Sequence[float | None]) -> Tensor:
        """Clamp the entries of the parameters whose norm (K, T) is finite; what became of the norms, as factors."""
        limit = torch.tensor([math.inf if each is None else each for each in limits], device=gradients.device)
        bounds = torch.where(norms.isfinite(), limit[:, None], math.inf).to(gradients.dtype)
        for view, bound in zip(self._views(gradients), bounds.unbind(1), strict=True):
            real = as_real(view)
            wide = bound.view(-1, *[1] * (real.ndim - 1))
            real.clamp_(-wide, wide)
        after = self._tensor_norms(self._norms(gradients))
        return torch.where((norms > 0) & norms.isfinite(), after / norms, 1.0)


class _UnitsFirst(NamedTuple):
    """One parameter of all members as real numbers (K, *unit axes, *other axes), the same memory."""

    view: Tensor
    unit_axes: int

    @property
    def entries(self) -> Tensor:
        """(K, U, L)."""
        units = math.prod(self.view.shape[1 : 1 + self.unit_axes])
        return self.view.reshape(len(self.view), units, -1)

    def scale_(self, factors: Tensor) -> None:
        """Multiply by factors (K, U)."""
        others = [1] * (self.view.ndim - 1 - self.unit_axes)
        self.view.mul_(factors.reshape(*self.view.shape[: 1 + self.unit_axes], *others))


def _units_first(view: Tensor, item: Clipped) -> _UnitsFirst:
    """A parameter's units in front, its other axes in the order in which they lie in memory."""
    real, axes = as_real(view), [axis + 1 for axis in item.axes]
    if item.groups > 1:
        real = real.unflatten(1, (item.groups, -1))  # type: ignore[no-untyped-call]
        axes = [1, *(axis + 1 for axis in axes)]
    others = [axis for axis in range(1, real.ndim) if axis not in axes]
    others.sort(key=real.stride, reverse=True)
    return _UnitsFirst(real.permute(0, *axes, *others), len(axes))
