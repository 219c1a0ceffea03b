"""The documentation's links lead somewhere, and its commands are those that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ptycho.config.settings import chosen
from study.settings import RunSettings, StudyConfig
from study.shootout import build_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not missing


def shootout_commands() -> list[str]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.startswith("python -m study.shootout")]
        found += [line.partition("#")[0].strip() for line in lines]
        found += re.findall(r"`python -m study\.shootout([^`]*)`", text)
    return sorted({command.removeprefix("python -m study.shootout").strip() for command in found})


@pytest.mark.parametrize("command", shootout_commands())
def test_every_shootout_command_of_the_documentation_is_understood(command: str) -> None:
    namespace = build_parser().parse_args(shlex.split(command))
    StudyConfig(**chosen(namespace, StudyConfig))
    chosen(namespace, RunSettings)


def test_every_preset_is_named_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for preset in ("frontier", "depth", "thresholds", "quality", "real"):
        assert f"--preset {preset}" in text
