"""Arm summaries and the verdict rule on invented outcomes whose answer is known."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from ptycho.errors import InputError
from study.critical_rates import frontier
from study.report import write_report
from study.statistics import clopper_pearson
from study.summaries import summarise
from study.table import collect
from study.verdict import decide

INTERFACE = (
    "regime, algorithm, n, n_ok, n_plateau, n_failed, p_fail, p_fail_low, p_fail_high, p_vs_control, rmst, "
    "val_loss_iqm, amp_ssim_median"
)
IDENTITY = ("run_id", "regime", "algorithm", "threshold", "architecture", "optimizer", "learning_rate", "replicate")
FAST = dict(steps=12, reconstruction=False)


@pytest.fixture
def study(tmp_path, write_study_folder):
    """Tables of a study with given ok / plateau / failed counts."""
    return lambda counts, **options: collect(write_study_folder(tmp_path, counts, **(FAST | options)))


def arm(summaries, label, condition=None):
    (found,) = (a for a in summaries if a.label == label and condition in (None, a.condition))
    return found


def test_summary_has_the_columns_that_users_rely_on(default_study_folder):
    summaries = summarise(collect(default_study_folder))
    assert len(summaries) == 20
    assert set(INTERFACE.split(", ")) <= {f.name for f in dataclasses.fields(summaries[0])}


def test_counts_and_exact_interval(study):
    none = arm(summarise(study({"overload": {"none": (1, 2, 5), "agc": (8, 0, 0)}})), "none")
    assert (none.n, none.n_ok, none.n_plateau, none.n_failed, none.n_lost) == (8, 1, 2, 5, 0)
    assert (none.p_fail, none.p_fail_low, none.p_fail_high) == (5 / 8, *clopper_pearson(5, 8))
    assert (none.p_not_ok, none.p_not_ok_low) == (7 / 8, clopper_pearson(7, 8).low)
    assert math.isnan(none.p_vs_control), "the control is not tested against itself"


def test_stalled_runs_count_in_the_test_and_correction_is_within_the_condition(study):
    counts = {"none": (0, 2, 6), "norm": (7, 1, 0), "value": (8, 0, 0), "agc": (8, 0, 0), "agc_unit": (8, 0, 0)}
    summaries = summarise(study({"overload": counts, "rate_1.0": {"none": (0, 2, 6), "agc": (8, 0, 0)}}))
    assert arm(summaries, "agc", "overload").p_vs_control == pytest.approx(4 * 2 / 2**8)
    assert arm(summaries, "agc", "rate_1.0").p_vs_control == pytest.approx(2 / 2**8)
    assert arm(summaries, "norm", "overload").p_vs_control_uncorrected == pytest.approx(2 / 2**7)


def test_lost_runs_leave_the_pairs_and_the_proportions(tmp_path, write_study_folder, write_run):
    write_study_folder(tmp_path, {"overload": {"none": (0, 0, 3), "agc": (4, 0, 0)}}, **FAST)
    write_run(tmp_path, regime="overload", algorithm="none", replicate=3, outcome="oom", **FAST)
    tables = collect(tmp_path)
    none, agc = summarise(tables)
    assert (none.n, none.n_lost, none.p_fail) == (3, 1, 1.0)
    assert (agc.n, agc.n_pairs, agc.n_better) == (4, 3, 3)
    assert "1 run ended without a judgement (1 oom) and stand in no proportion." in decide(tables).sentences


@pytest.mark.parametrize("words", [("oom", "error"), ("oom", "ok")])
def test_runs_that_died_before_their_first_step_are_lost_and_nothing_else(tmp_path, write_study_json, write_run, words):
    write_study_json(tmp_path, ["overload"], ["none", "agc"])
    for algorithm, outcome in zip(("none", "agc"), words, strict=True):
        for replicate in range(2):
            row = write_run(
                tmp_path, regime="overload", algorithm=algorithm, replicate=replicate, outcome=outcome, **FAST
            )
            if outcome != "ok":
                folder = tmp_path / "runs" / row["run_id"]
                kept = {key: row[key] for key in (*IDENTITY, "outcome")}
                (folder / "result.json").write_text(json.dumps(kept))
                (folder / "steps.jsonl").unlink()
    tables = collect(tmp_path)
    none, agc = summarise(tables)
    assert (none.n, none.n_lost) == (0, 2)
    assert math.isnan(none.rmst)
    assert (agc.n, none.horizon) == ((2, 12.0) if "ok" in words else (0, pytest.approx(math.nan, nan_ok=True)))
    lost = "2 runs ended without a judgement (2 oom)" if "ok" in words else "4 runs ended without a judgement"
    assert any(sentence.startswith(lost) for sentence in decide(tables).sentences)
    assert write_report(tmp_path).stat().st_size > 0


def test_pairs_follow_the_replicate_and_not_the_order(tmp_path, write_study_json, write_run):
    write_study_json(tmp_path, ["overload"], ["none", "agc"])
    for replicate, words in {5: ("failed", "ok"), 1: ("ok", "failed"), 9: ("failed", "failed")}.items():
        for algorithm, outcome in zip(("none", "agc"), words, strict=True):
            write_run(tmp_path, regime="overload", algorithm=algorithm, replicate=replicate, outcome=outcome, **FAST)
    agc = arm(summarise(collect(tmp_path)), "agc")
    assert (agc.n_pairs, agc.n_better, agc.n_worse) == (3, 1, 1)


def test_survival_and_quality_by_hand(tmp_path, write_study_json, write_run):
    write_study_json(tmp_path, ["overload"], ["none"])
    losses = dict(enumerate([0.02, 0.04, 0.5]))
    for replicate, loss in losses.items():
        write_run(
            tmp_path, regime="overload", algorithm="none", replicate=replicate, val_loss_final=loss,
            outcome="failed" if replicate == 2 else "ok", steps=100, failed_at_step=40 if replicate == 2 else None,
            reconstruction=False, amp_ssim=0.9 - 0.1 * replicate,
        )  # fmt: skip
    (none,) = summarise(collect(tmp_path))
    assert none.rmst == pytest.approx((100 + 100 + 40) / 3)
    assert none.val_loss_iqm == pytest.approx(0.03)
    assert none.val_loss_iqm_all == pytest.approx((0.02 + 0.04 + 0.163) / 3), "a failure counts as the constant object"
    assert none.val_loss_median == pytest.approx(0.04)
    assert none.amp_ssim_median == pytest.approx(0.85)


def test_missing_scores_leave_numbers_out_and_nothing_else(study):
    changes = dict(val_loss_final=math.nan, amp_ssim=math.nan, phase_ssim=None, baseline_constant=None)
    none, agc = summarise(study({"overload": {"none": (0, 0, 2), "agc": (2, 0, 0)}}, **changes))
    assert none.p_fail == 1.0
    assert math.isnan(none.val_loss_iqm)
    assert math.isnan(agc.amp_ssim_median)
    assert math.isnan(agc.cost_ratio)


def test_default_study_is_silver(default_study_folder):
    verdict = decide(collect(default_study_folder))
    assert verdict.word == "silver"
    assert "agc and agc_unit lower" in verdict.headline
    overload = next(s for s in verdict.sentences if s.startswith("overload: "))
    assert overload.endswith("do better than none (8 of 8); corrected p at most 0.031.")
    assert all(name in overload for name in ("norm", "value", "agc", "agc_unit"))
    assert any(s.startswith("control: no difference shown.") for s in verdict.sentences)
    assert {c.word for c in verdict.evidence if c.condition == "control"} == {"none shown"}


def test_two_replicates_are_not_enough(study):
    verdict = decide(study({"overload": {"none": (0, 0, 2), "agc": (2, 0, 0)}}))
    assert verdict.word == "not enough evidence"
    assert verdict.headline == (
        "Not enough evidence: 4 more replicates would decide overload, agc, if the rates stay as observed."
    )


def test_two_replicates_that_agree_prove_no_equality(study):
    verdict = decide(study({"overload": {"none": (2, 0, 0), "agc": (2, 0, 0)}}))
    assert verdict.word == "not enough evidence"
    assert verdict.sentences[0] == (
        "overload: too few replicates to tell agc (0 of 2 not ok) from none (0 of 2); at least 4 more."
    )


def test_an_unsettled_difference_says_what_would_settle_it(study):
    verdict = decide(
        study({"control": {"none": (5, 0, 0), "agc": (5, 0, 0)}, "overload": {"none": (0, 1, 4), "agc": (5, 0, 0)}})
    )
    assert verdict.headline.startswith("Not enough evidence: 1 more replicate would decide overload, agc")
    assert verdict.sentences[1] == (
        "overload: not settled against none (5 of 5 not ok): "
        "agc 0 of 5 (corrected p 0.062, about 1 more replicate to decide)."
    )


def test_enough_replicates_without_a_difference_are_a_pivot(study):
    verdict = decide(study({"overload": {"none": (4, 0, 16), "agc": (5, 0, 15)}}))
    assert verdict.word == "pivot"
    assert verdict.sentences[0].startswith("overload: no difference shown. With 20 pairs only a change")


def test_an_arm_that_does_worse_is_named(study):
    verdict = decide(study({"overload": {"none": (8, 0, 0), "agc": (0, 0, 8)}}))
    assert verdict.word == "pivot"
    assert verdict.sentences[0] == ("overload: agc (8 of 8 not ok) does worse than none (0 of 8); corrected p 0.0078.")


@pytest.mark.parametrize(("loss", "word"), [(0.21, "silver"), (0.30, "pivot")])
def test_silver_must_not_cost_more_than_a_tenth(tmp_path, write_study_json, write_run, loss, word):
    write_study_json(tmp_path, ["control", "overload"], ["none", "agc"])
    for k in range(8):
        for algorithm, final in (("none", 0.2 + 0.001 * k), ("agc", loss + 0.001 * k)):
            options = dict(algorithm=algorithm, replicate=k, **FAST)
            write_run(tmp_path, regime="control", outcome="ok", val_loss_final=final, **options)
            write_run(tmp_path, regime="overload", outcome="failed" if algorithm == "none" else "ok", **options)
    verdict = decide(collect(tmp_path))
    assert verdict.word == word
    assert any("the median loss of none" in s for s in verdict.sentences) == (word == "pivot")


def test_an_unsettled_cost_is_not_enough_evidence(tmp_path, write_study_json, write_run):
    write_study_json(tmp_path, ["control", "overload"], ["none", "agc"])
    for k in range(8):
        for algorithm, final in (("none", 0.1 + 0.02 * k), ("agc", 0.25 - 0.01 * k)):
            options = dict(algorithm=algorithm, replicate=k, **FAST)
            write_run(tmp_path, regime="control", outcome="ok", val_loss_final=final, **options)
            write_run(tmp_path, regime="overload", outcome="failed" if algorithm == "none" else "ok", **options)
    verdict = decide(collect(tmp_path))
    assert verdict.word == "not enough evidence"
    assert "agc lowers the failure rate, but its price is not settled: 1.26 times (95% interval" in verdict.headline


@pytest.mark.parametrize(("plain_ok_at_4", "word"), [(0, "gold"), (8, "pivot")])
def test_gold_needs_every_depth(tmp_path, write_study_json, write_run, plain_ok_at_4, word):
    write_study_json(tmp_path, ["overload"], ["none"])
    for depth, plain_ok in ((2, 0), (4, plain_ok_at_4)):
        for k in range(8):
            options = dict(regime="overload", algorithm="none", replicate=k, fno_blocks=depth, **FAST)
            write_run(
                tmp_path, outcome="ok" if k < plain_ok else "failed", architecture="hybrid", suffix="h", **options
            )
            write_run(tmp_path, outcome="ok", architecture="stable_hybrid", suffix="s", **options)
    verdict = decide(collect(tmp_path))
    assert verdict.word == word
    assert any(s.startswith("overload · 2 blocks: stable_hybrid (0 of 8") for s in verdict.sentences)


def test_without_a_control_there_is_no_comparison(study):
    tables = study({"overload": {"norm": (1, 0, 1), "agc": (2, 0, 0)}})
    assert decide(tables).word == "no comparison"
    assert all(math.isnan(a.p_vs_control) for a in summarise(tables))


def test_an_empty_study_has_no_arms(tmp_path, write_study_json):
    write_study_json(tmp_path, [], [])
    tables = collect(tmp_path)
    assert summarise(tables) == []
    assert decide(tables).word == "no comparison"
    assert len(frontier([], "none")) == 0


def test_thresholds_are_arms_of_their_own(tmp_path, write_study_json, write_run):
    write_study_json(tmp_path, ["overload"], ["none", "agc"])
    for k in range(2):
        write_run(tmp_path, regime="overload", algorithm="none", replicate=k, outcome="ok", **FAST)
        for threshold in (0.01, 0.1):
            options = dict(threshold=threshold, suffix=str(threshold), **FAST)
            write_run(tmp_path, regime="overload", algorithm="agc", replicate=k, outcome="ok", **options)
    assert [a.label for a in summarise(collect(tmp_path))] == ["none", "agc 0.01", "agc 0.1"]


def test_the_same_replicate_twice_in_one_arm_is_refused(tmp_path, write_study_folder, write_run):
    write_study_folder(tmp_path, {"overload": {"none": (1, 0, 0)}}, **FAST)
    write_run(tmp_path, regime="overload", algorithm="none", replicate=0, outcome="ok", suffix="again", **FAST)
    with pytest.raises(InputError, match=r"overload/none: replicate 0 was run twice .* allowed: one study a folder"):
        summarise(collect(tmp_path))


def test_frontier_gain_by_hand(tmp_path, write_study_json, write_run):
    write_study_json(tmp_path, ["frontier"], ["none", "agc"])
    failures = {"none": {0.1: 0, 1.0: 2, 10.0: 2}, "agc": {0.1: 0, 1.0: 0, 10.0: 2}}
    for algorithm, line in failures.items():
        for rate, failed in line.items():
            for k in range(2):
                outcome = "failed" if k < failed else "ok"
                options = dict(replicate=k, outcome=outcome, learning_rate=rate, optimizer="sgd", **FAST)
                write_run(tmp_path, regime="frontier", algorithm=algorithm, **options)
    tables = collect(tmp_path)
    frame = frontier(summarise(tables), tables.control).set_index("label")
    assert frame["lr50"].tolist() == pytest.approx([10**-0.5, 10**0.5])
    assert frame["gain"].tolist() == pytest.approx([1, 10])
    assert frame["usable_decades"].tolist() == pytest.approx([0.5, 1.5])
    assert summarise(tables)[0].condition == "frontier · rate 0.1"
    assert decide(tables).sentences[0] == (
        "frontier, hybrid, sgd: half of the runs fail at a learning rate of 0.316 (no bound) with none "
        "and 3.16 (no bound) with agc."
    )
