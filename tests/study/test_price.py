"""The price in image quality: who is held against whom, what the intervals say, and where it is told."""

from __future__ import annotations

import json
import math

import pytest

from study.paired_shift import paired_ratio, paired_shift
from study.price import Price, prices, silver_cost
from study.report import write_report
from study.run_metrics import arm_metrics
from study.summaries import summarise
from study.table import collect
from study.verdict import decide

FAST = dict(steps=12, reconstruction=False)
CONTROL = [0.20, 0.21, 0.22, 0.19, 0.23, 0.20, 0.18, 0.21]


@pytest.fixture
def priced(tmp_path, write_study_json, write_run):
    """Tables of one regime with given losses per arm, a run that is None has failed; ``amp_ssim`` is 1 - loss."""

    def inner(regime="control", **losses):
        if not (tmp_path / "study.json").exists():
            write_study_json(tmp_path, ["control", "overload"], ["none", "norm", "agc"])
        for algorithm, values in losses.items():
            for k, loss in enumerate(values):
                outcome = "failed" if loss is None else "ok"
                scores = {} if loss is None else dict(val_loss_final=loss, amp_ssim=1 - loss, frc50=None)
                options = dict(regime=regime, algorithm=algorithm, replicate=k, outcome=outcome, **scores, **FAST)
                write_run(tmp_path, **options)
        return collect(tmp_path)

    return inner


def test_only_pairs_of_ok_runs_are_priced_and_by_their_replicate(priced):
    agc = [0.22, None, 0.24, 0.20, 0.25, 0.21, 0.19, 0.23]
    (price,) = prices(priced(none=[*CONTROL[:7], None], agc=agc))
    both = [0, 2, 3, 4, 5, 6]
    ratio = paired_ratio([agc[k] for k in both], [CONTROL[k] for k in both])
    assert (price.price_pairs, price.against, price.against_control) == (6, "none", True)
    assert (price.loss_ratio, price.loss_ratio_low, price.loss_ratio_high) == pytest.approx(ratio)
    shift = paired_shift([1 - agc[k] for k in both], [1 - CONTROL[k] for k in both])
    assert (price.amp_ssim_shift, price.amp_ssim_shift_low, price.amp_ssim_shift_high) == pytest.approx(shift)
    assert math.isnan(price.frc50_shift)
    assert math.isnan(price.frc50_shift_low)


@pytest.mark.parametrize(
    ("ratios", "kind", "words"),
    [
        ([1.05, 1.09] * 4, "higher", "the loss is higher by 5.0% to 9.0%"),
        ([0.8, 0.9] * 4, "lower", "the loss is lower by 10% to 20%"),
        ([0.97, 1.04] * 4, "bounded", "a rise of the loss is ruled out above 4.0%"),
        ([0.95, 1.2] * 4, "open", "not decided: 5.0% lower to 20% higher"),
        ([1.5] * 5, "few", "too few pairs of ok runs for an interval: 5 of 6"),
        ([None] * 8, "none", "no pair of ok runs"),
    ],
)
def test_what_an_interval_says(priced, ratios, kind, words):
    losses = [None if r is None else r * loss for r, loss in zip(ratios, CONTROL, strict=False)]
    (price,) = prices(priced(none=CONTROL, agc=losses))
    assert (price.kind, price.words) == (kind, words)


def test_a_control_that_fails_gives_way_to_the_arm_with_most_ok_runs_and_not_with_the_lowest_loss(priced, tmp_path):
    cheap = [0.1 * loss for loss in CONTROL]
    found = prices(priced(regime="overload", none=[None] * 8, norm=CONTROL, agc=cheap))
    assert [(p.arm, p.against, p.against_control, p.price_pairs) for p in found] == [("agc", "norm", False, 8)]
    (sentence,) = (s for s in decide(collect(tmp_path)).sentences if "price against" in s)
    assert sentence == (
        "overload: too few runs of none are ok to price against; price against norm over 8 pairs: "
        "the loss is lower by 90% to 90% with agc."
    )


def test_without_enough_ok_runs_anywhere_the_control_stays_and_no_price_is_given(priced):
    tables = priced(regime="overload", none=[None] * 3, agc=CONTROL[:3])
    assert [(p.against, p.kind) for p in prices(tables)] == [("none", "none")]
    assert any(s.startswith("overload: no price can be given") for s in decide(tables).sentences)


