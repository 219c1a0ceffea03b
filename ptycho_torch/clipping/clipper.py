"""Clip the gradients of a module: one call per optimizer step, one record of what it saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ptycho.config.algorithms import ALGORITHMS, ClipAlgorithm
from ptycho.errors import InputError, unknown_name
from ptycho_torch.clipping.blocks import Plan, Units
from ptycho_torch.clipping.record import ClipReport
from ptycho_torch.clipping.rules import RULES, Rule, Seen, copied, moved, shapes_of
from ptycho_torch.clipping.units import Clipped, Source, list_parameters

NonFinite = Literal["propagate", "skip"]
Change = Callable[[Tensor, float], Tensor]


class Clipper:
    """Clips one module's gradients by one algorithm and keeps the algorithm's state.

    It is called once per optimizer step. Parameters that are added to the module later are not seen.

    Args:
        module: the module, or an iterable of parameters or (name, parameter) pairs.
        algorithm: a name of ``ptycho.config.algorithms.ALGORITHMS``.
        threshold: the algorithm's threshold, from 0; None switches clipping off.
        eps: smallest weight norm that ``agc`` and ``agc_unit`` reckon with.
        skip_last: leave the final layer out of ``agc`` and ``agc_unit`` (Brock et al. 2021, section 4.1).
        nonfinite: what becomes of a gradient that is not finite: ``propagate`` hands it on, its NaN
            and infinities untouched; ``skip`` asks for the step to be left out.

    Attributes:
        algorithm: the realised name: ``none`` where clipping is off.
        threshold, eps, skip_last, nonfinite: as realised; ``skip_last`` is False for other algorithms.
        names: the parameters' names, in the order of ``ClipReport.layer_norms``.

    Raises:
        InputError: a ``ValueError`` with the setting's name, its value and what is allowed.
    """

    def __init__(
        self,
        module: Source,
        *,
        algorithm: str,
        threshold: float | None,
        eps: float = 1e-3,
        skip_last: bool = False,
        nonfinite: str = "propagate",
    ) -> None:
        check_settings(algorithm, threshold, eps, nonfinite)
        self.algorithm: ClipAlgorithm = "none" if threshold is None else algorithm
        self._rule = RULES[self.algorithm]
        self.threshold = None if self.algorithm == "none" else threshold
        self.eps = eps
        self.skip_last = skip_last and self._rule.weights
        self.nonfinite = cast(NonFinite, nonfinite)
        self._items = list_parameters(module)
        self.names = tuple(item.name for item in self._items)
        self._state = self._rule.start(len(self._items))
        self._plan: Plan | None = None
        self._waiting: list[Clipped] = []
        self._last: ClipReport | None = None

    @property
    def can_skip(self) -> bool:
        """Whether ``ClipReport.keep`` can be False."""
        return self._rule.act == "keep" or self.nonfinite == "skip"

    @property
    def exempt(self) -> tuple[str, ...]:
        """Names of the parameters that are left out."""
        return tuple(item.name for item in self._items if item.final) if self.skip_last else ()

    @torch.no_grad()
    def __call__(self) -> ClipReport:
        """Clip the gradients in place and say what was seen.

        Raises:
            InputError: a gradient is sparse, or the parameters lie on several devices.
        """
        plan, gradients = self._current()
        norms, *weights = plan.norms(gradients, *([plan.parameters] if self._rule.weights else [])).unbind()
        total = plan.total(norms)
        factors = self.judge(plan, norms, total, weights[0] if weights else None)
        if self._rule.act == "scale":
            plan.multiply_(gradients, factors)
        elif self._rule.act == "clamp":
            factors = _clamp_(plan, gradients, norms, self.threshold or 0.0)
        elif self._rule.act == "change":
            factors = _change_(plan, gradients, norms, self.threshold or 0.0, self._rule.change)
        return self.report(plan, norms, total, factors)

    @property
    def rule(self) -> Rule:
        """How the algorithm is carried out."""
        return self._rule

    def judge(self, units: Units, norms: Tensor, total: Tensor, weights: Tensor | None) -> Tensor:
        """The factors, 0-d or (R,), for units whose gradient has ``norms`` (R,), all together ``total``."""
        seen = Seen(
            norms=norms,
            total=total,
            weights=weights,
            threshold=self.threshold or 0.0,
            eps=self.eps,
            owner=units.owner,
        )
        factors = self._rule.factors(seen, self._state)
        return factors.masked_fill(units.exempt, 1.0) if self.skip_last else factors

    def report(self, units: Units, norms: Tensor, total: Tensor, factors: Tensor) -> ClipReport:
        """What was seen and done; kept for :meth:`layer_norms`."""
        keep = total.isfinite() if self.nonfinite == "skip" else units.kept
        self._last = ClipReport(
            norm_before=total,
            keep=keep & (factors > 0) if self._rule.act == "keep" else keep,
            unit_norms=norms,
            factors=factors if factors.numel() else torch.ones_like(total),
            owner=units.owner,
            n_parameters=len(self.names),
            wide=units.wide,
            can_skip=self.can_skip,
        )
        return self._last

    def layer_norms(self) -> dict[str, float]:
        """Each parameter's gradient norm before the last clip, on the host; 0 where it had no gradient."""
        return {} if self._last is None else dict(zip(self.names, self._last.layer_norms.tolist(), strict=True))

    def _current(self) -> tuple[Plan, list[Tensor]]:
        """The plan for the parameters that have a gradient now, and these gradients in its order."""
        gradients = None if self._plan is None else self._plan.gradients()
        if self._plan is None or gradients is None or any(item.takes_part() for item in self._waiting):
            places = [i for i, item in enumerate(self._items) if item.takes_part()]
            self._waiting = [item for item in self._items if not item.takes_part()]
            self._plan = Plan([self._items[i] for i in places], places, self._rule.per_unit)
            self._state = moved(self._state, self._plan.device)
            gradients = self._plan.gradients() or []
        return self._plan, gradients

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs for a resumed training to go on as if it had never stopped."""
        return {"algorithm": self.algorithm, "state": copied(self._state)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            InputError: the state is another algorithm's, or that of another number of parameters.
        """
        if state_dict["algorithm"] != self.algorithm:
            raise InputError(
                f"clipper state: of algorithm {state_dict['algorithm']!r}; allowed here: {self.algorithm!r}"
            )
        given, wanted = shapes_of(state_dict["state"]), shapes_of(self._rule.start(len(self._items)))
        if given != wanted:
            raise InputError(f"clipper state: {given}; allowed for {self.algorithm!r} here: {wanted}")
        self._state = copied(state_dict["state"])
        self._plan = None  # the next plan moves the state to the gradients' device


