"""What is remembered beside a run about its sending, and the words that people read in the store."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from study.records import read_object

NOTE_FILE = "tracking.json"


class TrackingError(RuntimeError):
    """The store did not take something for now: what it concerns stays on disk and is sent later."""


@dataclasses.dataclass(slots=True, kw_only=True)
class RunNote:
    """How much of one run the store has.

    Attributes:
        store: the store's address without credentials; a note about another store is void.
        mlflow_run: the child's identity there.
        attempt: which start of the training the child stands for.
        started_ms: time stamp of step 0; later steps count up from it, so that a point sent twice is the same point.
        steps_offset, evals_offset: bytes of the record files that are sent.
        first: first finite value of every series.
        complete: everything is sent and the child has ended.
    """

    store: str
    mlflow_run: str
    attempt: str
    started_ms: int
    steps_offset: int = 0
    evals_offset: int = 0
    first: dict[str, float] = dataclasses.field(default_factory=dict)
    complete: bool = False

    def save(self, folder: Path) -> None:
        """Write the note, so that a reader sees all of it or none of it."""
        write_note(folder, dataclasses.asdict(self))


def load_note(folder: Path) -> RunNote | None:
    """The note beside a run; None where there is none that can be read."""
    try:
        return RunNote(**(read_object(folder / NOTE_FILE) or {}))
    except TypeError:
        return None


def write_note(folder: Path, values: Mapping[str, Any]) -> None:
    """Write ``tracking.json`` in one piece, safe against a power loss."""
    temporary = folder / f".{NOTE_FILE}.{os.getpid()}"
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(values, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, folder / NOTE_FILE)


def study_artifacts(out: Path) -> list[Path]:
    """The files of a finished study that go onto its parent run: report, figures, tables."""
    names = ("report.html", "report.md", "runs.csv", "steps.parquet", "summary.json", "study.json")
    return [out / name for name in names if (out / name).is_file()] + sorted((out / "figures").glob("*.*"))


def describe_run(spec: Mapping[str, Any], result: Mapping[str, Any] | None) -> str:
    """The readable note of one run, in Markdown."""
    threshold = spec.get("threshold")
    arm = f"**{escaped(spec['algorithm'])}**" + ("" if threshold is None else f" (threshold {threshold:g})")
    lines = [f"{arm} in regime **{escaped(spec['regime'])}**, replicate {spec['replicate']}"]
    if result is None:
        return f"{lines[0]}: training."
    lines[0] += f": **{outcome_text(result)}**."
    if result.get("message"):
        lines.append(code(result["message"]))
    return "\n\n".join(lines)


def outcome_text(result: Mapping[str, Any]) -> str:
    """A run's end in words: the outcome, with its reason and step where it failed."""
    reason, step = result.get("reason"), result.get("failed_at_step")
    details = [reason] if reason else []
    details += [f"step {step}"] if isinstance(step, int) else []
    return escaped(result.get("outcome")) + (f" ({escaped(', '.join(details))})" if details else "")


def describe_study(study: Mapping[str, Any], arms: Iterable[Mapping[str, Any]] = ()) -> str:
    """The readable note of a study, in Markdown: what is compared, and the failures once they are known."""
    lines = [f"**{escaped(study.get('title') or 'Stability shootout')}**", ""]
    for regime in study.get("regimes", ()):
        description = escaped(regime.get("description") or "no description")
        lines.append(f"- regime **{escaped(regime['name'])}**: {description}")
    if study.get("command"):
        lines += ["", code(study["command"])]
    rows = [_arm_row(arm) for arm in arms]
    if rows:
        head = ["condition", "arm", "runs", "failed", "P(fail)", "95 % interval"]
        lines += ["", f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *rows, "", "See `report.html` below."]
    return "\n".join(lines)


def escaped(value: Any) -> str:
    """Text for Markdown, also within a table: one line, and nothing in it is taken for markup.

    >>> escaped("a|b <i> `c`\\nd")
    'a\\\\|b \\\\<i\\\\> \\\\`c\\\\` d'
    """
    text = " ".join(str(value).split())
    for character in "\\`*[]<>|#":
        text = text.replace(character, f"\\{character}")
    return text


def code(value: Any) -> str:
    """Text as code for Markdown, on one line.

    >>> code("python -c '`<b>`'\\n\\n")
    "`python -c ''<b>''`"
    """
    return f"`{' '.join(str(value).replace('`', chr(39)).split())}`"


def _arm_row(arm: Mapping[str, Any]) -> str:
    interval = f"{_number(arm.get('p_fail_low'))} to {_number(arm.get('p_fail_high'))}"
    names = [arm.get("condition") or arm.get("regime"), arm.get("label") or arm.get("algorithm")]
    cells = [*names, arm.get("n"), arm.get("n_failed"), _number(arm.get("p_fail"))]
    return f"| {' | '.join(escaped(cell) for cell in cells)} | {interval} |"


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else "unknown"
