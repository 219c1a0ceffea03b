"""What a report's page says: the templates, the plain values they are given, numbers as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from study.arms import median, searched_regimes
from study.critical_rates import frontier
from study.drawing import p_text
from study.figure_data import labelled
from study.figures import drawn_conditions
from study.price import Price, prices
from study.summaries import ArmSummary
from study.table import RUN_COLUMNS, Tables
from study.tracking_notes import code, escaped
from study.verdict import Verdict

TEMPLATES = Path(__file__).parent / "templates"
HIDDEN_SETTINGS = ("seed", "gradient_clip_algorithm", "gradient_clip_val", "learning_rate_last", "n_parameters")
RUN_TABLE = (
    *("run_id", "condition", "label", "replicate", "outcome", "reason", "failed_at_step", "steps"),
    *("val_loss_final", "amp_ssim", "phase_ssim", "spikes", "stall_ratio", "wall_s"),
)


def report_context(
    tables: Tables, arms: Sequence[ArmSummary], verdict: Verdict, figures: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Everything the templates say, as plain values."""
    searched = searched_regimes(tables)
    asked = [arm for arm in arms if arm.regime not in searched]
    conditions = list(dict.fromkeys(arm.condition for arm in asked))
    tried = list(dict.fromkeys(arm.condition for arm in arms if arm.regime in searched))
    drawn = drawn_conditions(asked)
    return {
        "study": tables.study,
        "title": tables.study.get("title") or "Stability study",
        "control": tables.control,
        "verdict": verdict,
        "conditions": [condition_context(name, arms, tables.runs) for name in conditions],
        "tried": [condition_context(name, arms, tables.runs) for name in tried],
        "prices": by_condition(prices(tables)),
        "frontier": frontier(arms, tables.control).to_dict("records"),
        "figures": figures,
        "left_out": [name for name in conditions if name not in drawn],
        "methods": methods_context(tables, arms),
        "run_columns": RUN_TABLE,
        "runs": labelled(tables)[list(RUN_TABLE)].to_dict("records") if len(tables.runs) else [],
    }


def by_condition(found: Sequence[Price]) -> dict[str, list[Price]]:
    """The prices of each condition that has any pair of ok runs."""
    groups: dict[str, list[Price]] = {}
    for price in found:
        groups.setdefault(price.condition, []).append(price)
    return {name: group for name, group in groups.items() if any(price.price_pairs for price in group)}


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
        "attempts": tables.attempts,
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


def difference(value: float) -> str:
    """A difference of scores with its sign; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:+.3f}"


def markdown(value: Any) -> str:
    """Text for a Markdown table or sentence: nothing in it is taken for markup."""
    return escaped(number(value))


def render(template: str, context: Mapping[str, Any]) -> str:
    """A template filled in; everything that goes into HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "md": markdown,
        "code": code,
        "p_text": p_text,
        "probability": probability,
        "difference": difference,
    }
    environment.globals["interval"] = interval
    return environment.get_template(template).render(**context)
