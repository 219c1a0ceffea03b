"""The report of a study: one self-contained page, the same in Markdown, every figure with its data, a summary.

``python -m study.report DIR_OR_EXPERIMENT`` writes it again from what is recorded. It trains nothing and
decides nothing: outcomes are those that the runs recorded, the verdict that of ``study.verdict``.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ptycho.errors import InputError
from study.command import FINISHED, Parser, run_command
from study.critical_rates import frontier
from study.drawing import Drawing
from study.figures import draw_all
from study.price import prices
from study.report_page import render, report_context
from study.summaries import ArmSummary, summarise
from study.table import Tables, collect, replacing
from study.tracking_uri import resolve_tracking_uri, sqlite_file
from study.verdict import Verdict, decide

DPI = 150


def write_report(out: Path) -> Path:
    """Write ``report.html``, ``report.md``, ``summary.json``, the tables and the figures of a study folder.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: the folder is no study, one of its files is damaged, or it cannot be written.
    """
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


def summary(tables: Tables, arms: Sequence[ArmSummary], verdict: Verdict) -> dict[str, Any]:
    """The content of ``summary.json``; a number that does not exist is null."""
    content: dict[str, Any] = plain_json(
        {
            **{key: tables.study.get(key) for key in ("study_id", "study_version", "preset", "title", "created")},
            "control": tables.control,
            "verdict": dataclasses.asdict(verdict),
            "arms": [dataclasses.asdict(arm) for arm in arms],
            "prices": [dataclasses.asdict(price) for price in prices(tables)],
            "frontier": frontier(arms, tables.control).to_dict("records"),
            "unfinished": list(tables.unfinished),
            "attempts": tables.attempts,
        }
    )
    return content


def plain_json(value: Any) -> Any:
    """``value`` with what JSON does not have (NaN, infinities, NumPy numbers, tuples) turned into what it has."""
    match value:
        case Mapping():
            return {str(key): plain_json(item) for key, item in value.items()}
        case list() | tuple():
            return [plain_json(item) for item in value]
        case np.generic():
            return plain_json(value.item())
        case float():
            return value if math.isfinite(value) else None
    return value


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_png(figure: Figure) -> bytes:
    """A figure as PNG. Its layout is found first, without the whole extra drawing that Matplotlib would spend on it."""
    figure.set_dpi(DPI)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def save_figure(folder: Path, drawing: Drawing) -> dict[str, Any]:
    """Save a figure as PNG and its data as CSV; what the page needs of it, with the picture inline."""
    png = to_png(drawing.figure)
    with replacing(folder / f"{drawing.name}.png") as temporary:
        temporary.write_bytes(png)
    with replacing(folder / f"{drawing.name}.csv") as temporary:
        drawing.data.to_csv(temporary, index=False)
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    return {
        "name": drawing.name, "title": drawing.title, "caption": drawing.caption, "alt": drawing.alt,
        "data": base64.b64encode(png).decode(), "width": width, "height": height, "shown_px": round(width / DPI * 110),
    }  # fmt: skip


def remove_former(folder: Path, names: Set[str]) -> None:
    """Remove numbered figures of an earlier report that this one does not have; nothing else in the folder."""
    for path in folder.glob("*_[0-9][0-9]_*.*"):
        if path.suffix in (".png", ".csv") and path.stem not in names:
            path.unlink()


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