class GradientClipper(Clipper):
    """A :class:`Clipper` for the training step: there a threshold of 0 or below switches clipping off, as None does."""

    def __init__(
        self,
        module: Source,
        *,
        algorithm: str,
        threshold: float | None,
        eps: float = 1e-3,
        skip_last: bool = False,
        nonfinite: str = "propagate",
    ) -> None:
        realised = None if threshold is None or threshold <= 0 else threshold
        super().__init__(
            module, algorithm=algorithm, threshold=realised, eps=eps, skip_last=skip_last, nonfinite=nonfinite
        )


def _clamp_(plan: Plan, gradients: list[Tensor], norms: Tensor, threshold: float) -> Tensor:
    """Clamp the entries of each tensor whose norm is finite; return what became of the norms, as factors."""
    bounds = torch.full_like(norms, math.inf).masked_fill(norms.isfinite(), threshold)
    for gradient, bound in zip(plan.real_views(gradients), bounds.unbind(), strict=True):
        gradient.clamp_(-bound, bound)
    return _shrunk(plan, gradients, norms)


def _change_(plan: Plan, gradients: list[Tensor], norms: Tensor, threshold: float, change: Change) -> Tensor:
    """Change each tensor whose norm is finite; return what became of the norms, as factors."""
    for gradient, finite in zip(plan.real_views(gradients), norms.isfinite().unbind(), strict=True):
        gradient.copy_(torch.where(finite, change(gradient, threshold), gradient))
    return _shrunk(plan, gradients, norms)


def _shrunk(plan: Plan, gradients: list[Tensor], norms: Tensor) -> Tensor:
    (after,) = plan.norms(gradients).unbind()
    return torch.where((norms > 0) & norms.isfinite(), after / norms, 1.0)


def check_settings(algorithm: str, threshold: float | None, eps: float, nonfinite: str) -> None:
    """Refuse settings that no algorithm can work with.

    Raises:
        InputError: one line with the setting, its value and what is allowed.
    """
    if algorithm not in ALGORITHMS:
        raise unknown_name("algorithm", algorithm, ALGORITHMS)
    if nonfinite not in ("propagate", "skip"):
        raise unknown_name("nonfinite", nonfinite, ("propagate", "skip"))
    if not (eps > 0 and math.isfinite(eps)):
        raise InputError(f"eps: {eps} is out of range; allowed: finite numbers above 0")
    if threshold is None:
        return
    if not (threshold >= 0 and math.isfinite(threshold)):
        raise InputError(f"threshold: {threshold} is out of range; allowed: finite numbers from 0")
    if algorithm == "autoclip" and threshold > 100:
        raise InputError(f"threshold: {threshold} is out of range; allowed for autoclip: percentiles from 0 to 100")
