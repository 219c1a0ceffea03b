"""The page that MLflow shows of a study, in a real browser: the arms as groups, our charts, nothing else open."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

from study.run_metrics import arm_name
from study.summaries import summarise
from study.table import collect
from study.tracker import Tracker
from study.tracking_notes import study_artifacts
from study.tracking_view import SECTIONS

pytestmark = [
    # from inside alembic and MLflow
    pytest.mark.filterwarnings("ignore:.*path_separator.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
COUNTS = {"control": {"none": (2, 0, 0), "agc": (2, 0, 0)}, "overload": {"none": (0, 0, 2), "agc": (2, 0, 0)}}
PATIENCE_MS = 90_000


@pytest.fixture(scope="module")
def sent(server: Any, tmp_path_factory: pytest.TempPathFactory, write_study_folder: Any) -> tuple[str, list[str]]:
    """Where the study says that it can be seen, and its arms."""
    out = write_study_folder(tmp_path_factory.mktemp("sent"), COUNTS, steps=30, reconstruction=False)
    arms = [dataclasses.asdict(arm) for arm in summarise(collect(out))]
    tracker = Tracker(server.uri, "stability-shootout", out)
    where = tracker.open_study(json.loads((out / "study.json").read_text())).where
    assert all(tracker.ship(folder) for folder in (out / "runs").iterdir())
    assert tracker.finish_study("finished", arms, study_artifacts(out))
    tracker.close()
    return where, [arm_name(arm) for arm in arms]


@pytest.fixture(scope="module")
def page(browser: Any, sent: tuple[str, list[str]]) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1700, "height": 3000})
    page.set_default_timeout(PATIENCE_MS)
    page.goto(sent[0])
    page.get_by_text(f"Group: {sent[1][0]}", exact=True).wait_for()
    yield page
    page.close()


def test_runs_are_grouped_into_arms(page: Any, sent: tuple[str, list[str]]) -> None:
    groups = page.get_by_text("Group: ", exact=False).all_inner_texts()
    assert {f"Group: {arm}" for arm in sent[1]} <= set(groups)
    assert not page.get_by_text("overload/agc/0", exact=True).is_visible(), "the arms' runs are folded away"


def test_our_charts_are_there_with_a_line_for_every_arm(page: Any, sent: tuple[str, list[str]]) -> None:
    for section in SECTIONS:
        assert page.get_by_text(section, exact=True).first.is_visible()
    for chart in (*SECTIONS["Failures"], *SECTIONS["Loss"]):
        page.get_by_text(chart.metric, exact=True).first.wait_for()
    for arm in sent[1]:
        page.get_by_text(f"{arm} (train/loss)", exact=True).first.wait_for(state="attached")


def test_what_our_charts_do_not_show_is_folded_away(page: Any) -> None:
    assert page.get_by_text("arm/overload/agc", exact=True).is_visible()
    buttons = page.get_by_text("Add chart", exact=True).all()
    assert sum(button.is_visible() for button in buttons) == len(SECTIONS), "only an open section shows this button"
