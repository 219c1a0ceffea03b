"""How near a training step comes to what this machine can do at all.

    python -m benchmarks.limits

Counted: the floating-point operations of a step's matrix products and convolutions (torch's own counter, complex ones
as real), and the bytes that its tensors are read and written, every operation for itself. Measured: this machine's
best rate of a large matrix product, and of a copy of arrays that fit no cache. The sum of both times is a floor
only for a step whose operations are not fused; the share says how much of the step it explains.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import DEFAULT, FNO, TOY, Case
from benchmarks.command import Effort, run_benchmark
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


def row(name: str, case: Case, flops: float, gbytes: float, rounds: int) -> list[str]:
    """One network's step against the machine's rates."""
    steps = case.steps()
    next(steps)
    counter = FlopCounterMode(display=False)
    with counter:
        next(steps)
    with ByteCounter() as moved:
        next(steps)
    step_ms = Measured.of(in_turns({"": lambda: next(steps)}, rounds)[""]).median
    compute_ms, memory_ms = counter.get_total_flops() / flops / 1e6, moved.total / gbytes / 1e6
    numbers = (counter.get_total_flops() / 1e9, compute_ms, moved.total / 1e9, memory_ms, step_ms)
    return [name, *(f"{number:.3g}" for number in numbers), f"{(compute_ms + memory_ms) / step_ms:.0%}"]


def measure(effort: Effort) -> Iterator[Table]:
    """The table of limits, on one thread."""
    cases = {"toy": TOY} if effort.toy else {"fno (64 px)": FNO, "default hybrid (32 px)": DEFAULT}
    with threads(1):
        flops, gbytes = (
            (peak_gflops(256), peak_gbytes(2**20)) if effort.toy else (peak_gflops(1536), peak_gbytes(2**26))
        )
        rows = [row(name, case, flops, gbytes, effort.rounds_or(7)) for name, case in cases.items()]
    note = f"One thread: matrix product {flops:.0f} GFLOP/s, copy {gbytes:.1f} GB/s."
    columns = ("step of", "GFLOP", "at peak ms", "GB", "at peak ms", "measured ms", "explained")
    yield Table(title="How near a step is to the machine's limits", columns=columns, rows=rows, note=note)


if __name__ == "__main__":
    sys.exit(run_benchmark(measure, __doc__))
