"""Names and messages that come from outside, made to break the report or to run in it: they arrive as text."""

from __future__ import annotations

import html.parser
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from study.report import write_report
from study.tracking_notes import describe_run, describe_study

EVIL = "</td><script>steal()</script>\"onload='x' a|b\n\n# `head` [l](javascript:x) ![i](x) {{ 7*7 }} &amp;"
SHOWN = " ".join(EVIL.split())
SAFE = "plain"
COUNTS = {"none": (1, 0, 0), "agc": (0, 0, 1)}
MARKUP = {"html_inline", "html_block", "link_open", "image", "heading_open"}


class Structure(html.parser.HTMLParser):
    """How often a page has each tag with its attributes' names, and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: Counter[tuple[str, ...]] = Counter()
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[(tag, *(name for name, _ in attributes))] += 1

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def study_named(word: str, out: Path, write_study_folder: Any) -> Path:
    """A study's report with a word in every place where a study has words of somebody else's."""
    named = dict.fromkeys(("git_commit", "study_version", "dataset_digest", "architecture", "optimizer"), word)
    counts = {word: {"none": (1, 0, 0), f"agc {word}": (0, 0, 1)}}
    realised = {"data": f"/scans/{word}.npz", "version_numpy": word, word: word}
    study = dict.fromkeys(("title", "command", "preset", "study_id", "created", "study_version"), word)
    options = {"reason": word, "message": f"error: {word}", "realised": realised, "steps": 24, "side": 12}
    write_study_folder(out, counts, study=study, **named, **options)
    written = json.loads((out / "study.json").read_text())
    (out / "study.json").write_text(json.dumps(written | {"regimes": [{"name": word, "description": word}]}))
    return write_report(out)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, write_study_folder: Any) -> tuple[Path, Path]:
    """The same study twice, with hostile words and with a plain one."""
    made = [study_named(word, tmp_path_factory.mktemp("report"), write_study_folder) for word in (EVIL, SAFE)]
    return made[0], made[1]


def markup(text: str) -> Counter[str]:
    """What kinds of things a Markdown text holds, as a reader of it sees them."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    return Counter(inner.type for token in tokens for inner in [token, *(token.children or [])])


def test_the_page_has_the_tags_of_one_with_plain_names(reports: tuple[Path, Path]) -> None:
    hostile, plain = map(Structure, reports)
    assert hostile.tags == plain.tags
    assert not [tag for tag in hostile.tags if tag[0] == "script" or {"onload", "onerror"} & set(tag)]
    text = " ".join(hostile.text.split())
    for place in (SHOWN, f"/scans/{SHOWN}.npz", f"agc {SHOWN}"):
        assert place in text


def test_the_markdown_has_the_marks_of_one_with_plain_names(reports: tuple[Path, Path]) -> None:
    hostile, plain = (markup(page.with_suffix(".md").read_text(encoding="utf-8")) for page in reports)
    assert {kind: hostile[kind] for kind in MARKUP} == {kind: plain[kind] for kind in MARKUP}
    cells = ("tr_open", "td_open", "th_open", "table_open")
    assert [hostile[kind] for kind in cells] == [plain[kind] for kind in cells]
    assert "steal()" in reports[0].with_suffix(".md").read_text(encoding="utf-8")


def test_files_are_named_without_them(reports: tuple[Path, Path]) -> None:
    for path in (reports[0].parent / "figures").iterdir():
        assert re.fullmatch(r"[\w.-]+", path.name)


def test_the_notes_in_mlflow_have_the_marks_of_plain_ones() -> None:
    def notes(word: str) -> Counter[str]:
        spec = {"algorithm": word, "regime": word, "replicate": 0, "threshold": 0.1}
        run = describe_run(spec, {"outcome": "error", "reason": word, "message": word})
        arms = [{"condition": word, "label": word, "n": 1, "n_failed": 1, "p_fail": 1.0}]
        study = {"title": word, "regimes": [{"name": word, "description": word}], "command": word}
        return markup(run) + markup(describe_study(study, arms))

    hostile, plain = notes(EVIL), notes(SAFE)
    kinds = MARKUP | {"tr_open", "td_open", "code_inline", "strong_open"}
    assert {kind: hostile[kind] for kind in kinds} == {kind: plain[kind] for kind in kinds}


def test_attempts_that_were_killed_are_counted(tmp_path: Path, write_study_folder: Any) -> None:
    out = write_study_folder(tmp_path, {"overload": COUNTS}, steps=24, side=12)
    page = write_report(out)
    assert "killed from outside" not in page.read_text(encoding="utf-8")
    for number, told in ((1, "1 attempt was killed"), (2, "2 attempts were killed")):
        (out / f"attempts/x-{number}").mkdir(parents=True)
        (out / f"attempts/x-{number}/result.json").write_text("{}")
        write_report(out)
        assert all(told in page.with_suffix(end).read_text(encoding="utf-8") for end in (".html", ".md"))
        assert json.loads((out / "summary.json").read_text())["attempts"] == number
