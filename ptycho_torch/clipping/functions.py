"""Clipping as plain functions, for anyone's training loop."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import Any

from ptycho.errors import InputError
from ptycho_torch.clipping.clipper import Clipper
from ptycho_torch.clipping.record import ClipReport
from ptycho_torch.clipping.units import Source


def clip_gradients_(
    parameters: Source,
    *,
    algorithm: str = "norm",
    threshold: float | None = None,
    eps: float = 1e-3,
    skip_last: bool = False,
    nonfinite: str = "propagate",
    state: MutableMapping[str, Any] | None = None,
) -> ClipReport:
    """Clip gradients in place, in anyone's loop.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(4))
    >>> weight.grad = torch.full((4,), 3.0)
    >>> report = clip_gradients_([weight], algorithm="norm", threshold=1.5)
    >>> float(report.norm_before), float(report.norm_after), weight.grad.tolist()
    (6.0, 1.5, [0.75, 0.75, 0.75, 0.75])

    Args:
        parameters: a module (best: it knows where the units of its weights lie), one tensor, or an
            iterable of parameters or (name, parameter) pairs.
        algorithm: a name of ``ptycho.config.algorithms.ALGORITHMS``.
        threshold: the algorithm's threshold, from 0 (a bound of 0 zeroes the gradient); None switches clipping off.
        eps, skip_last, nonfinite: see :class:`Clipper`.
        state: a dictionary, empty at first, in which an algorithm with a history keeps it from call
            to call. Without it every call is a first step.

    Raises:
        InputError: a ``ValueError`` with the setting's name, its value and what is allowed.
    """
    clipper = Clipper(
        parameters, algorithm=algorithm, threshold=threshold, eps=eps, skip_last=skip_last, nonfinite=nonfinite
    )
    if state:
        clipper.load_state_dict(state)
    report = clipper()
    if state is not None:
        state.update(clipper.state_dict())
    return report


def adaptive_gradient_clip_(
    parameters: Source, clip_factor: float = 0.01, eps: float = 1e-3, *, unitwise: bool = False
) -> None:
    """Bound each gradient norm by ``clip_factor * max(||W||, eps)`` (Brock et al. 2021, Algorithm 2), in place.

    Args:
        parameters: a module, or an iterable of parameters (a generator too).
        clip_factor: largest ratio of gradient norm to weight norm, from 0.
        eps: smallest weight norm that is reckoned with, so that zero weights can move.
        unitwise: bound each output unit on its own, as in the paper; else each tensor as a whole.

    Raises:
        InputError: a ``ValueError`` with the setting's name, its value and what is allowed.
    """
    if not (clip_factor >= 0 and math.isfinite(clip_factor)):
        raise InputError(f"clip_factor: {clip_factor} is out of range; allowed: finite numbers from 0")
    clip_gradients_(parameters, algorithm="agc_unit" if unitwise else "agc", threshold=clip_factor, eps=eps)
