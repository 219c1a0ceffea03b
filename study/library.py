"""Studies from Python: run one, or load one, and look at what it found."""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ptycho.errors import unknown_name
from study.settings import split_settings
from study.tracking_uri import redact_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from study.summaries import ArmSummary
    from study.table import Tables
    from study.verdict import Verdict


def shootout(
    preset: str = "default",
    *,
    algo: str | Iterable[str] = (),
    seeds: int | None = None,
    regime: str | Iterable[str] = (),
    out: str | Path | None = None,
    **settings: Any,
) -> StudyResult:
    """Run a study, or what is left of it, and return what it found; as ``python -m study.shootout``.

    Runs that have finished in ``out`` are not repeated. Progress goes to stderr.

    Args:
        preset: the named design; ``smoke`` takes about half a minute.
        algo: clipping algorithms, each as ``"name"`` or ``"name=threshold"``; by default the preset's.
        seeds: paired replicates per arm.
        regime: regimes of the preset to run; by default all.
        out: the study's folder; by default ``results/<preset>``.
        settings: any other setting of the study or of its runs by its name, such as ``learning_rate=0.01``.

    Raises:
        InputError: an unknown setting, a value that is not allowed, a folder or store that cannot be used.
    """
    from study.plan import make_plan
    from study.running import run_study

    named = {"algo": algo, "seeds": seeds, "regime": regime, "out": None if out is None else str(out)}
    given = {name: value for name, value in named.items() if value is not None and value != ()}
    config, overrides = split_settings({"preset": preset, **given, **settings})
    report = run_study(make_plan(config, overrides, call_text({"preset": preset, **given, **settings})))
    return StudyResult(report.parent)


def call_text(settings: Mapping[str, Any]) -> str:
    """A call of :func:`shootout` as it may stand in a record: without the credentials in an address.

    >>> call_text({"preset": "smoke", "tracking_uri": "http://me:secret@host"})
    "shootout(preset='smoke', tracking_uri='http://***@host')"
    """
    shown = {name: redact_value(value) if isinstance(value, str) else value for name, value in settings.items()}
    return f"shootout({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def load_study(source: str | Path, tracking_uri: str | None = None) -> StudyResult:
    """A study from its folder, or the latest of an MLflow experiment, which is fetched into ``results/``.

    Args:
        source: a folder that a study has written, or the name of an experiment.
        tracking_uri: the MLflow store of the experiment; by default that of the study's command.

    Raises:
        InputError: neither a study's folder nor an experiment, or a file of it that is damaged.
    """
    from study.report import study_folder

    result = StudyResult(study_folder(str(source), tracking_uri))
    _ = result.tables  # what is damaged is said now
    return result


class StudyResult:
    """What a study found. Everything is read from its folder when it is first asked for.

    Attributes:
        out: the study's folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = Path(out)

    @functools.cached_property
    def tables(self) -> Tables:
        """Every table, as ``study.table`` has them."""
        from study.table import collect

        if os.access(self.out, os.W_OK):
            return collect(self.out)
        with tempfile.TemporaryDirectory() as folder:
            return collect(self.out, Path(folder))

    @property
    def table(self) -> pd.DataFrame:
        """One row per run: what it was, how it ended, how well it learnt (``runs.csv``)."""
        return self.tables.runs

    @functools.cached_property
    def steps(self) -> pd.DataFrame:
        """One row per run and optimizer step (``steps.parquet``)."""
        return self.tables.steps

    @functools.cached_property
    def arms(self) -> pd.DataFrame:
        """One row per arm: counts of outcomes, failure probability with its interval, comparison with the control."""
        return pd.DataFrame([dataclasses.asdict(arm) for arm in self._summaries])

    @functools.cached_property
    def verdict(self) -> Verdict:
        """The verdict of the rule that was fixed before the runs: ``.word``, ``.headline``, ``.sentences``."""
        from study.verdict import decide

        return decide(self.tables, self._summaries)

    @property
    def report(self) -> Path:
        """The report's page; written where it is not there.

        Raises:
            InputError: the folder cannot be written.
        """
        from study.report import write_report

        page = self.out / "report.html"
        return page if page.exists() else write_report(self.out)

    def figures(self, *names: str) -> dict[str, Figure]:
        """The report's figures by name, drawn anew; with ``names`` those whose name begins with one of them."""
        from study.figures import draw_all

        drawn = {drawing.name: drawing.figure for drawing in draw_all(self.tables, self._summaries)}
        return {name: figure for name, figure in drawn.items() if not names or name.startswith(names)}

    def figure(self, name: str) -> Figure:
        """One figure: that of the name, else the first whose name begins with it, as ``"loss"`` or ``"survival"``.

        Raises:
            InputError: no figure has such a name.
        """
        from study.figures import draw_all

        names = []
        for drawing in draw_all(self.tables, self._summaries):
            if drawing.name.startswith(name):
                return drawing.figure
            names.append(drawing.name)
        raise unknown_name("figure", name, names)

    def __repr__(self) -> str:
        return f"StudyResult({str(self.out)!r}: {len(self.table)} runs, {self.verdict.word})"

    @functools.cached_property
    def _summaries(self) -> Sequence[ArmSummary]:
        from study.summaries import summarise

        return summarise(self.tables)
