"""Clip the gradients of a module: one call per optimizer step, one record of what it saw."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ptycho.config.algorithms import ALGORITHMS, ClipAlgorithm
from ptycho.errors import InputError, unknown_name
from ptycho_torch.clipping.blocks import Plan
from ptycho_torch.clipping.norms import as_real, total_norm
from ptycho_torch.clipping.record import ClipReport
from ptycho_torch.clipping.rules import RULES, Seen
from ptycho_torch.clipping.units import Source, list_parameters

NonFinite = Literal["propagate", "skip"]


@dataclasses.dataclass(frozen=True, slots=True)
class Clipping:
    """What a clip leaves behind for its record: norms and factors of the rows, all on the gradients' device."""

    plan: Plan
    norms: Tensor
    total: Tensor
    factors: Tensor
    total_after: Tensor | None = None


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
        self.algorithm: ClipAlgorithm = "none" if threshold is None else cast(ClipAlgorithm, algorithm)
        self._rule = RULES[self.algorithm]
        self.threshold = None if self.algorithm == "none" else threshold
        self.eps = eps
        self.skip_last = skip_last and self._rule.weights
        self.nonfinite = cast(NonFinite, nonfinite)
        self._items = list_parameters(module)
        self.names = tuple(item.name for item in self._items)
        self._state = self._rule.start(len(self._items))
        self._plan: Plan | None = None
        self._plan_key: object = None
        self._last: Clipping | None = None

    @property
    def can_skip(self) -> bool:
        """Whether ``ClipReport.keep`` can be False."""
        return self._rule.act == "keep" or self.nonfinite == "skip"

    @property
    def exempt(self) -> tuple[str, ...]:
        """Names of the parameters that are left out."""
        return tuple(item.name for item in self._items if item.final) if self.skip_last else ()

    @torch.no_grad()
    def __call__(self, *, layer_norms: bool = False) -> ClipReport:
        """Clip the gradients in place and say what was seen.

        Args:
            layer_norms: also report each parameter's norm before clipping.

        Raises:
            InputError: a gradient is sparse, or the parameters lie on several devices.
        """
        return self.report(self.clip(), layer_norms=layer_norms)

    @torch.no_grad()
    def clip(self) -> Clipping:
        """Clip the gradients in place; :meth:`report` makes the record of it."""
        plan = self._current_plan()
        gradients = plan.gradients()
        rows = plan.rows(gradients)
        norms = plan.norms(rows)
        seen = Seen(
            norms=norms,
            total=total_norm(norms),
            weights=plan.norms(plan.rows(plan.parameters())) if self._rule.weights else None,
            threshold=self.threshold or 0.0,
            eps=self.eps,
            owner=plan.owner,
        )
        factors = self._rule.factors(seen, self._state)
        if self.skip_last:
            factors = torch.where(plan.exempt, 1.0, factors)
        after = None
        if self._rule.act == "scale":
            plan.multiply_(gradients, rows, factors)
        elif self._rule.act == "clamp":
            factors, after = self._clamp_(plan, gradients, norms)
        self._last = Clipping(plan, norms, seen.total, factors, after)
        return self._last

    def _clamp_(self, plan: Plan, gradients: list[Tensor], norms: Tensor) -> tuple[Tensor, Tensor]:
        """Clamp the entries of every tensor whose norm is finite; the factors are what became of the norms."""
        bounds = torch.where(norms.isfinite(), self.threshold or 0.0, math.inf)
        ordered = [i for block in plan.blocks for i in block.members]
        for i, bound in zip(ordered, bounds.unbind(), strict=True):
            as_real(gradients[i]).clamp_(-bound, bound)
        after = plan.norms(plan.rows(gradients))
        return torch.where((norms > 0) & norms.isfinite(), after / norms, 1.0), total_norm(after)

    @torch.no_grad()
    def report(self, clipping: Clipping, *, layer_norms: bool = False) -> ClipReport:
        """The record of one :meth:`clip`."""
        factors, finite = clipping.factors, clipping.total.isfinite()
        keep = torch.ones_like(finite)
        if self._rule.act == "keep":
            keep = factors > 0
        if self.nonfinite == "skip":
            keep = keep & finite
        after = clipping.total_after
        if after is None:
            after = clipping.total * factors if factors.ndim == 0 else total_norm(clipping.norms * factors)
        nothing = factors.numel() == 0
        smallest = torch.ones_like(clipping.total) if nothing else factors.min()
        fraction = torch.zeros_like(clipping.total) if nothing else (factors < 1).double().mean()
        return ClipReport(
            norm_before=clipping.total,
            norm_after=torch.where(keep, after, 0.0),
            clipped_fraction=torch.where(keep, fraction, 1.0),
            smallest_scale=torch.where(keep, smallest, 0.0),
            finite=finite,
            keep=keep,
            layer_norms=self._layer_norms(clipping) if layer_norms else None,
        )

    def layer_norms(self) -> dict[str, float]:
        """Each parameter's gradient norm before the last clip, on the host; 0 where it had no gradient."""
        if self._last is None:
            return {}
        return dict(zip(self.names, self._layer_norms(self._last).tolist(), strict=True))

    def _layer_norms(self, clipping: Clipping) -> Tensor:
        squares = torch.zeros(len(self.names), dtype=torch.float64, device=clipping.norms.device)
        return squares.index_add_(0, clipping.plan.owner, clipping.norms**2).sqrt_()

    def _current_plan(self) -> Plan:
        """The plan for the parameters that have a gradient now."""
        taking_part = [item.takes_part() and item.parameter.numel() > 0 for item in self._items]
        first = self._items[taking_part.index(True)].parameter if any(taking_part) else None
        key = (taking_part, None if first is None else (first.dtype, first.device))
        if self._plan is None or key != self._plan_key:
            places = [i for i, takes_part in enumerate(taking_part) if takes_part]
            self._plan = Plan([self._items[i] for i in places], places, self._rule.per_unit)
            self._plan_key = key
            device = self._plan.device
            self._state = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self._state.items()}
        return self._plan

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs for a resumed training to go on as if it had never stopped."""
        state = {k: v.clone() if isinstance(v, Tensor) else v for k, v in self._state.items()}
        return {"algorithm": self.algorithm, "state": state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            InputError: the state is another algorithm's, or that of another number of parameters.
        """
        if state_dict["algorithm"] != self.algorithm:
            raise InputError(
                f"clipper state: of algorithm {state_dict['algorithm']!r}; allowed here: {self.algorithm!r}"
            )
        self._set_state(state_dict["state"])

    def _set_state(self, state: Mapping[str, Tensor | int]) -> None:
        fresh = self._rule.start(len(self._items))
        shapes = {k: tuple(v.shape) if isinstance(v, Tensor) else () for k, v in fresh.items()}
        given = {k: tuple(v.shape) if isinstance(v, Tensor) else () for k, v in state.items()}
        if given != shapes:
            raise InputError(f"clipper state: entries {given}; allowed for {self.algorithm!r}: {shapes}")
        self._state = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
        self._plan = None


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
