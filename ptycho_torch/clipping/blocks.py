"""Gradients as rows, one for each unit, in few large blocks instead of many small tensors.

What clipping costs is, for large tensors, passes over the memory and, for small ones, the number of
calls. So a large tensor is read where it stands, and small ones of the same shape are stacked first.

Shape legend: K tensors of a block, R rows in all, L entries of a row.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor

from ptycho.errors import InputError
from ptycho_torch.clipping.norms import as_real, norms_of_rows, total_norm
from ptycho_torch.clipping.units import Clipped

SMALL = 2**14
"""Largest number of entries of a tensor that is stacked with others: 64 KiB, a copy that stays in the cache."""


class Block:
    """Parameters of one shape whose rows make one matrix (R, L): one as it stands, or several small ones stacked.

    Args:
        items: the parameters, all alike.
        unitwise: rows are the units of a parameter; else each parameter is one row.
    """

    def __init__(self, items: Sequence[Clipped], unitwise: bool) -> None:
        p = items[0].parameter
        self.items = items
        self.dtype = p.dtype.to_real() if p.is_complex() else p.dtype
        self.groups = items[0].groups if unitwise else 1
        shape = (*p.shape, 2) if p.is_complex() else tuple(p.shape)
        axes = items[0].axes if unitwise else ()
        if self.groups > 1:
            shape = (self.groups, shape[0] // self.groups, *shape[1:])
            axes = (0, *(a + 1 for a in axes))
        self.units_each = math.prod(shape[a] for a in axes)
        self.length = math.prod(shape) // self.units_each
        self.small = p.numel() <= SMALL
        self._plain = not p.is_complex() and self.groups == 1
        self._scale_shape = tuple(n if a in axes else 1 for a, n in enumerate(shape)) if axes else ()
        self._row_axes = (0, *(a + 1 for a in axes))
        self._rest_axes = [a for a in range(1, len(shape) + 1) if a not in self._row_axes]
        self._rows_lead = self._row_axes == tuple(range(len(self._row_axes)))

    def matrices(self, lists: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The rows of the members in each of ``lists``: (len(lists) * R, L), in one piece or in several.

        Small tensors of all lists are stacked, which saves calls; a large one is viewed as it stands.
        """
        tensors = list(itertools.chain.from_iterable(lists))
        if self.small:
            return [self._rows(torch.stack(tensors))]
        return [self._rows(tensor.unsqueeze(0)) for tensor in tensors]

    def _rows(self, stack: Tensor) -> Tensor:
        """(n, *shape) as the matrix of its rows, a view wherever the memory allows it."""
        if self._plain and self._rows_lead and stack.is_contiguous():
            return stack.view(-1, self.length)
        real = as_real(stack)
        if self.groups > 1:
            real = real.unflatten(1, (self.groups, -1))  # type: ignore[no-untyped-call]
        if self._rows_lead and real.is_contiguous():
            return real.view(-1, self.length)
        rest = sorted(self._rest_axes, key=real.stride, reverse=True)  # as it lies in memory, channels-last too
        return real.permute(*self._row_axes, *rest).reshape(-1, self.length)

    def real_views(self, members: list[Tensor]) -> list[Tensor]:
        """The members as the real tensors that :meth:`scale_views` multiply; the same memory."""
        if self._plain:
            return members
        views = [as_real(tensor) for tensor in members]
        return [v.unflatten(0, (self.groups, -1)) for v in views] if self.groups > 1 else views  # type: ignore[no-untyped-call]

    def scale_views(self, scales: Tensor) -> list[Tensor]:
        """Views of ``scales`` (R,), one for each member, that broadcast against :meth:`real_views`."""
        return list(scales.view(len(self.items), *self._scale_shape).unbind())


class Units(Protocol):
    """What is known of the units of a gradient besides their norms.

    Attributes:
        owner: (R,) int64, for each unit the place of its parameter.
        exempt: (R,) bool, units of the final layer.
        kept: 0-d bool, True.
        wide: whether a gradient is float64.
    """

    @property
    def owner(self) -> Tensor: ...
    @property
    def exempt(self) -> Tensor: ...
    @property
    def kept(self) -> Tensor: ...
    @property
    def wide(self) -> bool: ...


