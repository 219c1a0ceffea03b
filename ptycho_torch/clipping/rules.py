"""The clipping rules: from the norms of a gradient to the factors that multiply it.

Every rule sees norms only, never the gradient, and answers with factors at most 1: one for the
whole gradient (0-d) or one for each row (R,). A row whose norm is not finite keeps factor 1, so
that a NaN or an infinity stays where and what it was. No rule looks at a value on the host.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from ptycho.config.algorithms import ClipAlgorithm

State = dict[str, Tensor | int]

SMALLEST_BOUND = 1e-300
"""Stands for a bound of 0, so that a zero gradient keeps factor 1 under it (0 / 0 would not)."""
AUTOCLIP_HISTORY = 10_000
"""Steps the percentile looks back; the paper keeps every step, which would grow without limit."""
ZCLIP_DECAY = 0.97
ZCLIP_WARMUP = 25
"""Decay of the moving averages and steps that only fill them (Kumar et al. 2025)."""
ZCLIP_EPS = 1e-6
"""Keeps the z-score finite at zero variance; relative to the mean here, so that the rule has no scale of its own."""
ADAGC_DECAY = 0.98
ADAGC_WARMUP = 100
ADAGC_GLOBAL = 1.0
"""Decay, warm-up steps and the global norm that bounds the gradient in them (Wang et al. 2025, Algorithm 1)."""
SKIP_HISTORY = 128
SKIP_WARMUP = 16
"""Steps the running median looks back, and finite norms it needs before a step can be left out."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a rule may look at.

    Attributes:
        norms: (R,) float64 norms of the gradient's rows.
        total: 0-d float64 global norm.
        weights: (R,) float64 norms of the same rows of the weights, where the rule asks for them.
        threshold, eps: settings of the clip.
        owner: (R,) int64, the parameter each row belongs to.
    """

    norms: Tensor
    total: Tensor
    weights: Tensor | None
    threshold: float
    eps: float
    owner: Tensor


def bounding_factor(norm: Tensor, bound: Tensor | float) -> Tensor:
    """min(1, bound / norm) for a bound above 0: exactly 1 up to the bound, and 1 where the norm is not finite."""
    return bound / norm.nan_to_num(nan=0.0, posinf=0.0).clamp_min(bound)


def unclipped(seen: Seen, state: State) -> Tensor:
    """The gradient as it is."""
    return torch.ones_like(seen.total)


def by_norm(seen: Seen, state: State) -> Tensor:
    """Bound the global norm (Pascanu et al. 2013, Algorithm 1)."""
    return bounding_factor(seen.total, max(seen.threshold, SMALLEST_BOUND))


def by_weights(seen: Seen, state: State) -> Tensor:
    """Bound ||G|| by threshold * max(||W||, eps) (Brock et al. 2021, eq. 3).

    ``eps`` lets zero weights move. A weight norm that is not finite counts as zero: bounding
    nothing there would let a broken weight switch clipping off.
    """
    assert seen.weights is not None
    weights = seen.weights.nan_to_num(nan=0.0, posinf=0.0).clamp_min(seen.eps)
    return bounding_factor(seen.norms, max(seen.threshold, SMALLEST_BOUND) * weights)


def by_percentile(seen: Seen, state: State) -> Tensor:
    """Bound the global norm by a percentile of its history, this step's included (Seetharaman et al. 2020)."""
    history = _remember(state, seen.total)
    percentile = torch.nanquantile(history, seen.threshold / 100)
    return bounding_factor(seen.total, percentile.nan_to_num(nan=1.0).clamp_min(SMALLEST_BOUND))


def by_z_score(seen: Seen, state: State) -> Tensor:
    """Pull a spike back to mean + threshold**2 / z * deviation (Kumar et al. 2025, z-score with adaptive scaling).

    The moving mean and variance take in the norm after clipping. In the first steps they are the
    plain mean and variance of what came so far, and nothing is clipped.
    """
    count, mean, variance = (_tensor(state, name) for name in ("count", "mean", "variance"))
    deviation = variance.sqrt()
    z = (seen.total - mean) / (deviation + ZCLIP_EPS * mean)
    warm = count >= ZCLIP_WARMUP
    spike = warm & (z > seen.threshold) & seen.total.isfinite()
    norm = torch.where(spike, mean + seen.threshold**2 / z * deviation, seen.total)
    weight = torch.where(warm, 1 - ZCLIP_DECAY, 1 / (count + 1))
    new_mean = mean + weight * (norm - mean)
    spread = (norm - new_mean) * torch.where(warm, norm - new_mean, norm - mean)
    new_variance = (1 - weight) * variance + weight * spread
    _take_in(state, seen.total.isfinite(), count=count + 1, mean=new_mean, variance=new_variance)
    return torch.where(spike, norm / seen.total, 1.0)


