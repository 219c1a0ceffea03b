"""What the terminal shows at the end of a study."""

from __future__ import annotations

import io

from rich.console import Console

from study.progress import results_table

ARM = {
    "condition": "overload", "label": "agc", "n_ok": 8, "n_plateau": 0, "n_failed": 0, "n": 8,
    "p_fail": 0.0, "p_fail_low": 0.0, "p_fail_high": 0.369, "p_vs_control": 0.03125,
    "loss_ratio": 1.0712, "loss_ratio_low": 0.987, "loss_ratio_high": 1.149,
}  # fmt: skip
LINE = {
    "setting": "frontier, hybrid, sgd", "label": "agc", "lr50_text": "2.7 (2 to 4)", "gain_text": "46 (22 to 80)",
    "usable_decades": 2.52,
}  # fmt: skip


def printed(summary):
    console = Console(file=io.StringIO(), width=100)
    console.print(results_table(summary))
    return [line.split() for line in console.file.getvalue().splitlines()]


def test_arms_are_listed_with_counts_and_interval():
    assert printed({"arms": [ARM], "frontier": []})[1] == [
        "overload",
        "agc",
        *"800",
        "0.00–0.37",
        "0.031",
        "1.07",
        "0.99–1.15",
    ]


def test_an_arm_without_enough_pairs_has_no_interval_of_its_price():
    few = ARM | {"loss_ratio_low": None, "loss_ratio_high": None}
    assert printed({"arms": [few], "frontier": []})[1][-2:] == ["0.031", "1.07"]


def test_an_arm_without_a_judged_run_has_no_probability():
    lost = ARM | {"n_ok": 0, "n": 0, "p_fail": None, "p_fail_low": None, "p_fail_high": None, "p_vs_control": None}
    lost["loss_ratio"] = None
    assert printed({"arms": [lost], "frontier": []})[1] == ["overload", "agc", *"000"]


def test_a_search_shows_critical_rates_instead():
    head, line = printed({"arms": [ARM] * 50, "frontier": [LINE]})
    assert head[:3] == ["setting", "arm", "LR50"]
    assert line == ["frontier,", "hybrid,", "sgd", "agc", "2.7", "(2", "to", "4)", "46", "(22", "to", "80)", "2.5"]
