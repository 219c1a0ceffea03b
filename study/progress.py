"""What a person sees while a study runs: one calm line on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_LINES = 10  # progress lines of a whole study where there is no terminal


class StudyProgress:
    """Counts runs as they end, by outcome."""

    def __init__(self) -> None:
        self.console = Console(file=sys.stderr, highlight=False)
        self._total, self._done = 0, 0
        self._outcomes: collections.Counter[str] = collections.Counter()
        self._start = time.monotonic()
        self._bar = Progress(
            TextColumn("runs"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[outcomes]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("runs", total=0, outcomes="")

    def __enter__(self) -> StudyProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def expect(self, runs: int) -> None:
        """So many runs more are to be trained."""
        self._total += runs
        self._bar.update(self._task, total=self._total)

    def say(self, text: str) -> None:
        """One line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def ended(self, result: dict[str, Any]) -> None:
        """Count one run."""
        self._done += 1
        self._outcomes[result.get("reason") or result["outcome"]] += 1
        words = " ".join(f"{word} {count}" for word, count in sorted(self._outcomes.items()))
        self._bar.update(self._task, completed=self._done, outcomes=words)
        step = max(1, self._total // PLAIN_LINES)
        if not self.console.is_terminal and (self._done % step == 0 or self._done == self._total):
            self.say(f"{self._done}/{self._total} runs in {time.monotonic() - self._start:.0f} s: {words}")


def results_table(summary: Mapping[str, Any]) -> Table:
    """What a study found, for the terminal: critical rates where it searched them, otherwise its arms."""
    return rates_table(summary["frontier"]) if summary["frontier"] else arms_table(summary["arms"])


def rates_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """The critical learning rate of each arm, its gain over the control and its usable band."""
    table = _table(("setting", "arm"), ("LR50 (95%)", "gain (95%)", "usable decades"))
    for line in lines:
        numbers = line["lr50_text"], line["gain_text"], f"{line['usable_decades']:.2g}"
        table.add_row(line["setting"], line["label"], *numbers)
    return table


def arms_table(arms: Sequence[Mapping[str, Any]]) -> Table:
    """The arms of a study with their failure counts."""
    table = _table(("condition", "arm"), ("ok", "plateau", "failed", "p(fail) 95%", "p", "loss ratio 95%"))
    previous = None
    for arm in arms:
        if previous not in (None, arm["condition"]):
            table.add_section()
        previous = arm["condition"]
        p = arm.get("p_vs_control")
        table.add_row(
            str(arm["condition"]),
            str(arm["label"]),
            *(str(arm[k]) for k in ("n_ok", "n_plateau", "n_failed")),
            _share(arm),
            "" if p is None or p != p else f"{p:.3f}",
            _loss_ratio(arm),
        )
    return table


def _loss_ratio(arm: Mapping[str, Any]) -> str:
    """The price in loss with its interval, as far as there are enough pairs of ok runs for either."""
    if arm["loss_ratio"] is None:
        return ""
    bounds = "" if arm["loss_ratio_low"] is None else f" {arm['loss_ratio_low']:.2f}–{arm['loss_ratio_high']:.2f}"
    return f"{arm['loss_ratio']:.2f}{bounds}"


def _table(texts: Iterable[str], numbers: Iterable[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in texts:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _share(arm: Mapping[str, Any]) -> str:
    """The interval of the failure probability; nothing where no run could be judged."""
    if arm["p_fail"] is None:
        return ""
    return f"{arm['p_fail_low']:.2f}–{arm['p_fail_high']:.2f}"
