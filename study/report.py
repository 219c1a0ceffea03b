"""The report of a study: one self-contained page, the same in Markdown, every figure with its data, a summary.

``python -m study.report DIR_OR_EXPERIMENT`` writes it again from what is recorded. It trains nothing and
decides nothing: outcomes are those that the runs recorded, the verdict that of ``study.verdict``.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from ptycho.errors import InputError
from study.command import FINISHED, Parser, run_command
from study.tracking_uri import resolve_tracking_uri, sqlite_file


def write_report(out: Path) -> Path:
    """Write ``report.html``, ``report.md``, ``summary.json``, the tables and the figures of a study folder.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: the folder is no study, one of its files is damaged, or it cannot be written.
    """
    from study.figures import draw_all  # pandas, SciPy and Matplotlib take seconds to load
    from study.report_files import remove_former, save_figure, summary, write_text
    from study.report_page import render, report_context
    from study.summaries import summarise
    from study.table import collect
    from study.verdict import decide

    tables = collect(out)
    arms = summarise(tables)
    verdict = decide(tables, arms)
    write_text(out / "summary.json", json.dumps(summary(tables, arms, verdict), indent=1, allow_nan=False) + "\n")
    figures = [save_figure(out / "figures", drawing) for drawing in draw_all(tables, arms)]
    remove_former(out / "figures", {figure["name"] for figure in figures})
    context = report_context(tables, arms, verdict, figures)
    write_text(out / "report.md", render("report.md.j2", context))
    write_text(out / "report.html", render("report.html.j2", context))
    return out / "report.html"


def study_folder(source: str, tracking_uri: str | None = None) -> Path:
    """The study that ``source`` names: its folder, or a folder made anew from what MLflow has of it.

    Raises:
        InputError: neither a folder nor a study in the store, or a store that cannot be used.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    uri = resolve_tracking_uri(tracking_uri)
    file = sqlite_file(uri)
    if len(folder.parts) != 1 or (file is not None and not file.exists()):
        where = "" if len(folder.parts) != 1 else f", and {file} is no MLflow store"
        raise InputError(
            f"study: {source!r} is no folder{where}; allowed: a folder that a study has written, or an experiment"
        )
    from study.tracking_fetch import fetch_study  # loads MLflow, which takes seconds

    return fetch_study(source, uri, unused(Path("results") / source))


def unused(folder: Path) -> Path:
    """``folder``, or with a number behind it where there is something by that name.

    >>> unused(Path("no/such/folder")).name
    'folder'
    """
    numbered = (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(2))
    return next(path for path in itertools.chain([folder], numbered) if not path.exists())


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="python -m study.report", description="Write a study's report again; trains nothing.")
    parser.add_argument(
        "study",
        metavar="DIR_OR_EXPERIMENT",
        help="folder of the study; or the name of an MLflow experiment, whose latest study is fetched into results/",
    )
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow store (default: as of the study's command)")
    return parser


def main(arguments: Iterable[str] | None = None) -> int:
    """``python -m study.report``: 0 when the report stands, 2 on bad input."""

    def body() -> int:
        given = build_parser().parse_args(None if arguments is None else list(arguments))
        sys.stdout.write(f"{write_report(study_folder(given.study, given.tracking_uri))}\n")
        return FINISHED

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
