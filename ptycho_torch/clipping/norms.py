"""L2 norms of rows that are exact to 1e-6 and do not overflow before their value does.

Shape legend: R rows, L entries of a row, always real numbers (a complex tensor is viewed as pairs).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CHUNK = 4096
"""Entries in one float32 accumulation: its error stays near 4e-9, where 2**24 entries give 6e-4."""


def as_real(tensor: Tensor) -> Tensor:
    """The same memory as real numbers; a complex tensor gets a last axis (re, im)."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def norms_of_rows(blocks: list[Tensor], device: torch.device) -> Tensor:
    """(R,) float64 norms of the rows of all ``blocks``, each (R_i, L_i), one after the other.

    On the host, sums run in float32 (half precision too), and where one overflows all are done
    again by :func:`scaled_norms`: one look at a number in memory. On an accelerator such a look
    would stall the device, and sums run in float64 from the start.
    """
    if not blocks:
        return torch.zeros(0, dtype=torch.float64, device=device)
    if not _on_host(blocks[0]):
        return torch.cat([scaled_norms(b) if b.dtype == torch.float64 else _norms(b, torch.float64) for b in blocks])
    norms = torch.cat([_chunked_norms(b) for b in blocks]).double()
    return norms if math.isfinite(norms.sum().tolist()) else torch.cat([scaled_norms(b) for b in blocks])


def total_norm(norms: Tensor) -> Tensor:
    """0-d float64 norm of a vector of norms."""
    return scaled_norms(norms[None])[0]


def _on_host(tensor: Tensor) -> bool:
    """Whether a value can be looked at for free: host memory, and no stand-in for a tensor as in tracing."""
    return tensor.device.type == "cpu" and type(tensor) is Tensor


def _norms(rows: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, dtype=dtype)


def _chunked_norms(rows: Tensor) -> Tensor:
    """(R,) norms in two stages: float32 (or float64 for float64 rows) within chunks, float64 across them."""
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    n_chunks = rows.shape[1] // CHUNK
    if n_chunks < 2:
        return _norms(rows, dtype)
    cut = n_chunks * CHUNK
    chunks = rows[:, :cut].unflatten(1, (n_chunks, CHUNK))
    parts = [torch.linalg.vector_norm(chunks, dim=2, dtype=dtype), _norms(rows[:, cut:], dtype)[:, None]]
    return _norms(torch.cat(parts, dim=1), torch.float64)


def scaled_norms(rows: Tensor) -> Tensor:
    """(R,) float64 norms; each row is first divided by its largest entry, so that no square overflows."""
    rows = rows.double()
    largest = rows.abs().amax(dim=1)
    usable = largest.isfinite() & (largest > 0)
    divisor = torch.where(usable, largest, 1.0)
    return torch.where(usable, largest * _norms(rows / divisor[:, None], torch.float64), largest)
