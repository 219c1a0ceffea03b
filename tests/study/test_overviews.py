"""A search is drawn once, over what was searched, and its conditions are not drawn one by one."""

from __future__ import annotations

import pytest

from study import figures
from study.overviews import search_data, search_overview
from study.report import write_report
from study.summaries import summarise
from study.table import collect

FAST = dict(steps=24, side=12, reconstruction=False)


@pytest.fixture
def rates(tmp_path, write_study_json, write_run):
    """A search over three rates: ``none`` fails from 1 on, ``agc`` from 10 on."""
    write_study_json(tmp_path, ["search"], ["none", "agc"], searched=["search"])
    for algorithm, limit in (("none", 0.5), ("agc", 5.0)):
        for rate in (10.0, 0.1, 1.0):
            for k in range(2):
                outcome = "failed" if rate > limit else "ok"
                options = dict(learning_rate=rate, replicate=k, outcome=outcome, optimizer="sgd", **FAST)
                write_run(tmp_path, regime="search", algorithm=algorithm, **options)
    return tmp_path


def test_a_search_of_rates_is_one_line_an_arm_in_rising_order(rates):
    data = search_data(summarise(collect(rates)), {"search"})
    lines = {line: part for line, part in data.groupby("line", sort=False)}
    assert list(lines) == ["none", "agc"]
    assert all(part["x"].tolist() == [0.1, 1.0, 10.0] for part in lines.values())
    assert lines["none"]["share_ok"].tolist() == [1, 0, 0]
    assert lines["agc"]["share_ok"].tolist() == [1, 1, 0]
    assert set(data["axis"]) == {"learning_rate"}
    assert not data["chosen"].any()


def test_the_conditions_of_a_search_are_not_drawn_one_by_one(rates):
    tables = collect(rates)
    drawn = [drawing.name for drawing in figures.draw_all(tables, summarise(tables))]
    assert drawn == ["frontier", "search"]
    page = write_report(rates).read_text()
    assert "Every rate or threshold that was tried: 3 conditions" in page
    assert "Not drawn, but in the tables" not in page


def test_the_chosen_threshold_is_marked_and_a_regime_that_is_judged_keeps_its_figures(
    tmp_path, write_study_json, write_run
):
    write_study_json(tmp_path, ["overload-tuning", "overload"], ["none", "agc"], searched=["overload-tuning"])
    for threshold in (0.001, 0.01, 0.1):
        tuned = dict(threshold=threshold, suffix=str(threshold), outcome="ok", replicate=10_000, **FAST)
        write_run(tmp_path, regime="overload-tuning", algorithm="agc", **tuned)
    write_run(tmp_path, regime="overload-tuning", algorithm="none", replicate=10_000, outcome="failed", threshold=None,
              **FAST)  # fmt: skip
    for algorithm, threshold in (("none", None), ("agc", 0.01)):
        write_run(tmp_path, regime="overload", algorithm=algorithm, replicate=0, outcome="ok", threshold=threshold,
                  **FAST)  # fmt: skip
    tables = collect(tmp_path)
    arms = summarise(tables)
    data = search_data(arms, {"overload-tuning"})
    assert data["axis"].unique().tolist() == ["threshold"]
    assert data.loc[data["chosen"] & (data["line"] == "agc"), "x"].tolist() == [0.01]
    overview = search_overview(arms, {"overload-tuning"})
    assert "chosen for the verdict" in overview.caption
    share = overview.figure.axes[0]
    across, marked = share.lines[0], [line for line in share.lines if line.get_markersize() == 9]
    assert across.get_ydata() == [0.0, 0.0], "without a threshold there is no place on the axis"
    assert [tuple(line.get_xdata()) for line in marked] == [(0.01,)]
    assert overview.figure.axes[1].lines[0].get_ydata() == [1.0, 1.0], "a failure is as bad as the constant object"
    drawn = {drawing.name for drawing in figures.draw_all(tables, arms)}
    assert {"search", "failure_probability", "loss_01_overload"} <= drawn
    assert not [name for name in drawn if "tuning" in name]


def test_without_a_search_there_is_no_overview(tmp_path, write_study_folder):
    write_study_folder(tmp_path, {"overload": {"none": (1, 0, 0)}}, **FAST)
    assert search_overview(summarise(collect(tmp_path)), set()) is None


def test_depths_and_sizes_come_in_rising_order(tmp_path, write_study_json, write_run):
    write_study_json(tmp_path, ["overload"], ["none"])
    for depth in (10, 6, 2):
        for size in (128, 64):
            options = dict(fno_blocks=depth, realised={"N": size}, suffix=str(size), outcome="ok", replicate=0, **FAST)
            write_run(tmp_path, regime="overload", algorithm="none", **options)
    conditions = [arm.condition for arm in summarise(collect(tmp_path))]
    assert conditions == [f"overload · {size} px · {depth} blocks" for size in (64, 128) for depth in (2, 6, 10)]
