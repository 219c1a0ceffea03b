"""What one clip call saw and did."""

from __future__ import annotations

import dataclasses

from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClipReport:
    """One optimizer step as the clipper saw it: 0-d tensors on the gradients' device, none on the host.

    Attributes:
        norm_before: global L2 norm before clipping, float64; not finite where the gradient is not.
        norm_after: global L2 norm the optimizer gets to see, float64; 0 where the step is left out.
        clipped_fraction: part of the algorithm's units (whole gradient, tensors or output units) that
            were scaled down; 1 where the step is left out.
        smallest_scale: smallest factor that was applied; 0 where the step is left out.
        finite: bool, every entry of the gradient is finite.
        keep: bool, False where the step has to be left out.
        layer_norms: (P,) float64, norm of each parameter's gradient before clipping, 0 where there is
            none, in the order of ``GradientClipper.names``; None unless asked for.
    """

    norm_before: Tensor
    norm_after: Tensor
    clipped_fraction: Tensor
    smallest_scale: Tensor
    finite: Tensor
    keep: Tensor
    layer_norms: Tensor | None = None
