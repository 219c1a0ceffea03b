"""What one clip call saw and did."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from ptycho_torch.clipping.norms import total_norm


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClipReport:
    """One optimizer step as the clipper saw it.

    Every number is a 0-d tensor on the gradients' device, nothing is copied to the host, and what
    is not read is not computed: a report costs nothing until the logging interval.

    Attributes:
        norm_before: global L2 norm before clipping, float64; not finite where the gradient is not.
        keep: bool, False where the step has to be left out.
        unit_norms: (R,) float64 norms before clipping of the algorithm's units: tensors or output units.
        factors: (R,) float64 factors that multiplied them, or 0-d where one multiplied all.
        owner: (R,) int64, the parameter each unit belongs to.
        n_parameters: P.
        wide: whether a gradient is float64, whose norms may be too large to be squared.
        can_skip: whether ``keep`` can be False.
    """

    norm_before: Tensor
    keep: Tensor
    unit_norms: Tensor
    factors: Tensor
    owner: Tensor
    n_parameters: int
    wide: bool
    can_skip: bool

    @property
    def finite(self) -> Tensor:
        """Bool, every entry of the gradient is finite."""
        return self.norm_before < math.inf

    @property
    def norm_after(self) -> Tensor:
        """Global L2 norm the optimizer gets to see, float64; 0 where the step is left out."""
        if self.factors.ndim == 0:
            return self._if_kept(self.norm_before * self.factors, 0.0)
        return self._if_kept(total_norm(self.unit_norms * self.factors, self.wide), 0.0)

    @property
    def clipped_fraction(self) -> Tensor:
        """Part of the units (of one where one factor multiplied all) that were scaled down; 1 for a step left out."""
        return self._if_kept((self.factors < 1).mean(dtype=torch.float64), 1.0)

    @property
    def smallest_scale(self) -> Tensor:
        """Smallest factor that was applied; 0 where the step is left out."""
        return self._if_kept(self.factors.min(), 0.0)

    def _if_kept(self, value: Tensor, otherwise: float) -> Tensor:
        return torch.where(self.keep, value, otherwise) if self.can_skip else value

    @property
    def layer_norms(self) -> Tensor:
        """(P,) float64 norm of each parameter's gradient before clipping, 0 where there is none.

        In the order of ``GradientClipper.names``; the squares of norms above 1e154 overflow.
        """
        squares = self.unit_norms.new_zeros(self.n_parameters)
        return squares.index_add_(0, self.owner, self.unit_norms.square()).sqrt_()
