"""Gradients as rows, one for each unit, in few large blocks instead of many small tensors.

What clipping costs is, for large tensors, passes over the memory and, for small ones, the number of
calls. So a large tensor is read where it stands, and small ones of the same shape are stacked first.

Shape legend: K tensors of a block, R rows in all, L entries of a row.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ptycho.errors import InputError
from ptycho_torch.clipping.norms import as_real, norms_of_rows, total_norm
from ptycho_torch.clipping.units import Clipped

SMALL = 2**14
"""Largest number of entries of a tensor that is stacked with others: 64 KiB, a copy that stays in the cache."""


class Block:
    """Tensors of one shape whose rows make one matrix (R, L): one as it stands, or copies of several small ones.

    Args:
        members: places of the tensors in the lists that :meth:`matrices` is given.
        item: one of the parameters; they are all alike.
        unitwise: rows are the units of a parameter; else each parameter is one row.
    """

    def __init__(self, members: Sequence[int], item: Clipped, unitwise: bool) -> None:
        p = item.parameter
        self.members = members
        self.groups = item.groups if unitwise else 1
        shape = (*p.shape, 2) if p.is_complex() else tuple(p.shape)
        axes = item.axes if unitwise else ()
        if self.groups > 1:
            shape = (self.groups, shape[0] // self.groups, *shape[1:])
            axes = (0, *(a + 1 for a in axes))
        self.n_units = math.prod(shape[a] for a in axes)
        self.n_rows = len(members) * self.n_units
        self.length = math.prod(shape) // self.n_units
        self._scale_shape = (len(members), *(n if a in axes else 1 for a, n in enumerate(shape)))
        self._row_axes = (0, *(a + 1 for a in axes))
        self._rest_axes = [a for a in range(1, len(shape) + 1) if a not in self._row_axes]
        self.whole = not axes
        self.plain = not p.is_complex() and self.groups == 1
        self.plain_rows = self._row_axes == tuple(range(len(self._row_axes)))
        self.small = p.numel() <= SMALL

    def matrices(self, *lists: Sequence[Tensor]) -> list[Tensor]:
        """The members' rows in each of ``lists``: (len(lists) * R, L) in one piece or in several.

        Small tensors of all lists are stacked, which saves calls; a large one is viewed as it stands.
        """
        chosen = [tensors[i] for tensors in lists for i in self.members]
        if self.small:
            return [self._rows(torch.stack(chosen))]
        return [self._rows(tensor.unsqueeze(0)) for tensor in chosen]

    def _rows(self, stack: Tensor) -> Tensor:
        """(n, *shape) as the matrix of its rows, a view wherever the memory allows it."""
        real = as_real(stack)
        if self.groups > 1:
            real = real.unflatten(1, (self.groups, -1))  # type: ignore[no-untyped-call]
        if self.plain_rows and real.is_contiguous():
            return real.view(-1, self.length)
        rest = sorted(self._rest_axes, key=real.stride, reverse=True)  # as it lies in memory, channels-last too
        return real.permute(*self._row_axes, *rest).reshape(-1, self.length)

    def scaled_view(self, tensor: Tensor) -> Tensor:
        """One member as the real tensor that its scales multiply; the same memory."""
        real = as_real(tensor)
        return real.unflatten(0, (self.groups, -1)) if self.groups > 1 else real  # type: ignore[no-untyped-call]

    def scale_views(self, scales: Tensor) -> list[Tensor]:
        """Views of ``scales`` (R,), one for each member, that broadcast against :meth:`scaled_view`."""
        return list(scales.unbind() if self.whole else scales.view(self._scale_shape).unbind())


class Plan:
    """The blocks of the parameters that take part in one step, made once and used until that set changes.

    Attributes:
        device: where the parameters are.
        owner: (R,) int64, for each row the place of its parameter among all parameters of the clipper.
        exempt: (R,) bool, rows of the final layer.
        kept: 0-d bool, True.
        wide: whether a gradient is float64.
    """

    def __init__(self, items: Sequence[Clipped], places: Sequence[int], unitwise: bool) -> None:
        self._items = items
        self.device = _common_device(items)
        self._blocks = [Block(members, items[members[0]], unitwise) for members in _alike(items, unitwise)]
        owners = [i for block in self._blocks for i in block.members for _ in range(block.n_units)]
        self.owner = torch.tensor([places[i] for i in owners], dtype=torch.int64, device=self.device)
        self.exempt = torch.tensor([items[i].final for i in owners], dtype=torch.bool, device=self.device)
        self.kept = torch.ones((), dtype=torch.bool, device=self.device)
        self._order = [i for block in self._blocks for i in block.members]
        self._special = [n for n, (block, _) in enumerate(self._members()) if not block.plain]
        self._scales = {
            dtype: torch.ones(len(owners), dtype=dtype, device=self.device)
            for dtype in {_scale_dtype(item.parameter) for item in items}
        }
        self._scale_views = self._views_of_scales()
        self.wide = torch.float64 in self._scales

    def _members(self) -> Iterator[tuple[Block, int]]:
        return ((block, i) for block in self._blocks for i in block.members)

    def _views_of_scales(self) -> list[Tensor]:
        views, start = [], 0
        for block in self._blocks:
            scales = self._scales[_scale_dtype(self._items[block.members[0]].parameter)]
            views += block.scale_views(scales[start : start + block.n_rows])
            start += block.n_rows
        return views

    def norms(self, *lists: Sequence[Tensor]) -> Tensor:
        """(len(lists), R) float64 norms of the rows; each list stands in the order of the parameters that take part."""
        return norms_of_rows(lambda: (block.matrices(*lists) for block in self._blocks), len(lists), self.device)

    def total(self, norms: Tensor) -> Tensor:
        """0-d float64 global norm from those of the rows."""
        return total_norm(norms, self.wide)

    def weights(self) -> list[Tensor]:
        """The parameters that take part."""
        return [item.parameter for item in self._items]

    def in_order(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """``tensors`` as real views, in the order of the rows."""
        ordered = [tensors[i] for i in self._order]
        if self._special:
            members = list(self._members())
            for n in self._special:
                ordered[n] = members[n][0].scaled_view(ordered[n])
        return ordered

    def multiply_(self, tensors: Sequence[Tensor], factors: Tensor) -> None:
        """Multiply the rows of ``tensors`` by ``factors``: (R,), or 0-d for all alike."""
        if not self._order:
            return
        for scales in self._scales.values():
            scales.copy_(factors)
        if factors.ndim == 0 and len(self._scales) == 1:
            (scales,) = self._scales.values()
            torch._foreach_mul_(self.in_order(tensors), scales[0])
        else:
            torch._foreach_mul_(self.in_order(tensors), self._scale_views)


def _real_dtype(tensor: Tensor) -> torch.dtype:
    return tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype


def _scale_dtype(tensor: Tensor) -> torch.dtype:
    """Factors multiply in float64 where the tensor is that wide, else in float32, for half precision too."""
    return torch.float64 if _real_dtype(tensor) == torch.float64 else torch.float32


def _alike(items: Sequence[Clipped], unitwise: bool) -> list[list[int]]:
    """Members of each block: a large tensor alone, small ones with all of the same shape, type and units."""
    blocks: dict[object, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        p = item.parameter
        units = (item.axes, item.groups) if unitwise else None
        blocks[(p.shape, p.dtype, units) if p.numel() <= SMALL else i].append(i)
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
