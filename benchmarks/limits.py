"""How near a training step comes to what this machine can do at all.

    python -m benchmarks.limits

Counted: the floating-point operations of a step's matrix products and convolutions (torch's own counter, complex ones
as real), and the bytes that its tensors are read and written, every operation for itself. Measured: this machine's
best rate of a large matrix product, and of a copy of arrays that fit no cache. The sum of both times is a floor
only for a step whose operations are not fused; the share says how much of the step it explains.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import DEFAULT, FNO, HYBRID_17M, TOY
from benchmarks.command import Effort, run_benchmark
from benchmarks.ensemble import steps_of_members
from benchmarks.tables import Table
from benchmarks.timing import Measured, in_turns, threads


class ByteCounter(TorchDispatchMode):
    """Bytes that the arguments and the results of all operations hold, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = _memory((args, kwargs)), _memory(out)
        if func._schema.is_mutable or not made.keys() <= given.keys():  # else a view
            self.total += sum(given.values()) + sum(made.values())
        return out


def _memory(tree: Any) -> dict[int, int]:
    """Bytes of the tensors in a tree, by the memory in which they stand."""
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
    return {t.untyped_storage().data_ptr(): t.numel() * t.element_size() for t in tensors}


def peak_gflops(side: int) -> float:
    """Best rate of a square matrix product."""
    a, b, out = torch.rand(side, side), torch.rand(side, side), torch.empty(side, side)
    return 2 * side**3 / min(_times(lambda: torch.mm(a, b, out=out))) / 1e6


def peak_gbytes(numbers: int) -> float:
    """Best rate of a copy, bytes read and written."""
    source, target = torch.rand(numbers), torch.empty(numbers)
    return 2 * source.nbytes / min(_times(lambda: target.copy_(source))) / 1e6


def _times(run: Callable[[], object]) -> list[float]:
    return in_turns({"": run}, 7)[""]


class Trained(NamedTuple):
    """What is measured: steps without end; where several runs share each, how many, and steps of one of them alone."""

    steps: Iterator[object]
    runs: int = 1
    alone: Iterator[object] | None = None


def trainings(toy: bool) -> Mapping[str, Trained]:
    """By name."""
    if toy:
        return {"toy": Trained(TOY.steps())}
    return {
        "fno (64 px)": Trained(FNO.steps()),
        "default hybrid (32 px)": Trained(DEFAULT.steps()),
        "16 of them together, recorded": Trained(steps_of_members(DEFAULT, 16), 16, DEFAULT.steps()),
        "17 M hybrid (96 px)": Trained(HYBRID_17M.steps()),
    }


def row(name: str, trained: Trained, flops: float, gbytes: float, rounds: int) -> list[str]:
    """One kind of step against the machine's rates."""
    counter, steps = FlopCounterMode(display=False), trained.steps
    next(steps)
    with counter:
        next(trained.alone or steps)  # torch counts convolutions in groups as if they were not
    operations = counter.get_total_flops() * trained.runs
    with ByteCounter() as moved:
        next(steps)
    step_ms = Measured.of(in_turns({"": lambda: next(steps)}, rounds)[""]).median
    compute_ms, memory_ms = operations / flops / 1e6, moved.total / gbytes / 1e6
    numbers = (operations / 1e9, compute_ms, moved.total / 1e9, memory_ms, step_ms)
    return [name, *(f"{number:.3g}" for number in numbers), f"{(compute_ms + memory_ms) / step_ms:.0%}"]


def measure(effort: Effort) -> Iterator[Table]:
    """The table of limits, on one thread."""
    side, numbers = (256, 2**20) if effort.toy else (1536, 2**26)
    with threads(1):
        flops, gbytes = peak_gflops(side), peak_gbytes(numbers)
        rows = [row(name, it, flops, gbytes, effort.rounds_or(7)) for name, it in trainings(effort.toy).items()]
    note = f"One thread: matrix product {flops:.0f} GFLOP/s, copy {gbytes:.1f} GB/s."
    columns = ("step of", "GFLOP", "at peak ms", "GB", "at peak ms", "measured ms", "explained")
    yield Table(title="How near a step is to the machine's limits", columns=columns, rows=rows, note=note)


if __name__ == "__main__":
    sys.exit(run_benchmark(measure, __doc__))
