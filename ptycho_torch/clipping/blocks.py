"""Gradients as rows, one for each unit, in few large blocks instead of many small tensors.

What a model's clipping costs is, for large tensors, passes over the memory, and for small ones the
number of calls. So a large tensor is read where it stands, and small ones with rows of equal
length are gathered into one matrix.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from ptycho.errors import InputError
from ptycho_torch.clipping.norms import as_real, norms_of_rows
from ptycho_torch.clipping.units import Clipped

SMALL = 2**14
"""Largest number of entries of a tensor that is gathered with others: 64 KiB, a copy that stays in the cache."""


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """How one tensor is read as rows.

    Attributes:
        shape: of the tensor as real numbers, its first axis split into groups where it has them.
        axes: axes of ``shape`` that number the rows.
        n_rows, length: R and L.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    n_rows: int
    length: int

    def view(self, tensor: Tensor) -> Tensor:
        """The tensor with the axes that number the rows in front; the same memory."""
        real = as_real(tensor)
        if real.shape != self.shape:
            real = real.unflatten(0, self.shape[:2])
        if self.axes == tuple(range(len(self.axes))) and real.is_contiguous():
            return real
        rest = [a for a in range(real.ndim) if a not in self.axes]
        rest.sort(key=lambda a: -real.stride(a))  # channels-last memory is read in the order it lies in
        return real.permute(*self.axes, *rest)

    def multiply_(self, tensor: Tensor, scale: Tensor) -> None:
        """Multiply each row by its entry of ``scale`` (R,)."""
        view = self.view(tensor)
        if not self.axes:
            view.mul_(scale.reshape(()))
        else:
            view.mul_(scale.view(*view.shape[: len(self.axes)], *[1] * (view.ndim - len(self.axes))))


def layout_of(item: Clipped, unitwise: bool) -> Layout:
    """Rows are the units of a parameter, or one row the whole of it."""
    p = item.parameter
    shape = (*p.shape, 2) if p.is_complex() else tuple(p.shape)
    axes = item.axes if unitwise else ()
    if axes and item.groups > 1:
        shape = (item.groups, shape[0] // item.groups, *shape[1:])
        axes = (0, *[a + 1 for a in axes])
    n_rows = math.prod(shape[a] for a in axes)
    return Layout(shape, axes, n_rows, math.prod(shape) // n_rows)


class Block:
    """Tensors whose rows make one matrix (R, L): one tensor as it stands, or copies of several small ones."""

    def __init__(self, members: Sequence[int], layouts: Sequence[Layout], dtype: torch.dtype) -> None:
        self.members = members
        self.layouts = layouts
        self.n_rows = sum(layout.n_rows for layout in layouts)
        self.length = layouts[0].length
        self.scale_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def _views(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [layout.view(tensors[i]) for i, layout in zip(self.members, self.layouts, strict=True)]

    def rows(self, tensors: Sequence[Tensor]) -> Tensor:
        """(R, L) of the members among ``tensors``."""
        if len(self.members) == 1:
            return self._views(tensors)[0].reshape(self.n_rows, self.length)
        return _flatten_dense_tensors(self._views(tensors)).view(self.n_rows, self.length)

    def multiply_(self, tensors: Sequence[Tensor], rows: Tensor, scale: Tensor) -> None:
        """Multiply each row of the members by its entry of ``scale`` (R,); ``rows`` is what :meth:`rows` gave."""
        scale = scale.to(self.scale_dtype)
        if len(self.members) == 1:
            self.layouts[0].multiply_(tensors[self.members[0]], scale)
            return
        rows.mul_(scale[:, None])
        views = self._views(tensors)
        torch._foreach_copy_(views, list(_unflatten_dense_tensors(rows.view(-1), views)))


class Plan:
    """The blocks of the parameters that take part in one step, made once and used until that set changes.

    Attributes:
        items: the parameters that take part, in order.
        owner: (R,) int64, for each row the place of its parameter among all parameters of the clipper.
        exempt: (R,) bool, rows of the final layer.
        n_rows: R.
    """

    def __init__(self, items: Sequence[Clipped], places: Sequence[int], unitwise: bool) -> None:
        self.items = items
        self.device = _common_device(items)
        layouts = [layout_of(item, unitwise) for item in items]
        self.blocks = [
            Block(members, [layouts[i] for i in members], _real_dtype(items[members[0]].parameter))
            for members in _group(items, layouts)
        ]
        self.sizes = [block.n_rows for block in self.blocks]
        self.n_rows = sum(self.sizes)
        order = [i for block in self.blocks for i in block.members for _ in range(layouts[i].n_rows)]
        self.owner = torch.tensor([places[i] for i in order], dtype=torch.int64, device=self.device)
        self.exempt = torch.tensor([items[i].final for i in order], dtype=torch.bool, device=self.device)

    def gradients(self) -> list[Tensor]:
        """The gradients of the parameters that take part."""
        return [item.parameter.grad for item in self.items]  # type: ignore[misc]

    def parameters(self) -> list[Tensor]:
        """The parameters that take part."""
        return [item.parameter for item in self.items]

    def rows(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """One matrix (R_i, L_i) for each block."""
        return [block.rows(tensors) for block in self.blocks]

    def norms(self, rows: list[Tensor]) -> Tensor:
        """(R,) float64."""
        return norms_of_rows(rows, self.device)

    def multiply_(self, tensors: Sequence[Tensor], rows: list[Tensor], scale: Tensor) -> None:
        """Multiply the rows of ``tensors`` by ``scale``: (R,), or 0-d for all alike."""
        if scale.ndim == 0:
            multiply_all_(tensors, scale)
            return
        for block, matrix, part in zip(self.blocks, rows, scale.split(self.sizes), strict=True):
            block.multiply_(tensors, matrix, part)


def multiply_all_(tensors: Sequence[Tensor], scale: Tensor) -> None:
    """Multiply every tensor by the 0-d ``scale``."""
    wide = [as_real(t) for t in tensors if _real_dtype(t) == torch.float64]
    narrow = [as_real(t) for t in tensors if _real_dtype(t) != torch.float64]
    for group, dtype in ((narrow, torch.float32), (wide, torch.float64)):
        if group:
            torch._foreach_mul_(group, scale.to(dtype))


def _real_dtype(tensor: Tensor) -> torch.dtype:
    return tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype


def _group(items: Sequence[Clipped], layouts: Sequence[Layout]) -> list[list[int]]:
    """Members of each block: large tensors alone, small ones with those of the same row length and dtype."""
    groups: dict[object, list[int]] = defaultdict(list)
    for i, (item, layout) in enumerate(zip(items, layouts, strict=True)):
        alike = (layout.length, _real_dtype(item.parameter))
        groups[alike if item.parameter.numel() <= SMALL else i].append(i)
    return list(groups.values())


def _common_device(items: Sequence[Clipped]) -> torch.device:
    for item in items:
        if item.parameter.grad is not None and item.parameter.grad.layout != torch.strided:
            raise InputError(
                f"gradient of {item.name}: sparse; allowed: dense gradients (an embedding with sparse=False)"
            )
    devices = {item.parameter.device for item in items}
    if len(devices) > 1:
        raise InputError(f"parameters: on {', '.join(sorted(map(str, devices)))}; allowed: one device")
    return devices.pop() if devices else torch.device("cpu")
