"""Every benchmark runs at toy size and says what was held against what."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import clipping, harness, limits, scaling, step
from benchmarks.command import Effort, run_benchmark
from benchmarks.tables import Line, Table, goals
from benchmarks.timing import Measured, in_turns, ratio

ROOT = Path(__file__).resolve().parents[2]
TOY = Effort(toy=True)


@pytest.fixture(autouse=True)
def usual_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == threads


def cells(table: Table) -> dict[str, str]:
    return {row[0]: row[1] for row in table.rows}


def test_the_clipping_benchmark_has_its_two_tables() -> None:
    contenders, wanted = clipping.measure(TOY)
    assert contenders.title == "Clipping, small_200: 200 tensors, 56,400 parameters, cpu, 2 rounds"
    assert {"plain agc loop", "clip_grad_norm_ foreach", "floor", "ours agc_unit", "ours skip"} <= cells(
        contenders
    ).keys()
    assert cells(wanted)["ours agc against clip_grad_norm_ foreach: part of its time"] == "at most 0.5"
    assert cells(wanted)["ours agc, layers too against plain agc + norms logged: times faster"] == "at least 7"


def test_the_step_benchmark_holds_each_network_against_the_reference() -> None:
    (table,) = step.measure(TOY)
    assert [row[1] for row in table.rows] == ["at least 1.35", "at least 1.3", "at least 2.5", "", "at least 2.5", ""]


def test_the_limits_count_operations_and_bytes() -> None:
    (table,) = limits.measure(TOY)
    name, *numbers, explained = table.rows[0]
    assert name == "toy"
    assert all(float(number) > 0 for number in numbers)
    assert explained.endswith("%")


def test_the_byte_counter_leaves_views_out() -> None:
    x = torch.zeros(8)
    with limits.ByteCounter() as moved:
        x.view(2, 4).t()
        assert moved.total == 0
        x + 1
        assert moved.total == 64
        x.add_(1)
        assert moved.total > 64


def test_the_harness_times_each_part_alone_and_all_together() -> None:
    times = harness.per_step(harness.TOY, rounds=2, steps=3, together=True)
    lines = {line.what: line for line in harness.lines_of("toy", times, mlflow_ms=0.1, goal=5)}
    parts = ["telemetry alone", "Trainer with telemetry that goes nowhere", "MLflow alone", "all on"]
    parts.append("8 runs together, telemetry and MLflow")
    assert list(lines) == [f"toy: {part}" for part in parts]
    assert [line.goal for line in lines.values()] == [None, None, None, 5, 5]
    assert lines["toy: MLflow alone"].reached.median > 0


def test_the_harness_holds_a_study_against_its_trainings() -> None:
    seen = harness.Watched(wall_s=30.0, first_steps_s=8.0, last_result_s=19.0, worker_mib=500.0)
    lines = [line.cells() for line in harness.study_lines(seen, bare_s=20.0)]
    assert [cells[1:3] for cells in lines if cells[0] != "--help"] == [
        ["", "3"],
        ["at most 1.1", "1.1"],
        ["at most 10 s", "8 s"],
        ["at most 700 MiB", "500 MiB"],
    ]


def test_the_scaling_benchmark_measures_in_processes_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "scaling.png"
    command = [sys.executable, "-m", "benchmarks.scaling", "--toy", "--figure", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.count("| modes |") == 2 + 1
    assert done.stdout.count("| members of an ensemble |") == 2 + 1
    assert path.exists()


def test_an_exponent_is_the_slope_of_the_logarithms() -> None:
    points = [scaling.Point(n, 3 * n**2, 5) for n in (1, 2, 8)]
    assert scaling.exponent(points, lambda p: p.step_ms) == pytest.approx(2)
    assert scaling.exponent(points, lambda p: p.peak_mib) == pytest.approx(0)


def clock_of(values: Iterator[float]) -> Callable[[Callable[[], object]], float]:
    return lambda run: (run(), next(values))[1]


def test_every_contender_runs_once_a_round_and_the_warm_up_does_not_count() -> None:
    ran = []
    sides = {name: lambda name=name: ran.append(name) for name in "ab"}
    times = in_turns(sides, 3, clock=clock_of(itertools.count(1.0)), warm_up=1)  # type: ignore[arg-type]
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    assert sorted(times["a"] + times["b"]) == [3, 4, 5, 6, 7, 8]
    assert all(set(ran[k : k + 2]) == {"a", "b"} for k in range(0, 8, 2))


def test_a_ratio_is_taken_within_each_round() -> None:
    assert ratio({"a": [2, 20, 200], "b": [1, 10, 100]}, "a", "b") == Measured(2, 0)


def test_a_goal_is_met_or_missed() -> None:
    lines = [
        Line(what="fast", reached=Measured(2.0, 0.1), goal=1.5),
        Line(what="slow", reached=Measured(2.0, 0.1), goal=1.5, at_most=True, unit="s"),
        Line(what="free", reached=Measured(2.0, 0.1)),
    ]
    assert goals("t", lines).rows == [
        ["fast", "at least 1.5", "2", "10%", "met"],
        ["slow", "at most 1.5 s", "2 s", "10%", "missed"],
        ["free", "", "2", "10%", ""],
    ]


def test_tables_are_printed_and_kept_as_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tables.md"
    table = Table(title="t", columns=("a", "b"), rows=[["1", "2"]], note="n")
    assert run_benchmark(lambda effort: [table, table], None, ["--markdown", str(path)]) == 0
    one = "## t\n\nn\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert path.read_text(encoding="utf-8") == f"{one}\n{one}"
    assert capsys.readouterr().out == f"\n{one}\n{one}"
