"""One training step: this package against the straightforward implementation of the same network.

    python -m benchmarks.step [--rounds 15]

Both sides train on the same kind of frames with Adam on the MAE of amplitudes, whole steps from taking a batch to the
updated weights and the loss on the host. *Clipped and logged*: AGC, the norm of every gradient before it and of all
gradients before and after it, on the host in every step; the other side does so in the loops that this project
started from.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator

from benchmarks.cases import DEFAULT, FNO, HYBRID_17M, TOY, Case
from benchmarks.command import Effort, run_benchmark
from benchmarks.reference import clip_and_log, reference_steps
from benchmarks.tables import Line, Table, goals
from benchmarks.timing import Contender, in_turns, ratio, threads
from ptycho_torch.model import PtychoPINN
from ptycho_torch.train_utils import GradientClipper


def adaptive(model: PtychoPINN) -> Callable[[], object]:
    """The package's clipping, with all that it says of the norms read."""
    clipper = GradientClipper(model, algorithm="agc", threshold=0.01)

    def run() -> object:
        report = clipper()
        return clipper.layer_norms(), float(report.norm_before), float(report.norm_after)

    return run


def by_loops(model: PtychoPINN) -> Callable[[], object]:
    """The clipping and logging this project started from, on the package's network."""
    parameters = list(model.parameters())
    return lambda: clip_and_log(parameters)


def a_few(steps: Iterator[object], number: int) -> Contender:
    """Make the next steps."""
    return lambda: next(itertools.islice(steps, number - 1, None))


def plain(case: Case, name: str, rounds: int) -> Iterator[Line]:
    """The step without clipping, on one thread and on two."""
    for number, goal in ((1, 1.35), (2, 1.3)):
        with threads(number):
            sides = {"package": a_few(case.steps(), 1), "reference": a_few(reference_steps(case), 1)}
            reached = ratio(in_turns(sides, rounds, warm_up=2), "reference", "package")
        yield Line(what=f"{name}, {number} thread(s)", reached=reached, goal=goal)


def clipped(case: Case, name: str, rounds: int, steps: int, goal: float | None) -> Iterator[Line]:
    """The step with clipping and logging, on one thread."""
    with threads(1):
        sides = {
            "package": a_few(case.steps(adaptive), steps),
            "loops": a_few(case.steps(by_loops), steps),
            "reference": a_few(reference_steps(case, clip_and_log), steps),
        }
        times = in_turns(sides, rounds, warm_up=2)
    yield Line(what=f"{name}, clipped and logged", reached=ratio(times, "reference", "package"), goal=goal)
    yield Line(what=f"{name}, by loops on the package's network", reached=ratio(times, "loops", "package"))


def measure(effort: Effort) -> Iterator[Table]:
    """The table of steps."""
    fno, default, large = (TOY, TOY, TOY) if effort.toy else (FNO, DEFAULT, HYBRID_17M)
    lines = [
        *plain(fno, "fno (64 px)", effort.rounds_or(15)),
        *clipped(default, "default hybrid (32 px)", effort.rounds_or(30), 10, 2.5),
        *clipped(large, "17 M hybrid (96 px)", effort.rounds_or(3), 1, 2.5),
    ]
    yield goals("The training step: times faster than the straightforward way", lines)


if __name__ == "__main__":
    sys.exit(run_benchmark(measure, __doc__))
