"""Studies that go on in rounds: what each round calls for, and one that is trained, broken off and taken up again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from study.adaptive import BATCH, FIRST, mcnemar_sequential
from study.design import Design, Finished, RunSpec
from study.frontier import Point, next_rates
from study.presets import make_design
from study.rounds import FIRST_RATES
from study.settings import StudyConfig

Outcome = Callable[[RunSpec], str]
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # from inside MLflow


def design(preset: str, **choices: Any) -> Design:
    return make_design(StudyConfig(preset=preset, **choices))  # type: ignore[arg-type]


def play(study: Design, outcome: Outcome, loss: Callable[[RunSpec], float] = lambda _: 0.5) -> list[list[RunSpec]]:
    """The rounds of a study whose runs end as ``outcome`` says."""
    rounds: list[list[RunSpec]] = []
    finished: list[Finished] = []
    while specs := study.next_runs({}, finished):
        assert len(rounds) < 50, "the study does not end"
        rounds.append(specs)
        finished += [Finished(spec, outcome(spec), loss(spec)) for spec in specs]
    return rounds


def algorithm(spec: RunSpec) -> str:
    return spec.settings.gradient_clip_algorithm


def replicates(specs: list[RunSpec], name: str, regime: str | None = None) -> list[int]:
    return [s.settings.seed for s in specs if algorithm(s) == name and regime in (None, s.regime)]


def test_a_static_design_has_one_round():
    study = design("smoke")
    rounds = play(study, lambda _: "ok")
    assert [len(specs) for specs in rounds] == [2 * 3 * 2]
    assert rounds[0] == study.specs({})


def test_no_run_is_called_for_twice_and_nothing_but_results_decides():
    study = design("frontier", algo=("none", "agc"), seeds=6)

    def outcome(spec: RunSpec) -> str:
        return "failed" if spec.settings.learning_rate > (0.2 if algorithm(spec) == "none" else 2.0) else "plateau"

    rounds = play(study, outcome)
    called = [spec for specs in rounds for spec in specs]
    assert len(set(called)) == len(called)
    assert rounds == play(study, outcome)


def test_the_frontier_closes_in_on_each_algorithms_own_rate():
    limits = {"none": 0.2, "agc": 2.0}
    study = design("frontier", algo=tuple(limits))
    first, *later = play(study, lambda s: "failed" if s.settings.learning_rate > limits[algorithm(s)] else "plateau")
    grids = {name: {s.settings.learning_rate for s in first if algorithm(s) == name} for name in limits}
    assert grids["none"] == grids["agc"]
    for name, limit in limits.items():
        tried = {s.settings.learning_rate for specs in later for s in specs if algorithm(s) == name}
        assert tried
        assert all(limit / 3.2 < rate < limit * 3.2 for rate in tried)
        every = sorted(tried | grids[name])
        below, above = max(r for r in every if r <= limit), min(r for r in every if r > limit)
        assert above / below < 1.25
        for rate in tried:
            called = [s for specs in later for s in specs if algorithm(s) == name and s.settings.learning_rate == rate]
            assert [s.settings.seed for s in called] == list(study.replicates)


def test_the_frontier_begins_lower_under_adam():
    study = design("frontier", algo=("none",))
    rates = [
        {spec.settings.learning_rate for spec in study.next_runs({"optimizer": name}, [])} for name in ("sgd", "adam")
    ]
    assert max(rates[1]) < max(rates[0])


def test_thresholds_are_chosen_on_other_replicates_than_they_are_judged_on():
    study = design("thresholds", algo=("none", "agc", "value"), regime=("overload",))

    def outcome(spec: RunSpec) -> str:
        return "failed" if algorithm(spec) == "agc" and spec.settings.gradient_clip_val > 0.1 else "ok"

    def loss(spec: RunSpec) -> float:
        return abs(spec.settings.gradient_clip_val - {"agc": 1.0, "value": 2.5e-3}.get(algorithm(spec), 0.0))

    tuning, judging = play(study, outcome, loss)
    assert {spec.regime for spec in tuning} == {"overload-tuning"}
    assert {spec.regime for spec in judging} == {"overload"}
    assert not {spec.settings.seed for spec in tuning} & {spec.settings.seed for spec in judging}
    chosen = {(algorithm(spec), spec.settings.gradient_clip_val) for spec in judging}
    swept = {s.settings.gradient_clip_val for s in tuning if algorithm(s) == "agc"}
    best = max(threshold for threshold in swept if threshold <= 0.1)
    assert chosen == {("none", 0.0), ("agc", best), ("value", 0.00251)}
    assert sorted({spec.settings.seed for spec in judging}) == list(range(8))


def test_replicates_are_added_where_the_comparison_is_open():
    study = design("default", adaptive=True, regime=("overload",), algo=("none", "agc", "norm"))

    def outcome(spec: RunSpec) -> str:
        rescued = {"none": 0, "agc": 1, "norm": spec.settings.seed % 2}[algorithm(spec)]
        return "ok" if rescued else "failed"

    rounds = play(study, outcome)
    assert replicates(rounds[0], "agc") == list(range(FIRST))
    assert len(replicates(rounds[1], "agc")) == BATCH
    called = [spec for specs in rounds for spec in specs]
    n = {name: len(replicates(called, name)) for name in ("none", "agc", "norm")}
    assert FIRST < n["agc"] < n["norm"] < 24
    assert n["none"] == n["norm"], "the control is there for every pair, and no more"
    assert replicates(called, "norm") == list(range(n["norm"]))


def test_an_arm_that_will_show_nothing_is_given_up_and_conditions_are_apart():
    study = design("default", adaptive=True, regime=("control", "overload"), algo=("none", "agc"))

    def outcome(spec: RunSpec) -> str:
        return "failed" if (spec.regime, algorithm(spec)) == ("overload", "none") else "ok"

    called = [spec for specs in play(study, outcome) for spec in specs]
    assert len(replicates(called, "agc", "overload")) == 8
    assert len(replicates(called, "agc", "control")) < 16
    assert replicates(called, "none", "control") == replicates(called, "agc", "control")


def test_seeds_bound_an_adaptive_study():
    study = design("default", adaptive=True, regime=("overload",), algo=("none", "agc"), seeds=7, seed_offset=100)
    called = [s for specs in play(study, lambda s: "ok" if s.settings.seed % 2 else "failed") for s in specs]
    assert {spec.settings.seed for spec in called} <= set(range(100, 107))


def test_runs_lost_to_the_machine_decide_nothing():
    study = design("default", adaptive=True, regime=("overload",), algo=("none", "agc"))
    lost = play(study, lambda _: "killed")
    assert len(lost) >= 1
    assert sum(map(len, lost)) <= 2 * 24


# Trained


TOY = (
    *("--N", "16", "--object-size", "48", "--n-lines", "20", "--fno-width", "4", "--fno-modes", "3"),
    *("--fno-blocks", "2", "--max-steps", "10", "--eval-every", "5", "--validation-fraction", "0.2", "--workers", "1"),
)


@pytest.fixture(scope="module")
def shootout(call: Callable[..., Any], empty_store: Path) -> Callable[..., str]:
    """Run a study; what it says."""

    def run(out: Path, *arguments: str) -> str:
        store = shutil.copy(empty_store, f"{out}.db")
        done = call("shootout", *arguments, *TOY, "--out", str(out), cwd=out.parent, store=store)
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


def listed(out: Path) -> list[str]:
    return json.loads((out / "study.json").read_text(encoding="utf-8"))["runs"]


@pytest.fixture(scope="module")
def frontier(shootout: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frontier of two algorithms, trained at toy size with one replicate."""
    out = tmp_path_factory.mktemp("rounds") / "frontier"
    shootout(out, "--preset", "frontier", "--algo", "none", "--algo", "agc", "--seeds", "1")
    return out


