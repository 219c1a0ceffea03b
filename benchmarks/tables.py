"""What benchmarks print: tables of text, and ratios beside their goals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from benchmarks.timing import Measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A heading, a sentence, and lines of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        note = f"{self.note}\n\n" if self.note else ""
        return f"## {self.title}\n\n{note}" + "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def show(self, console: Console) -> None:
        """Print it; as Markdown where nobody watches."""
        if not console.is_terminal:
            console.file.write("\n" + self.markdown())
            return
        table = RichTable(title=escape(self.title), title_justify="left", caption=escape(self.note) or None)
        for column in self.columns:
            table.add_column(escape(column))
        for row in self.rows:
            missed = row[-1] == "missed"
            table.add_row(*map(escape, row), style="yellow" if missed else None)
        console.print(table)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One measured number and what was wanted.

    Attributes:
        what: what was measured, and against what.
        reached: the number.
        goal: the wanted number; None where nothing was promised.
        at_most: whether less is better.
        unit: of both; a ratio has none.
    """

    what: str
    reached: Measured
    goal: float | None = None
    at_most: bool = False
    unit: str = ""

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, or nothing without a goal."""
        if self.goal is None:
            return ""
        reached = self.reached.median
        return "met" if (reached <= self.goal if self.at_most else reached >= self.goal) else "missed"

    def cells(self) -> list[str]:
        """The line as text."""
        unit = f" {self.unit}" if self.unit else ""
        goal = "" if self.goal is None else f"at {'most' if self.at_most else 'least'} {self.goal:g}{unit}"
        return [self.what, goal, f"{self.reached.median:.3g}{unit}", f"{self.reached.spread:.0%}", self.verdict]


def goals(title: str, lines: Sequence[Line], note: str = "") -> Table:
    """A table of numbers against their goals."""
    columns = ("what", "goal", "reached", "spread", "")
    return Table(title=title, columns=columns, rows=[line.cells() for line in lines], note=note)
