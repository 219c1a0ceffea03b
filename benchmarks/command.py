"""The command line that every benchmark has."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.tables import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How much to measure.

    Attributes:
        rounds: repetitions; None for the benchmark's own choice.
        toy: networks and repetitions so small that only the run itself is tried.
        figure: where a benchmark that draws one writes its figure.
    """

    rounds: int | None = None
    toy: bool = False
    figure: Path | None = None

    def rounds_or(self, usual: int) -> int:
        """The repetitions to make where ``usual`` would be enough."""
        return self.rounds or (2 if self.toy else usual)


Measure = Callable[[Effort], Iterable[Table]]


def run_benchmark(measure: Measure, description: str | None, argv: Sequence[str] | None = None) -> int:
    """Measure, and show each table as it is ready."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="repetitions (default: each benchmark's own choice)")
    parser.add_argument("--toy", action="store_true", help="tiny networks: try the benchmark, measure nothing")
    parser.add_argument("--figure", type=Path, metavar="PATH", help="write the figure of the scaling curves there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there as well, as Markdown")
    options = parser.parse_args(argv)
    console, tables = Console(highlight=False), []
    for table in measure(Effort(rounds=options.rounds, toy=options.toy, figure=options.figure)):
        table.show(console)
        tables.append(table)
        if options.markdown:
            options.markdown.write_text("\n".join(t.markdown() for t in tables), encoding="utf-8")
    return 0