def by_own_average(seen: Seen, state: State) -> Tensor:
    """Bound each tensor's norm by threshold times its moving average (Wang et al. 2025, Algorithm 1).

    In the warm-up the whole gradient is bounded to norm 1 and each average is the smallest norm so
    far. Other than the paper, a tensor's zero norm is not taken in: it would bound that tensor to
    zero for ever.
    """
    count, averages = _tensor(state, "count"), _tensor(state, "averages")
    average, warm = averages[seen.owner], count >= ADAGC_WARMUP
    known = average > 0
    own = torch.where(known, bounding_factor(seen.norms, seen.threshold * average), 1.0)
    factors = torch.where(warm, own, bounding_factor(seen.total, ADAGC_GLOBAL))
    norms = seen.norms * factors
    moved = torch.where(warm, ADAGC_DECAY * average + (1 - ADAGC_DECAY) * norms, torch.minimum(average, norms))
    moved = torch.where(norms > 0, torch.where(known, moved, norms), average)
    _take_in(state, seen.total.isfinite(), count=count + 1, averages=averages.index_copy(0, seen.owner, moved))
    return factors


def by_median(seen: Seen, state: State) -> Tensor:
    """Factor 0 (leave the step out) for a norm that is not finite or above threshold times its running median."""
    before = _history(state)
    enough = before.isfinite().sum() >= SKIP_WARMUP
    spike = enough & (seen.total > seen.threshold * torch.nanmedian(before))
    _remember(state, seen.total)
    return torch.where(seen.total.isfinite() & ~spike, 1.0, torch.zeros_like(seen.total))


def _tensor(state: State, name: str) -> Tensor:
    value = state[name]
    assert isinstance(value, Tensor)
    return value


def _take_in(state: State, finite: Tensor, **new: Tensor) -> None:
    """Replace parts of the state where this step's norm is finite."""
    for name, value in new.items():
        state[name] = torch.where(finite, value, state[name])


def _history(state: State) -> Tensor:
    """The norms remembered so far, NaN in place of each that was not finite."""
    ring, calls = _tensor(state, "ring"), state["calls"]
    return ring[: max(1, min(int(calls), len(ring)))]


def _remember(state: State, total: Tensor) -> Tensor:
    """Put a norm in the place of the oldest; return the history with it."""
    ring, calls = _tensor(state, "ring"), int(state["calls"])
    ring[calls % len(ring)] = torch.where(total.isfinite(), total, math.nan)
    state["calls"] = calls + 1
    return _history(state)


def copied(state: Mapping[str, Tensor | int]) -> State:
    """The same state in memory of its own."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}


def moved(state: State, device: torch.device) -> State:
    """The same state on another device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in state.items()}


def shapes_of(state: Mapping[str, Tensor | int]) -> dict[str, tuple[int, ...]]:
    """Shape of every entry."""
    return {name: tuple(value.shape) if isinstance(value, Tensor) else () for name, value in state.items()}


def no_state(n_parameters: int) -> State:
    return {}


def _ring_state(length: int) -> Callable[[int], State]:
    return lambda n_parameters: {"calls": 0, "ring": torch.full((length,), math.nan, dtype=torch.float64)}


def _z_state(n_parameters: int) -> State:
    return {name: torch.zeros((), dtype=torch.float64) for name in ("count", "mean", "variance")}


def _average_state(n_parameters: int) -> State:
    return {
        "count": torch.zeros((), dtype=torch.float64),
        "averages": torch.zeros(n_parameters, dtype=torch.float64),
    }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How one algorithm is carried out.

    Attributes:
        factors: from the norms to the factors; may move the state.
        per_unit: rows are output units; else whole tensors.
        weights: it compares with the norms of the weights, and so may leave the final layer out.
        act: what is done with the factors: ``scale`` the gradient, ``clamp`` or ``change`` its entries (the
            factors are not used), ``keep`` (factor 0 leaves the step out), or nothing.
        change: from one gradient (real numbers) and the threshold to the gradient as it shall be.
        start: its state before the first step, for a number of parameters.
    """

    factors: Callable[[Seen, State], Tensor]
    per_unit: bool = False
    weights: bool = False
    act: Literal["scale", "clamp", "change", "keep", "nothing"] = "scale"
    change: Callable[[Tensor, float], Tensor] = lambda gradient, threshold: gradient
    start: Callable[[int], State] = no_state


RULES: dict[ClipAlgorithm, Rule] = {
    "none": Rule(factors=unclipped, act="nothing"),
    "norm": Rule(factors=by_norm),
    "value": Rule(factors=unclipped, act="clamp"),
    "agc": Rule(factors=by_weights, weights=True),
    "agc_unit": Rule(factors=by_weights, weights=True, per_unit=True),
    "autoclip": Rule(factors=by_percentile, start=_ring_state(AUTOCLIP_HISTORY)),
    "zclip": Rule(factors=by_z_score, start=_z_state),
    "adagc": Rule(factors=by_own_average, start=_average_state),
    "skip": Rule(factors=by_median, act="keep", start=_ring_state(SKIP_HISTORY)),
}
