"""Every benchmark, one after the other: ``python -m benchmarks [--markdown FILE] [--figure PATH]``.

About ten minutes on two idle cores. What other jobs do to the machine meanwhile is in the spread.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator

import torch

from benchmarks import clipping, ensemble, harness, limits, scaling, step
from benchmarks.command import Effort, run_benchmark
from benchmarks.tables import Table


def measure(effort: Effort) -> Iterator[Table]:
    """The tables of all benchmarks."""
    for module in (scaling, clipping, step, limits, harness, ensemble):  # memory is that of a process still small
        yield from module.measure(effort)
    machine = [["python", platform.python_version()], ["torch", torch.__version__], ["machine", platform.processor()]]
    yield Table(title="Measured with", columns=("what", "version"), rows=machine)


if __name__ == "__main__":
    sys.exit(run_benchmark(measure, __doc__))
