"""The tidy tables against the files that they are read from."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from ptycho.errors import InputError
from study.attempts import record_loss
from study.divergence import Outcome
from study.presets import make_design
from study.settings import split_settings
from study.step_table import EVAL_COLUMNS, STEP_COLUMNS
from study.summaries import summarise
from study.table import RUN_COLUMNS, collect, replacing

TWO_ARMS = {"overload": {"none": (0, 1, 2), "agc": (3, 0, 0)}}
INTERFACE = (
    "run_id, regime, algorithm, threshold, architecture, optimizer, learning_rate, replicate, seed_init, seed_order, "
    "seed_data, outcome, reason, failed_at_step, steps, wall_s, val_loss_final, val_loss_best, baseline_constant, "
    "baseline_mean_patch, baseline_oracle, amp_ssim, phase_ssim, amp_mae, phase_mae, frc50, grad_norm_median, "
    "grad_norm_p99, grad_norm_max, clipped_fraction, stall_ratio, update_ratio_p99, spikes, ensemble_size, "
    "n_parameters, dataset_digest, git_commit, study_version"
)


def test_columns_come_in_the_order_that_users_rely_on(tmp_path, write_study_folder):
    collect(write_study_folder(tmp_path, TWO_ARMS))
    runs = pd.read_csv(tmp_path / "runs.csv")
    assert list(runs.columns)[: len(RUN_COLUMNS)] == INTERFACE.split(", ") == list(RUN_COLUMNS)
    assert "gradient_clip_algorithm" in runs.columns[len(RUN_COLUMNS) :], "a setting that varies is a column of its own"
    assert "batch_size" not in runs.columns
    assert list(pd.read_parquet(tmp_path / "steps.parquet").columns) == list(STEP_COLUMNS)


def test_rows_follow_the_design_and_not_the_file_system(tmp_path, write_study_json, write_run):
    write_study_json(tmp_path, ["z", "a"], ["none", "agc"])
    for regime, algorithm, replicate in [("a", "agc", 0), ("z", "agc", 10), ("z", "agc", 9), ("z", "none", 1)]:
        write_run(tmp_path, regime=regime, algorithm=algorithm, replicate=replicate, outcome="ok")
    runs = collect(tmp_path).runs
    found = list(zip(runs["regime"], runs["algorithm"], runs["replicate"], strict=True))
    assert found == [("z", "none", 1), ("z", "agc", 9), ("z", "agc", 10), ("a", "agc", 0)]


def test_numbers_survive_the_round_trip_bit_for_bit(tmp_path, write_study_folder):
    tables = collect(write_study_folder(tmp_path, TWO_ARMS))
    row = tables.runs.iloc[0]
    result = json.loads((tmp_path / "runs" / row["run_id"] / "result.json").read_text())
    back = pd.read_csv(tmp_path / "runs.csv", float_precision="round_trip", dtype={"seed_init": object}).iloc[0]
    for key in ("val_loss_final", "wall_s", "failed_at_step", "grad_norm_p99"):
        assert row[key] == result[key] == back[key]
    assert int(back["seed_init"]) == result["seed_init"] > 2**62
    lines = (tmp_path / "runs" / row["run_id"] / "steps.jsonl").read_text().splitlines()
    steps = tables.steps[tables.steps["run_id"] == row["run_id"]]
    assert steps["loss"].tolist() == [json.loads(line)["loss"] for line in lines]
    assert list(tables.evals.columns) == list(EVAL_COLUMNS)
    assert tables.settings["batch_size"] == 4


def test_collecting_twice_gives_the_same_bytes(tmp_path, write_study_folder):
    write_study_folder(tmp_path, TWO_ARMS)
    first = [collect(tmp_path) and (tmp_path / name).read_bytes() for name in ("runs.csv", "steps.parquet")]
    second = [collect(tmp_path) and (tmp_path / name).read_bytes() for name in ("runs.csv", "steps.parquet")]
    assert first == second
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def test_nan_and_infinity_in_a_trace_are_kept(tmp_path, write_study_folder):
    write_study_folder(tmp_path, {"overload": {"none": (1, 0, 0)}})
    (trace,) = tmp_path.glob("runs/*/steps.jsonl")
    trace.write_text('{"step": 1, "loss": NaN, "grad_norm_preclip": Infinity}\n{"step": 2, "loss": null}\n')
    steps = collect(tmp_path).steps
    assert math.isnan(steps["loss"][0])
    assert np.isposinf(steps["grad_norm_preclip"][0])
    assert steps["loss"].isna().all()


def test_a_line_that_a_killed_run_left_unfinished_is_left_out(tmp_path, write_study_folder):
    write_study_folder(tmp_path, {"overload": {"none": (1, 0, 0)}})
    (trace,) = tmp_path.glob("runs/*/steps.jsonl")
    whole = trace.read_text()
    trace.write_text(whole + '{"step": 61, "lo')
    assert len(collect(tmp_path).steps) == 60
    trace.write_text('{"step": 0, "lo\n' + whole)
    with pytest.raises(InputError, match=r"steps\.jsonl, line 1: .* is no JSON"):
        collect(tmp_path)


def test_a_run_without_a_result_is_named_and_not_counted(tmp_path, write_study_folder):
    write_study_folder(tmp_path, TWO_ARMS)
    (tmp_path / "runs" / "half").mkdir()
    (tmp_path / "runs" / "half" / "spec.json").write_text("{}")
    tables = collect(tmp_path)
    assert tables.unfinished == ("half",)
    assert len(tables.runs) == 6


def test_runs_that_are_not_the_studys_own_are_not_read(tmp_path, write_study_folder, write_run, write_study_json):
    write_study_folder(tmp_path, {"overload": {"none": (1, 0, 0)}})
    (own,) = (p.name for p in (tmp_path / "runs").iterdir())
    write_run(tmp_path, regime="overload", algorithm="none", replicate=0, outcome="ok", suffix="earlier")
    write_study_json(tmp_path, ["overload"], ["none"], runs=[own])
    assert collect(tmp_path).runs["run_id"].tolist() == [own]
    write_study_json(tmp_path, ["overload"], ["none"], runs=own)
    with pytest.raises(InputError, match=r"runs is .*; allowed: a list of the runs' names"):
        collect(tmp_path)


def test_an_empty_study_gives_empty_tables(tmp_path, write_study_json):
    write_study_json(tmp_path, [], [])
    tables = collect(tmp_path)
    assert len(tables.runs) == len(tables.steps) == len(tables.evals) == 0
    assert pd.read_csv(tmp_path / "runs.csv").columns.tolist() == INTERFACE.split(", ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome": "fine"}, r"result\.json: outcome: unknown value 'fine'; known: ok, plateau"),
        ({"regime": None}, r"result\.json: regime is missing"),
        ({"steps": "many"}, r"result\.json: steps is 'many'; allowed: a number"),
        ({"run_id": "other"}, r"result\.json: run_id is 'other'; allowed: the name of its folder"),
    ],
)
def test_a_damaged_result_is_named(tmp_path, write_study_folder, change, message):
    write_study_folder(tmp_path, {"overload": {"none": (1, 0, 0)}})
    (path,) = tmp_path.glob("runs/*/result.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        collect(tmp_path)


def test_json_that_is_nested_too_deep_is_named(tmp_path):
    (tmp_path / "study.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"study\.json: cannot be read as JSON"):
        collect(tmp_path)


def test_a_truncated_result_and_a_folder_that_is_no_study_are_named(tmp_path, write_study_folder):
    with pytest.raises(InputError, match=r"no study\.json there"):
        collect(tmp_path)
    write_study_folder(tmp_path, {"overload": {"none": (1, 0, 0)}})
    (path,) = tmp_path.glob("runs/*/result.json")
    path.write_text(path.read_text()[:50])
    with pytest.raises(InputError, match=r"result\.json: cannot be read as JSON"):
        collect(tmp_path)
    (tmp_path / "study.json").write_text('{"regimes": ["control"], "algorithms": []}')
    with pytest.raises(InputError, match=r"regimes is \['control'\]; allowed: a list of entries"):
        collect(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")

    def write_half() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    assert target.read_text() == "old"
    blocked = tmp_path / "table.csv" / "inside.csv"
    with pytest.raises(InputError, match="cannot be written"), replacing(blocked) as temporary:
        temporary.write_text("x")


def test_a_run_that_died_early_does_not_unsettle_the_settings(tmp_path, write_study_folder):
    write_study_folder(tmp_path, TWO_ARMS)
    path = sorted(tmp_path.glob("runs/*/result.json"))[0]
    result = {**json.loads(path.read_text()), "outcome": "error"}
    del result["realised"]
    path.write_text(json.dumps(result))
    tables = collect(tmp_path)
    assert tables.settings["batch_size"] == 4
    assert tables.runs["gradient_clip_algorithm"].notna().all(), "taken from what was asked for"


def test_a_run_of_the_control_that_was_lost_stays_in_its_arm(tmp_path, write_study_folder):
    out = write_study_folder(tmp_path)
    first = next(path for path in sorted(out.glob("runs/control-none-*")) if path.name.endswith("-0"))
    before = json.loads((first / "result.json").read_text())
    config, overrides = split_settings({"preset": "default", "algo": ["none"], "regime": ["control"]})
    spec = make_design(config).specs(overrides)[0]
    lost = record_loss(tmp_path / "lost", spec, Outcome(word="oom"), 1.0, "")
    same = {name: before[name] for name in ("run_id", "architecture", "optimizer", "learning_rate")}
    (first / "result.json").write_text(json.dumps(lost | same))
    (arm,) = [arm for arm in summarise(collect(out)) if (arm.regime, arm.algorithm) == ("control", "none")]
    assert (arm.n, arm.n_lost) == (7, 1)
