"""Every benchmark, one after the other: ``python -m benchmarks [--markdown FILE] [--figure PATH]``.

About ten minutes on two idle cores. What other jobs do to the machine meanwhile is in the spread.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
from collections.abc import Iterator

import torch

from benchmarks.command import Effort, run_benchmark
from benchmarks.tables import Table

MODULES = ("clipping", "step", "limits", "harness", "ensemble", "scaling")


def measure(effort: Effort) -> Iterator[Table]:
    """The tables of all benchmarks that are here."""
    for name in MODULES:
        if importlib.util.find_spec(f"benchmarks.{name}") is not None:
            yield from importlib.import_module(f"benchmarks.{name}").measure(effort)
    machine = [["python", platform.python_version()], ["torch", torch.__version__], ["machine", platform.processor()]]
    yield Table(title="Measured with", columns=("what", "version"), rows=machine)


if __name__ == "__main__":
    sys.exit(run_benchmark(measure, __doc__))