def test_poor_pictures_are_said_to_be_poor(priced):
    tables = priced(none=[0.7] * 6, agc=[0.7] * 6)
    (sentence,) = (s for s in decide(tables).sentences if s.startswith("Pictures are poor"))
    assert "control (median amplitude SSIM 0.30 in the arm held against)" in sentence
    good = priced(regime="overload", none=CONTROL, agc=CONTROL)
    assert sum("Pictures are poor in control (" in s for s in decide(good).sentences) == 1


def test_a_search_has_no_price(priced, tmp_path, write_study_json):
    assert len(prices(priced(none=CONTROL, agc=CONTROL))) == 1
    write_study_json(tmp_path, ["control"], ["none", "agc"], searched=["control"])
    assert prices(collect(tmp_path)) == []


@pytest.mark.parametrize(
    ("ratios", "ending"),
    [
        ([0.98, 1.03] * 4, "this limit on the cost is shown over paired replicates in control."),
        ([0.98, 1.15] * 4, "this limit on the cost is estimated, but not shown in control."),
        (None, "too few runs of none are ok to measure a cost against."),
    ],
)
def test_silver_says_whether_its_limit_on_the_cost_is_shown(priced, ratios, ending):
    tables = priced(regime="overload", none=[None] * 8, agc=CONTROL)
    if ratios:
        tables = priced(none=CONTROL, agc=[r * loss for r, loss in zip(ratios, CONTROL, strict=True)])
    verdict = decide(tables)
    assert verdict.word == "silver"
    assert verdict.headline.endswith(f"of the median loss; {ending}")


def test_two_winners_may_differ_in_what_is_shown():
    def price(arm, high):
        numbers = {name: math.nan for name in Price.__slots__} | dict(loss_ratio=1.0, loss_ratio_high=high)
        return Price(
            **numbers | dict(condition="control", arm=arm, against="none", against_control=True, price_pairs=8)
        )

    told = silver_cost(["agc", "agc_unit"], [price("agc", 1.05), price("agc_unit", 1.3)], "none")
    assert told == "; this limit on the cost is shown for agc, but not for agc_unit in control"


def test_summary_store_and_report_tell_the_price(priced, tmp_path):
    losses = [r * loss for r, loss in zip([1.05, 1.09] * 4, CONTROL, strict=True)]
    tables = priced(none=CONTROL, norm=[None] * 8, agc=losses)
    none, norm, agc = summarise(tables)
    assert agc.loss_ratio == pytest.approx(1.07, abs=0.003)
    assert (none.price_pairs, norm.price_pairs, agc.price_pairs) == (0, 0, 8)
    page = write_report(tmp_path).read_text()
    arms = json.loads((tmp_path / "summary.json").read_text())["arms"]
    assert arms[2]["loss_ratio_low"] == pytest.approx(1.05)
    assert arms[1]["loss_ratio"] is None
    metrics = arm_metrics(arms)
    assert metrics["arm/agc/loss_ratio"] == metrics["arm/control/agc/loss_ratio"] == agc.loss_ratio
    assert not [key for key in metrics if "norm/loss_ratio" in key]
    assert all(math.isfinite(value) for value in metrics.values())
    assert "The price in image quality" in page
    assert "the loss is higher by 5.0% to 9.0%" in page
    assert (tmp_path / "figures" / "price.png").stat().st_size > 1000
    assert (tmp_path / "figures" / "price.csv").read_text().startswith("condition,arm,against,")


def test_over_conditions_the_dearest_ratio_counts_and_what_is_no_number_does_not():
    arm = dict(algorithm="agc", n=1, n_failed=0)
    values = {"a": 1.02, "b": 1.2, "c": None, "d": math.nan, "e": math.inf}
    metrics = arm_metrics([arm | dict(regime=name, loss_ratio=value) for name, value in values.items()])
    assert metrics["arm/agc/loss_ratio"] == 1.2
    assert {key for key in metrics if key.endswith("loss_ratio")} == {
        "arm/agc/loss_ratio", "arm/a/agc/loss_ratio", "arm/b/agc/loss_ratio",
    }  # fmt: skip