def test_a_trained_frontier_went_on_after_its_first_round(frontier: Path):
    runs = pd.read_csv(frontier / "runs.csv")
    assert sorted(runs["run_id"]) == sorted(listed(frontier))
    assert len(runs) > 2 * 6
    for _, line in runs.groupby("algorithm"):
        assert set(FIRST_RATES["sgd"]) <= set(line["learning_rate"])
        points = [
            Point(r.learning_rate, 1, int(r.outcome == "failed"), int(r.outcome == "ok")) for r in line.itertuples()
        ]
        assert next_rates(points) == [], "the search went on until there was nothing left to try"
    summary = json.loads((frontier / "summary.json").read_text(encoding="utf-8"))
    assert summary["verdict"]["word"] == "frontier"
    assert [line["label"] for line in summary["frontier"]] == ["none", "agc"]


def test_what_was_broken_off_is_taken_up_where_it_was_left(
    shootout: Callable[..., str], frontier: Path, tmp_path: Path
):
    out = tmp_path / "again"
    shutil.copytree(frontier, out)
    whole = listed(out)
    for run_id in whole[-3:]:
        shutil.rmtree(out / "runs" / run_id)
    kept = {run_id: (out / "runs" / run_id / "result.json").stat().st_mtime_ns for run_id in whole[:-3]}
    said = shootout(out, "--preset", "frontier", "--algo", "none", "--algo", "agc", "--seeds", "1")
    assert "3/3 runs" in said
    assert listed(out) == whole
    assert kept == {run_id: (out / "runs" / run_id / "result.json").stat().st_mtime_ns for run_id in kept}


def test_a_start_that_comes_to_nothing_leaves_the_study_listed_as_it_was(
    call: Callable[..., Any], frontier: Path, new_store: Path, tmp_path: Path
):
    out = shutil.copytree(frontier, tmp_path / "again")
    (out / "study.yaml").unlink()
    (out / "study.yaml").mkdir()  # so that the study cannot write what it was asked for
    command = ["--preset", "frontier", "--algo", "none", "--algo", "agc", "--seeds", "1", *TOY, "--out", str(out)]
    assert call("shootout", *command, cwd=tmp_path, store=new_store).returncode == 1
    assert listed(out) == listed(frontier)


def test_a_trained_adaptive_study_says_so(shootout: Callable[..., str], tmp_path: Path):
    out = tmp_path / "adaptive"
    arms = ("--algo", "none", "--algo", "agc", "--regime", "rate-stress")
    shootout(out, "--preset", "default", "--adaptive", "--seeds", "8", "--learning-rate", "30", *arms)
    study = json.loads((out / "study.json").read_text(encoding="utf-8"))
    runs = pd.read_csv(out / "runs.csv")
    assert study["adaptive"] is True
    assert sorted(runs["run_id"]) == sorted(study["runs"])
    n = runs["algorithm"].value_counts()
    assert n["none"] == n["agc"] <= 8
    arms_of = {arm["algorithm"]: arm for arm in json.loads((out / "summary.json").read_text(encoding="utf-8"))["arms"]}
    agc = arms_of["agc"]
    assert agc["p_vs_control"] == pytest.approx(mcnemar_sequential(agc["n_better"], agc["n_worse"]))