class Plan:
    """The blocks of the parameters that take part in one step, made once and used until that set changes.

    Args:
        items: the parameters that take part.
        places: the place of each among all parameters of the clipper.
        unitwise: rows are output units; else whole parameters.

    Attributes:
        parameters: those that take part, block by block: the order of the rows and of every list given here.
        device: where they are.
        owner: (R,) int64, for each row the place of its parameter.
        exempt: (R,) bool, rows of the final layer.
        kept: 0-d bool, True.
        wide: whether a gradient is float64.
    """

    def __init__(self, items: Sequence[Clipped], places: Sequence[int], unitwise: bool) -> None:
        self.device = _common_device(items)
        self._blocks = [Block(alike, unitwise) for alike in _alike(items, unitwise)]
        ordered = [item for block in self._blocks for item in block.items]
        rows = [item for block in self._blocks for item in block.items for _ in range(block.units_each)]
        place = {id(item): i for item, i in zip(items, places, strict=True)}
        self.parameters = [item.parameter for item in ordered]
        self._made_for = (self.device, self.parameters[0].dtype) if ordered else None
        self.owner = torch.tensor([place[id(item)] for item in rows], dtype=torch.int64, device=self.device)
        self.exempt = torch.tensor([item.final for item in rows], dtype=torch.bool, device=self.device)
        self.kept = torch.ones((), dtype=torch.bool, device=self.device)
        self.wide = any(block.dtype == torch.float64 for block in self._blocks)
        self._scales = {
            dtype: torch.ones(len(rows), dtype=dtype, device=self.device)
            for dtype in {_scale_dtype(block) for block in self._blocks}
        }
        self._scale_views = [view for block, scales in self._scales_by_block() for view in block.scale_views(scales)]

    def gradients(self) -> list[Tensor] | None:
        """The gradients, in order; None where one is gone, or the parameters have been moved or cast since."""
        found = [p.grad for p in self.parameters]
        if True in [gradient is None for gradient in found]:
            return None
        if self.parameters and (self.parameters[0].device, self.parameters[0].dtype) != self._made_for:
            return None
        return cast("list[Tensor]", found)

    def _scales_by_block(self) -> Iterator[tuple[Block, Tensor]]:
        start = 0
        for block in self._blocks:
            stop = start + len(block.items) * block.units_each
            yield block, self._scales[_scale_dtype(block)][start:stop]
            start = stop

    def _by_block(self, *lists: list[Tensor]) -> Iterator[tuple[Block, list[list[Tensor]]]]:
        start = 0
        for block in self._blocks:
            stop = start + len(block.items)
            yield block, [tensors[start:stop] for tensors in lists]
            start = stop

    def norms(self, *lists: list[Tensor]) -> Tensor:
        """(len(lists), R) float64 norms of the rows of each list."""
        return norms_of_rows(partial(self._matrices, lists), len(lists), self.device)

    def _matrices(self, lists: Sequence[list[Tensor]]) -> Iterator[list[Tensor]]:
        return (block.matrices(members) for block, members in self._by_block(*lists))

    def total(self, norms: Tensor) -> Tensor:
        """0-d float64 global norm from those of the rows."""
        return total_norm(norms, self.wide)

    def real_views(self, tensors: list[Tensor]) -> list[Tensor]:
        """``tensors`` as real numbers, the same memory."""
        return [view for block, (members,) in self._by_block(tensors) for view in block.real_views(members)]

    def multiply_(self, tensors: list[Tensor], factors: Tensor) -> None:
        """Multiply the rows of ``tensors`` by ``factors``: (R,), or 0-d for all alike."""
        if not tensors:
            return
        for scales in self._scales.values():
            scales.copy_(factors)
        if factors.ndim == 0 and len(self._scales) == 1:
            (scales,) = self._scales.values()
            torch._foreach_mul_(self.real_views(tensors), scales[0])
        else:
            torch._foreach_mul_(self.real_views(tensors), self._scale_views)


def _scale_dtype(block: Block) -> torch.dtype:
    """Factors multiply in float64 where the gradient is that wide, else in float32, for half precision too."""
    return torch.float64 if block.dtype == torch.float64 else torch.float32


def _alike(items: Sequence[Clipped], unitwise: bool) -> list[list[Clipped]]:
    """Members of each block: a large tensor alone, small ones with all of the same shape, type and units."""
    blocks: dict[object, list[Clipped]] = defaultdict(list)
    for item in items:
        p = item.parameter
        units = (item.axes, item.groups) if unitwise else None
        blocks[(p.shape, p.dtype, units) if p.numel() <= SMALL else id(item)].append(item)
    return list(blocks.values())


def _common_device(items: Sequence[Clipped]) -> torch.device:
    for item in items:
        gradient = item.parameter.grad
        if gradient is not None and gradient.layout != torch.strided:
            raise InputError(f"gradient of {item.name}: {gradient.layout}; allowed: dense (an embedding: sparse=False)")
    devices = {item.parameter.device for item in items}
    if len(devices) > 1:
        raise InputError(f"parameters: on {', '.join(sorted(map(str, devices)))}; allowed: one device")
    return devices.pop() if devices else torch.device("cpu")
