"""The report of a study: one self-contained page, the same in Markdown, every figure with its data, a summary.

``python -m study.report DIR_OR_EXPERIMENT`` writes it again from what is recorded. It trains nothing and
decides nothing: outcomes are those that the runs recorded, the verdict that of ``study.verdict``.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from ptycho.errors import InputError
from study.arms import median
from study.command import FINISHED, Parser, run_command
from study.critical_rates import frontier
from study.figures import MOST_CONDITIONS, Drawing, draw_all, labelled, p_text
from study.summaries import ArmSummary, summarise
from study.table import RUN_COLUMNS, Tables, collect, replacing
from study.verdict import Verdict, decide

TEMPLATES = Path(__file__).parent / "templates"
DPI = 150
HIDDEN_SETTINGS = ("seed", "gradient_clip_algorithm", "gradient_clip_val", "learning_rate_last", "n_parameters")
RUN_TABLE = (
    *("run_id", "condition", "label", "replicate", "outcome", "reason", "failed_at_step", "steps"),
    *("val_loss_final", "amp_ssim", "phase_ssim", "spikes", "stall_ratio", "wall_s"),
)
log = logging.getLogger(__name__)


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
            "frontier": frontier(arms, tables.control).to_dict("records"),
            "unfinished": list(tables.unfinished),
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


def save_figure(folder: Path, drawing: Drawing) -> dict[str, Any]:
    """Save a figure as PNG and its data as CSV; what the page needs of it, with the picture inline."""
    buffer = io.BytesIO()
    drawing.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    png = buffer.getvalue()
    with replacing(folder / f"{drawing.name}.png") as temporary:
        temporary.write_bytes(png)
    with replacing(folder / f"{drawing.name}.csv") as temporary:
        drawing.data.to_csv(temporary, index=False)
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    return {
        "name": drawing.name, "title": drawing.title, "caption": drawing.caption, "alt": drawing.alt,
        "data": base64.b64encode(png).decode(), "width": width, "height": height, "shown_px": round(width / DPI * 110),
    }  # fmt: skip


# What the templates are given


def report_context(
    tables: Tables, arms: Sequence[ArmSummary], verdict: Verdict, figures: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Everything the templates say, as plain values."""
    conditions = list(dict.fromkeys(arm.condition for arm in arms))
    return {
        "study": tables.study,
        "title": tables.study.get("title") or "Stability study",
        "control": tables.control,
        "verdict": verdict,
        "conditions": [condition_context(name, arms, tables.runs) for name in conditions],
        "frontier": frontier(arms, tables.control).to_dict("records"),
        "figures": figures,
        "left_out": conditions[MOST_CONDITIONS:],
        "methods": methods_context(tables, arms),
        "run_columns": RUN_TABLE,
        "runs": labelled(tables)[list(RUN_TABLE)].to_dict("records") if len(tables.runs) else [],
    }


def condition_context(name: str, arms: Sequence[ArmSummary], runs: pd.DataFrame) -> dict[str, Any]:
    """One condition's arms and baselines (medians over its runs)."""
    mine = [arm for arm in arms if arm.condition == name]
    regime = runs[runs["regime"] == mine[0].regime]
    names = {"constant object": "constant", "mean patch": "mean_patch", "true object": "oracle"}
    levels = {text: median(regime[f"baseline_{column}"]) for text, column in names.items()}
    return {"name": name, "arms": mine, "baselines": {k: v for k, v in levels.items() if math.isfinite(v)}}


def methods_context(tables: Tables, arms: Sequence[ArmSummary]) -> dict[str, Any]:
    """Settings, versions and digests of a study."""
    runs = tables.runs
    thresholds = {arm.label: arm.threshold for arm in arms if not arm.is_control and arm.threshold > 0}
    versions = {k.removeprefix("version_"): v for k, v in tables.settings.items() if k.startswith("version_")}
    shared = {k: v for k, v in tables.settings.items() if not k.startswith("version_") and k not in HIDDEN_SETTINGS}
    return {
        "n_runs": len(runs),
        "replicates": sorted(runs["replicate"].unique().tolist()),
        "thresholds": thresholds,
        "regimes": [regime_context(entry, runs) for entry in tables.study.get("regimes", [])],
        "settings": shared,
        "versions": versions,
        "study_versions": distinct(runs["study_version"]),
        "commits": distinct(runs["git_commit"]),
        "digests": distinct(runs["dataset_digest"]),
        "sizes": distinct(runs["ensemble_size"]),
        "parameters": distinct(runs["n_parameters"]),
        "cpu_s": float(runs["wall_s"].sum()),
    }


def regime_context(entry: Mapping[str, Any], runs: pd.DataFrame) -> dict[str, Any]:
    """A regime with the settings that set it apart: one value within it, another elsewhere."""
    mine = runs[runs["regime"] == entry["name"]]
    columns = [c for c in runs.columns if c not in RUN_COLUMNS and c not in HIDDEN_SETTINGS]
    found = {
        c: distinct(mine[c])[0]
        for c in ("optimizer", "learning_rate", *columns)
        if len(distinct(mine[c])) == 1 and (c in ("optimizer", "learning_rate") or len(runs[c].unique()) > 1)
    }
    settings = {c: v for c, v in found.items() if isinstance(v, str | int | float) and not c.startswith("message")}
    return {"name": entry["name"], "description": entry.get("description", ""), "settings": settings}


def distinct(column: pd.Series) -> list[Any]:
    """The different values of a column in their order, missing ones left out."""
    return [value for value in column.dropna().unique().tolist() if value != ""]


# Text


def number(value: Any, digits: int = 3) -> str:
    """A number for a table; a dash where there is none.

    >>> number(0.123456), number(float("nan")), number(None), number(12), number("word")
    ('0.123', '–', '–', '12', 'word')
    """
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def interval(low: float, high: float, form: str = ".3g") -> str:
    """An interval in words that no minus sign can blur; empty where there is none.

    >>> interval(0.348, 0.968, ".2f"), interval(float("nan"), 1.0)
    ('0.35 to 0.97', '')
    """
    return "" if math.isnan(low) or math.isnan(high) else f"{low:{form}} to {high:{form}}"


def probability(value: float) -> str:
    """A proportion or ratio with two decimals; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.2f}"


def markdown(value: Any) -> str:
    """Text for a Markdown table or sentence: nothing in it is taken for markup."""
    text = " ".join(number(value).split())
    for character in "\\`*[]<>|#":
        text = text.replace(character, f"\\{character}")
    return text


def render(template: str, context: Mapping[str, Any]) -> str:
    """A template filled in; everything that goes into HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "md": markdown, "p_text": p_text, "probability": probability}
    environment.globals["interval"] = interval
    return environment.get_template(template).render(**context)


# The command


def study_folder(name: str) -> Path:
    """The folder of the study that ``name`` stands for.

    Raises:
        InputError: there is no such folder.
    """
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(f"study: {name!r} is no folder; allowed: a folder that a study has written")
    return folder


def parse(arguments: Iterable[str] | None) -> str:
    """The study named on the command line."""
    parser = Parser(prog="python -m study.report", description="Write a study's report again; trains nothing.")
    parser.add_argument("study", metavar="DIR_OR_EXPERIMENT", help="folder of the study")
    return str(parser.parse_args(None if arguments is None else list(arguments)).study)


def main(arguments: Iterable[str] | None = None) -> int:
    """``python -m study.report``: 0 when the report stands, 2 on bad input."""

    def body() -> int:
        sys.stdout.write(f"{write_report(study_folder(parse(arguments)))}\n")
        return FINISHED

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
