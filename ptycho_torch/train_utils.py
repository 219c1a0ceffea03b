"""Gradients between the backward pass and the optimizer step: their norms and their clipping.

The one import path of the library; the topics stand in ``ptycho_torch.clipping``. torch is all it needs.
"""

from __future__ import annotations

from ptycho.config.algorithms import ALGORITHMS, AlgorithmInfo, ClipAlgorithm
from ptycho_torch.clipping.clipper import GradientClipper
from ptycho_torch.clipping.functions import adaptive_gradient_clip_, clip_gradients_
from ptycho_torch.clipping.record import ClipReport

__all__ = [
    "ALGORITHMS",
    "AlgorithmInfo",
    "ClipAlgorithm",
    "ClipReport",
    "GradientClipper",
    "adaptive_gradient_clip_",
    "clip_gradients_",
]
