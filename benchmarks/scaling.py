"""How a training step's time and memory grow with the size of what is trained.

    python -m benchmarks.scaling [--figure PATH]

The default hybrid with AGC in the bare loop on one thread, one size varied at a time; an ensemble trains as in a study,
with records. Each point has a process of its own. The exponent is the slope of a straight line through the logarithms.
Time is that of a step, over all runs and members; memory is what the process needs above what it held before the
network was there.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.cases import DEFAULT, TOY, Case
from benchmarks.command import Effort, run_benchmark
from benchmarks.ensemble import steps_of_members
from benchmarks.step import adaptive
from benchmarks.tables import Table
from benchmarks.timing import thread_ms, threads


class Point(NamedTuple):
    """One measurement: the size, milliseconds of a step and mebibytes."""

    size: float
    step_ms: float
    peak_mib: float


class Curve(NamedTuple):
    """What is varied, how it is called, and what makes the steps of one size."""

    name: str
    sizes: Sequence[int]
    steps: Callable[[int], Iterator[object]]
    size_of: Callable[[int], float] = float


def of_model(case: Case, **changes: int) -> Case:
    """A case with another network."""
    return dataclasses.replace(case, model=dataclasses.replace(case.model, **changes))


def parameters(case: Case) -> float:
    """Numbers that a network learns, complex ones as two."""
    return float(sum(p.numel() * (2 if p.is_complex() else 1) for p in case.build().parameters()))


def in_turn(case: Case, runs: int) -> Iterator[object]:
    """A step of each of several runs."""
    return zip(*(case.steps(adaptive) for _ in range(runs)), strict=True)


def curves(case: Case) -> list[Curve]:
    """The curves."""
    return [
        Curve(
            "parameters (by width)",
            (4, 8, 16, 32, 64),
            lambda n: of_model(case, fno_width=n).steps(adaptive),
            lambda n: parameters(of_model(case, fno_width=n)),
        ),
        Curve(
            "frames of a batch",
            (2, 4, 8, 16, 32),
            lambda n: dataclasses.replace(case, batch_size=n).steps(adaptive),
        ),
        Curve("modes", (2, 4, 8, 16), lambda n: of_model(case, fno_modes=n).steps(adaptive)),
        Curve("pixels a side", (16, 32, 64, 128), lambda n: of_model(case, N=n).steps(adaptive)),
        Curve("runs, one after the other", (1, 2, 4, 8), lambda n: in_turn(case, n)),
        Curve("members of an ensemble", (1, 2, 4, 8, 16), lambda n: steps_of_members(case, n)),
    ]


def status_mib(name: str) -> float:
    """An entry of this process's memory, as Linux counts it."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) / 1024 if found else float("nan")


def measure_point(curve: Curve, size: int, budget_s: float) -> Point:
    """Make steps for a while, three at least; to be called in a process that has done nothing else."""
    before = status_mib("VmRSS")
    steps, times = curve.steps(size), []
    with threads(1):
        next(steps)
        end = time.monotonic() + budget_s
        while time.monotonic() < end or len(times) < 3:
            times.append(thread_ms(lambda: next(steps)))
    return Point(curve.size_of(size), statistics.median(times), status_mib("VmHWM") - before)


def apart(curve: Curve, size: int, budget_s: float) -> Point:
    """The same in a child process, which starts with everything loaded."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=lambda: theirs.send(measure_point(curve, size, budget_s)))
    child.start()
    theirs.close()
    try:
        point: Point = ours.recv()
    finally:
        child.join()
    return point


def exponent(points: Sequence[Point], value: Callable[[Point], float]) -> float:
    """The slope of the logarithms."""
    sizes, values = np.log([p.size for p in points]), np.log([max(value(p), 1e-3) for p in points])
    return float(np.polyfit(sizes, values, 1)[0])


def draw(measured: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Time and memory against each size, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.5 * len(measured), 5), layout="constrained")
    axes = figure.subplots(2, len(measured), squeeze=False, sharex="col", sharey="row")
    rows = (("ms of a step", lambda p: p.step_ms), ("MiB of memory", lambda p: p.peak_mib))
    for column, (name, points) in enumerate(measured.items()):
        for row, (label, value) in enumerate(rows):
            axis = axes[row][column]
            axis.loglog([p.size for p in points], [value(p) for p in points], "o-", color="#0072b2")
            axis.set_title(f"exponent {exponent(points, value):.2f}", fontsize=9)
            axis.set_ylabel("" if column else label)
            axis.set_xlabel(name if row else "")
            axis.grid(alpha=0.3)
        if points[-1].size < 1e4:
            axis.set_xticks([p.size for p in points], [f"{p.size:g}" for p in points])
        axis.xaxis.minorticks_off()
    for axis in axes[:, 0]:
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
    figure.savefig(path, dpi=150)


def measure(effort: Effort) -> Iterator[Table]:
    """The points and the exponents."""
    case = TOY if effort.toy else DEFAULT
    chosen = [c._replace(sizes=c.sizes[:2]) for c in curves(case)[2::3]] if effort.toy else curves(case)
    measured = {c.name: [apart(c, size, 0.01 if effort.toy else 1.0) for size in c.sizes] for c in chosen}
    rows = [
        [name, f"{p.size:,.0f}", f"{p.step_ms:.2f}", f"{p.peak_mib:.0f}"]
        for name, p in itertools.chain.from_iterable(zip(itertools.repeat(n), p) for n, p in measured.items())
    ]
    fitted = [
        [name, f"{exponent(points, lambda p: p.step_ms):.2f}", f"{exponent(points, lambda p: p.peak_mib):.2f}"]
        for name, points in measured.items()
    ]
    yield Table(title="Scaling", columns=("varied", "size", "step ms", "memory MiB"), rows=rows)
    yield Table(title="Scaling: exponents", columns=("against", "time", "memory"), rows=fitted)
    if effort.figure:
        draw(measured, effort.figure)


if __name__ == "__main__":
    sys.exit(run_benchmark(measure, __doc__))
