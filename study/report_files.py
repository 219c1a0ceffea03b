"""What a report writes besides its page: the summary, and every figure with its data."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from study.critical_rates import frontier
from study.drawing import Drawing
from study.price import prices
from study.summaries import ArmSummary
from study.table import Tables, replacing
from study.verdict import Verdict

DPI = 150


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
