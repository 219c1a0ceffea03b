"""Clipping algorithms and networks of your own: registered here, used by name like those of the project.

A file that does so is a plugin: ``python -m study.shootout --plugin my_file.py --algo none --algo my_name``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from ptycho.config.algorithms import ALGORITHMS, AlgorithmInfo
from ptycho.config.config import ARCHITECTURES, ModelConfig
from ptycho.config.plugins import register
from ptycho.errors import InputError
from ptycho_torch.clipping.rules import RULES, Rule, Seen, State, no_state, unclipped
from ptycho_torch.generators import NETWORKS

__all__ = ["Seen", "State", "register_clipping", "register_entrywise", "register_generator"]

NormRule = TypeVar("NormRule", bound=Callable[[Seen, State], Tensor])
Entrywise = TypeVar("Entrywise", bound=Callable[[Tensor, float], Tensor])
Network = TypeVar("Network", bound=Callable[[ModelConfig], nn.Module])


def register_clipping(
    name: str,
    *,
    threshold: str,
    default: float,
    low: float,
    high: float,
    reference: str = "",
    per_unit: bool = False,
    weights: bool = False,
    can_skip: bool = False,
    start: Callable[[int], State] = no_state,
) -> Callable[[NormRule], NormRule]:
    """Register an algorithm that decides by norms, as all those of the project do.

    The function below becomes ``--algo gentle``; its first line is what lists of the algorithms say of it.

    >>> @register_clipping("gentle", threshold="largest global norm", default=1.0, low=0.01, high=100.0)
    ... def gentle(seen, state):
    ...     '''The gradient is scaled to the geometric mean of its norm and the threshold, where it is above.'''
    ...     return (seen.threshold / seen.total).clamp(max=1.0).sqrt()
    >>> from ptycho_torch.train_utils import clip_gradients_
    >>> weight = torch.nn.Parameter(torch.ones(4))
    >>> weight.grad = torch.full((4,), 8.0)
    >>> float(clip_gradients_([weight], algorithm="gentle", threshold=4.0).norm_after)
    8.0

    Args:
        name: small letters, digits and underscores.
        threshold: what the threshold means, in a few words.
        default, low, high: threshold used when none is given, and its sensible range.
        reference: paper or library it comes from.
        per_unit: ``seen.norms`` has one entry for each output unit; else for each tensor.
        weights: ``seen.weights`` holds the norms of the same parts of the weights.
        can_skip: a factor of 0 leaves the step out; other factors then do nothing.
        start: the state before the first step, for a number of parameters: a dictionary of tensors and whole
            numbers, which the function may move and which goes into checkpoints.

    Returns:
        A decorator for a function of what is seen and of the state; it returns factors from 0 to 1 in float64: one
        (0-d) for the whole gradient or one for each entry of ``seen.norms``.

    Raises:
        InputError: a name that is taken, or a function whose factors cannot be used.
    """

    def decorate(function: NormRule) -> NormRule:
        act: Literal["keep", "scale"] = "keep" if can_skip else "scale"
        rule = Rule(factors=function, per_unit=per_unit, weights=weights, act=act, start=start)
        _try_rule(name, rule, default)
        info = AlgorithmInfo(
            summary=_first_line(function),
            reference=reference,
            threshold=threshold,
            default=default,
            low=low,
            high=high,
            stateful=start is not no_state,
            can_skip=can_skip,
        )
        register("algorithm", ALGORITHMS, name, info, function)
        RULES[name] = rule
        return function

    return decorate


def register_entrywise(
    name: str, *, threshold: str, default: float, low: float, high: float, reference: str = ""
) -> Callable[[Entrywise], Entrywise]:
    """Register an algorithm that changes the entries of a gradient, as ``value`` does.

    >>> @register_entrywise("soft", threshold="magnitude that no entry reaches", default=0.01, low=1e-5, high=10.0)
    ... def soft(gradient, threshold):
    ...     '''Each entry is squeezed by a hyperbolic tangent.'''
    ...     return threshold * torch.tanh(gradient / threshold)

    Args:
        name, threshold, default, low, high, reference: see :func:`register_clipping`.

    Returns:
        A decorator for a function of one tensor's gradient (real numbers; a complex one has a last axis of pairs)
        and the threshold; it returns the new gradient and leaves the old one as it is. It is not asked about a
        gradient that is not finite.

    Raises:
        InputError: a name that is taken, or a function whose gradient has another shape.
    """

    def decorate(function: Entrywise) -> Entrywise:
        gradient = torch.tensor([[0.5, -2.0], [0.0, 1.0]])
        changed = function(gradient.clone(), default)
        if not isinstance(changed, Tensor) or changed.shape != gradient.shape:
            raise InputError(f"algorithm: {name} makes {_shape(changed)} of a (2, 2) gradient; allowed: (2, 2)")
        info = AlgorithmInfo(
            summary=_first_line(function),
            reference=reference,
            threshold=threshold,
            default=default,
            low=low,
            high=high,
        )
        register("algorithm", ALGORITHMS, name, info, function)
        RULES[name] = Rule(factors=unclipped, act="change", change=function)
        return function

    return decorate


def register_generator(name: str) -> Callable[[Network], Network]:
    """Register a network: ``--architecture name``. Its docstring's first line is what lists say of it.

    >>> @register_generator("tiny")
    ... class Tiny(nn.Sequential):
    ...     '''Two convolutions.'''
    ...     def __init__(self, config):
    ...         channels = config.gridsize**2
    ...         super().__init__(nn.Conv2d(channels, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 2 * channels, 1))

    Args:
        name: small letters, digits and underscores.

    Returns:
        A decorator for a class, or a function, that makes of a ``ModelConfig`` a module from (B, C, N, N) amplitudes
        to (B, 2 * C, N, N), with C = gridsize**2: real then imaginary parts, unless ``generator_output_mode`` says
        otherwise. An attribute ``final_layer`` tells which layer is the last one; without it, the last defined is.

    Raises:
        InputError: a name that is taken.
    """

    def decorate(network: Network) -> Network:
        register("architecture", ARCHITECTURES, name, _first_line(network), network)
        NETWORKS[name] = network
        return network

    return decorate


def _first_line(function: Callable[..., object]) -> str:
    return (function.__doc__ or "").strip().partition("\n")[0]


def _shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _try_rule(name: str, rule: Rule, threshold: float) -> None:
    """Ask a rule about a small gradient of two rows; refuse factors that cannot be used."""
    norms = torch.tensor([3.0, 4.0], dtype=torch.float64)
    seen = Seen(
        norms=norms,
        total=torch.linalg.vector_norm(norms),
        weights=torch.ones_like(norms) if rule.weights else None,
        threshold=threshold,
        eps=1e-3,
        owner=torch.arange(2),
    )
    factors = rule.factors(seen, rule.start(2))
    if not isinstance(factors, Tensor) or tuple(factors.shape) not in ((), (2,)):
        raise InputError(f"algorithm: {name} answers with {_shape(factors)} to two norms; allowed: one factor or two")
    if not bool(((factors >= 0) & (factors <= 1)).all()):
        raise InputError(f"algorithm: {name} answers with factors {factors.tolist()}; allowed: from 0 to 1")
