"""Which parameters are clipped, and along which axes a parameter's output units lie.

A unit is what one output channel is computed with: the row of a linear layer, the filter of a
convolution, the kernel of one output channel of a spectral layer (Brock et al. 2021, section 4.1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

from ptycho.errors import InputError

Axes = int | tuple[int, ...] | None
Source = nn.Module | Tensor | Iterable[Tensor] | Iterable[tuple[str, Tensor]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Clipped:
    """One parameter and where its units lie.

    Attributes:
        name: dotted name in the module; its number where the parameters came without names.
        parameter: the parameter itself.
        axes: axes that number the units; empty where the whole tensor is one unit.
        groups: the first axis is split into this many parts, each with units of its own.
        final: whether it belongs to the final layer.
    """

    name: str
    parameter: Tensor
    axes: tuple[int, ...]
    groups: int = 1
    final: bool = False

    def takes_part(self) -> bool:
        """Whether there is a gradient to clip: a frozen parameter is left alone, whatever its ``.grad``."""
        p = self.parameter
        frozen = isinstance(p, nn.Parameter) and not p.requires_grad
        return p.grad is not None and p.numel() > 0 and not frozen


def list_parameters(source: Source) -> list[Clipped]:
    """Every parameter of ``source`` once, in order, with its units.

    Args:
        source: a module, one tensor, or an iterable (a generator too) of tensors or (name, tensor) pairs.
            Without the module a transposed convolution cannot be told from a convolution, so that
            axis 0 is the unit of every tensor.

    Raises:
        InputError: an item is no tensor, a lazy parameter has no shape yet, or a unit axis does not exist.
    """
    if isinstance(source, nn.Module):
        return _of_module(source)
    pairs = _named([source] if isinstance(source, Tensor) else source)
    last = pairs[-1][0].rpartition(".")[0] if pairs else ""
    return [
        Clipped(
            name=name,
            parameter=p,
            axes=_axes(0, p, name),
            final=name.rpartition(".")[0] == last if last else p is pairs[-1][1],
        )
        for name, p in pairs
    ]


def _named(source: Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    unique: dict[int, tuple[str, Tensor]] = {}
    for i, item in enumerate(source):
        name, p = item if isinstance(item, tuple) else (str(i), item)
        if not isinstance(p, Tensor):
            raise InputError(f"parameters: {name} is a {type(p).__name__}; allowed: tensors or (name, tensor) pairs")
        unique.setdefault(id(p), (name, p))
    return list(unique.values())


def _of_module(module: nn.Module) -> list[Clipped]:
    owners = {id(p): (child, own) for child in reversed(list(module.modules())) for own, p in _own(child)}
    last = {id(p) for p in final_layer(module).parameters()}
    found = []
    for name, p in module.named_parameters():
        child, own = owners[id(p)]
        groups = child.groups if isinstance(child, _ConvTransposeNd) and own == "weight" else 1
        axes = _axes(_declared(child, own), p, name)
        found.append(Clipped(name=name, parameter=p, axes=axes, groups=groups, final=id(p) in last))
    return found


def _own(child: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(child.named_parameters(recurse=False))


def _declared(child: nn.Module, name: str) -> Axes:
    """The unit axes that a layer declares for one of its parameters; 0 where it says nothing.

    A layer declares them in a class attribute ``unit_axis``: an axis, a tuple of axes (units finer
    than a channel, as one per channel and spectral mode), None for the whole tensor, or a mapping
    from the names of its parameters to one of these.
    """
    declared = getattr(child, "unit_axis", 1 if isinstance(child, _ConvTransposeNd) else 0)
    return declared.get(name, 0) if isinstance(declared, Mapping) else declared


def _axes(declared: Axes, p: Tensor, name: str) -> tuple[int, ...]:
    if is_lazy(p):
        raise InputError(f"parameters: {name} has no shape yet; allowed: a module that has seen one batch")
    if p.ndim < 2 or declared is None:
        return ()
    axes = (declared,) if isinstance(declared, int) else tuple(declared)
    if any(not -p.ndim <= a < p.ndim for a in axes):
        raise InputError(f"unit_axis: {declared} of {name}, shape {tuple(p.shape)}; allowed: {-p.ndim} to {p.ndim - 1}")
    return tuple(sorted({a % p.ndim for a in axes}))


def final_layer(module: nn.Module) -> nn.Module:
    """The attribute ``final_layer`` of the module or of the first one inside it that has it, else the last layer."""
    for child in module.modules():
        found = getattr(child, "final_layer", None)
        if isinstance(found, nn.Module):
            return found
    layers = [child for child in module.modules() if _own(child)]
    return layers[-1] if layers else module
