"""L2 norms of rows that are exact to 1e-6 and do not overflow before their value does.

Shape legend: R rows (in one axis or several), L entries of a row, always real numbers (a complex tensor is viewed
as pairs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

CHUNK = 1024
"""Entries in one float32 accumulation. Its error stays near 3e-10 for random entries and 5e-7 for equal ones, where
2**24 entries in one go give 6e-4 (real) and 3e-3 (complex)."""


def as_real(tensor: Tensor) -> Tensor:
    """The same memory as real numbers; a complex tensor gets a last axis (re, im)."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def norms_of_rows(blocks: Callable[[], Iterator[list[Tensor]]], n_lists: int, device: torch.device) -> Tensor:
    """(n_lists, R) float64 norms of rows that come block by block, each block in matrices (n, L).

    On the host, sums run in float32 (half precision too), and where one overflows all are done
    again by :func:`scaled_norms`: one look at a number in memory. On an accelerator such a look
    would stall the device, and sums run in float64 from the start. Each block is used up before the
    next is made, while it is in the cache.
    """
    on_host = device.type == "cpu"
    parts = [_each(matrices, _fast_norms if on_host else _wide_norms, n_lists) for matrices in blocks()]
    if not parts:
        return torch.zeros(n_lists, 0, dtype=torch.float64, device=device)
    norms = torch.cat(parts, dim=1).double()
    if on_host and _overflowed(norms):
        norms = torch.cat([_each(matrices, scaled_norms, n_lists) for matrices in blocks()], dim=1)
    return norms


def _each(matrices: list[Tensor], norms_of: Callable[[Tensor], Tensor], n_lists: int) -> Tensor:
    """(n_lists, n) norms of one block."""
    found = [norms_of(rows) for rows in matrices]
    return (found[0] if len(found) == 1 else torch.cat(found)).view(n_lists, -1)


def _overflowed(norms: Tensor) -> bool:
    """Whether a norm is not finite, read without a call that would stall an accelerator."""
    return not math.isfinite(norms.sum().tolist())  # type: ignore[arg-type]


def total_norm(norms: Tensor, wide: bool) -> Tensor:
    """0-d float64 norm of a vector of norms; ``wide`` where they may lie beyond float32's range."""
    return scaled_norms(norms[None])[0] if wide and norms.numel() else torch.linalg.vector_norm(norms)


def _norms(rows: Tensor, dtype: torch.dtype) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=-1, dtype=dtype)
    return norms


def _wide_norms(rows: Tensor) -> Tensor:
    """(R,) float64 norms without a look at their values."""
    return scaled_norms(rows) if rows.dtype == torch.float64 else _norms(rows, torch.float64)


def _fast_norms(rows: Tensor) -> Tensor:
    """(R,) norms in two stages: within chunks in float32 (float64 for float64 rows), across them in float64."""
    if rows.element_size() < 4:
        rows = rows.float()
    n_chunks = rows.shape[-1] // CHUNK
    if rows.shape[-1] <= CHUNK:
        return _norms(rows, rows.dtype)
    cut = n_chunks * CHUNK
    chunks = rows[..., :cut].unflatten(-1, (n_chunks, CHUNK))  # type: ignore[no-untyped-call]
    parts = [torch.linalg.vector_norm(chunks, dim=-1), _norms(rows[..., cut:], rows.dtype)[..., None]]
    return _norms(torch.cat(parts, dim=-1), torch.float64)


def scaled_norms(rows: Tensor) -> Tensor:
    """(R,) float64 norms; each row is first divided by its largest entry, so that no square overflows."""
    rows = rows.double()
    largest = rows.abs().amax(dim=-1)
    usable = largest.isfinite() & (largest > 0)
    divisor = torch.where(usable, largest, 1.0)
    return torch.where(usable, largest * _norms(rows / divisor[..., None], torch.float64), largest)
