"""From step records to metric points: means, maxima, finite values, the same points however they are read."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name

from study.run_metrics import (
    EVALS,
    FINAL,
    MEANS,
    arm_metrics,
    arm_name,
    eval_points,
    final_metrics,
    first_finite,
    window_points,
    windows,
)
from study.run_trace import Record, blocks, read_records, restore_trace, write_trace
from study.summaries import summarise
from study.table import collect
from study.tracking_view import SECTIONS, read_view_state, view_state

numbers = st.one_of(st.floats(), st.just(None), st.just("x"))


def records_of(losses: Sequence[Any], **others: Sequence[Any]) -> list[Record]:
    rows = [{"step": i, "loss": loss, **{k: v[i] for k, v in others.items()}} for i, loss in enumerate(losses)]
    return [Record(values=row, end=i + 1) for i, row in enumerate(rows)]


def points_of(records: list[Record], *, final: bool = True) -> dict[str, dict[int, float]]:
    first, found = first_finite(records), {}
    for window in windows(records, final=final):
        for point in window_points(window, first):
            found.setdefault(point.key, {})[point.step] = point.value
    return found


def test_windows_of_ten_steps_are_averaged() -> None:
    losses = np.random.default_rng(0).uniform(0.5, 1.5, 25)
    points = points_of(records_of(losses.tolist()))
    expected = {9: losses[:10].mean(), 19: losses[10:20].mean(), 24: losses[20:].mean()}
    assert points["train/loss"] == pytest.approx(expected)
    assert points["divergence/loss_ratio"] == pytest.approx({k: v / losses[0] for k, v in expected.items()})


def test_a_spike_of_one_step_survives_thinning() -> None:
    norms = [1.0] * 20
    norms[13] = 500.0
    points = points_of(records_of([1.0] * 20, grad_norm_preclip=norms))
    assert points["grad_norm/preclip_max"][19] == 500.0
    assert points["grad_norm/preclip"][19] == pytest.approx(509 / 10)


def test_an_unfinished_window_waits_for_its_end() -> None:
    records = records_of([1.0] * 17)
    assert list(points_of(records, final=False)["train/loss"]) == [9]
    assert list(points_of(records, final=True)["train/loss"]) == [9, 16]


def test_losses_are_held_within_a_thousand_times_the_first() -> None:
    points = points_of(records_of([2.0, math.nan, math.inf, 1e30] + [2.0] * 6))
    assert points["train/loss_max"][9] == 2000.0
    assert points["train/loss"][9] == pytest.approx((7 * 2.0 + 2 * 2000.0) / 9)


def test_a_window_without_a_finite_value_has_no_point() -> None:
    assert "train/loss" not in points_of(records_of([math.nan] * 10))
    assert list(points_of(records_of([1.0] * 10 + [math.nan] * 10))["train/loss"]) == [9]


@given(st.lists(numbers, max_size=40), st.lists(numbers, min_size=40, max_size=40))
def test_every_point_is_finite(losses: list[Any], norms: list[Any]) -> None:
    for series in points_of(records_of(losses, grad_norm_preclip=norms, learning_rate=norms)).values():
        assert all(math.isfinite(value) for value in series.values())


@given(st.lists(numbers, max_size=5))
def test_every_validation_point_is_finite(losses: list[Any]) -> None:
    records = [Record(values={"step": i, "val_loss": v, "amp_spread": v}, end=i) for i, v in enumerate(losses)]
    assert all(math.isfinite(p.value) for r in records for p in eval_points(r, first_finite(records)))


@given(st.lists(st.integers(1, 57), max_size=4))
def test_points_do_not_depend_on_when_they_were_read(cuts: list[int]) -> None:
    losses = np.random.default_rng(1).uniform(0.5, 1.5, 57).tolist()
    records, first, got, done = records_of(losses), {"loss": losses[0]}, [], 0
    for cut in [*sorted(cuts), 57]:
        for window in windows(records[done:cut], final=cut == 57):
            got += window_points(window, first)
            done = window[-1].end
    assert got == [p for w in windows(records, final=True) for p in window_points(w, first)]


def test_final_metrics_are_finite_and_named() -> None:
    result = dict(outcome="failed", val_loss_final=math.nan, amp_ssim=0.5, grad_norm_median=2.0, grad_norm_p99=50.0)
    metrics = final_metrics(result | dict(failed_at_step=None, spikes=3, steps=40))
    assert metrics == {
        "final/amp_ssim": 0.5, "final/steps": 40.0, "divergence/spikes": 3.0, "divergence/failed": 1.0,
        "divergence/grad_norm_median": 2.0, "divergence/grad_norm_p99": 50.0,
        "divergence/grad_norm_p99_over_median": 25.0,
    }  # fmt: skip
    assert "divergence/failed" not in final_metrics({"outcome": "oom"})


def test_arm_metrics_pool_the_regimes() -> None:
    arm = dict(algorithm="agc", p_fail=0.25, rmst=math.inf, verdict="gold", n=4, n_failed=1)
    arm["made_up"] = 1.0
    metrics = arm_metrics([arm | dict(regime="a"), arm | dict(regime="b (50%)", n_failed=3)])
    assert metrics["arm/agc/p_fail"] == 0.5
    assert metrics["arm/a/agc/p_fail"] == 0.25
    assert metrics["arm/b _50__/agc/n_failed"] == 3
    assert not any(key.endswith(("rmst", "verdict", "made_up")) for key in metrics)


def test_arms_that_differ_in_anything_keep_numbers_of_their_own(
    tmp_path: Path, write_run: Callable[..., Any], write_study_json: Callable[..., None]
) -> None:
    write_study_json(tmp_path, ["frontier"], ["none", "agc"])
    varied = itertools.product((0.1, 1.0), ("hybrid", "fno"), (0.01, 0.1))
    for rate, architecture, threshold in varied:
        write_run(
            tmp_path, regime="frontier", algorithm="agc", replicate=0, outcome="ok", steps=10, reconstruction=False,
            learning_rate=rate, architecture=architecture, threshold=threshold, suffix=f"{architecture}{threshold}",
        )  # fmt: skip
    arms = [dataclasses.asdict(arm) for arm in summarise(collect(tmp_path))]
    metrics = arm_metrics(arms)
    names = [name.removesuffix("/n_ok") for name in metrics if name.endswith("/n_ok")]
    assert len(names) == len(arms) == 8
    assert "arm/frontier/fno/rate 0.1/agc 0.01" in names
    assert "arm/agc 0.1/p_fail" in metrics
    for name in metrics:
        _validate_metric_name(name)


def test_only_whole_lines_with_a_step_are_read(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text('{"step": 0}\n{"loss": 1}\nrubbish\n[1]\n{"step": 1, "loss": NaN}\n{"step": 2')
    records = read_records(path)
    assert [r.values["step"] for r in records] == [0, 1]
    with path.open("a") as stream:
        stream.write("}\n")
    assert [r.values["step"] for r in read_records(path, records[-1].end)] == [2]
    assert read_records(tmp_path / "missing") == []


def test_a_trace_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": v} for i, v in enumerate([1.5, math.nan, math.inf, -math.inf])]
    steps = tmp_path / "steps.jsonl"
    steps.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace = write_trace(steps, tmp_path / "steps.parquet")
    assert trace is not None
    steps.unlink()
    restore_trace(trace, steps)
    assert repr([dict(r.values) for block in blocks(steps) for r in block]) == repr(rows)
    assert not trace.exists()


def test_the_view_shows_metrics_that_are_sent() -> None:
    names = [*(name for names in FINAL.values() for name in names), "val_loss_final"]
    result = dict.fromkeys(names, 1.0) | {"outcome": "ok"}
    series = {name: [1.0] * 10 for name in MEANS if name != "loss"}
    sent = set(points_of(records_of([1.0] * 10, **series))) | set(EVALS.values()) | set(final_metrics(result))
    shown = [chart.metric for charts in SECTIONS.values() for chart in charts]
    assert set(shown) <= sent
    assert len(set(shown)) == len(shown)


def test_the_view_fits_into_a_tag() -> None:
    few = json.loads(view_state("0" * 32, ["control/none"]))
    assert few["groupsExpanded"] == {"tag.arm.control/none": False}
    names = [f"regime {i} · rate 0.{i}/{algorithm}" for i in range(20) for algorithm in ("none", "agc 0.01")]
    many = view_state("0" * 32, names)
    assert len(many) <= 5000 < len(json.dumps(read_view_state(many)))
    assert set(read_view_state(many)["groupsExpanded"]) == {f"tag.arm.{name}" for name in names}


def test_the_view_folds_every_section_that_is_not_its_own() -> None:
    arms = [dict(regime="a", algorithm=name, n=2, n_failed=1) for name in ("none", "agc")]
    state = json.loads(view_state("0" * 32, [arm_name(arm) for arm in arms]))
    shown = {section["name"]: section["display"] for section in state["compareRunSections"]}
    assert {name for name in shown if shown[name]} == set(SECTIONS)
    assert {key.rpartition("/")[0] for key in arm_metrics(arms)} < set(shown)
