"""Critical learning rates on lines whose true LR50 is known, and the search that finds them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from study.frontier import (
    HIGHEST,
    LOWEST,
    RESOLUTION,
    Point,
    critical_rate,
    describe,
    fewest_failures,
    gain,
    next_rates,
    ranks,
    usable_band,
)
from study.statistics import Estimate

GRID = (0.0316, 0.1, 0.316, 1.0, 3.16, 10.0)
Fails = Callable[[float], np.ndarray]
ALL_STALL = 0.0


def line(*failed: int, n: int = 6, rates: tuple[float, ...] = GRID) -> list[Point]:
    return [Point(rate, n, k, n - k) for rate, k in zip(rates, failed, strict=False)]


def search(fails: Fails, n: int, share_ok: float = ALL_STALL, seed: int = 0) -> list[Point]:
    """What the search ends with, where ``fails`` says which of ``n`` replicates fail at a rate.

    ``share_ok`` of the others are ok, the rest stalls.
    """
    rng = np.random.default_rng(seed)

    def point(rate: float) -> Point:
        failed = fails(rate)
        return Point(rate, n, int(failed.sum()), int((~failed & (rng.random(n) < share_ok)).sum()))

    points = [point(rate) for rate in GRID]
    for _ in range(15):
        rates = next_rates(points)
        if not rates:
            return points
        assert not {p.rate for p in points} & set(rates), "no rate is tried twice"
        points += [point(rate) for rate in rates]
    raise AssertionError("the search does not end")


def test_the_bounds_by_hand():
    found = critical_rate(line(0, 0, 2, 5, 6, 6))
    assert (found.low, found.high) == (0.1, 3.16)
    assert 0.316 < found.value < 1.0


def test_a_bound_needs_every_rate_on_its_side():
    assert critical_rate(line(0, 1, 0, 0, 6, 6)).low == 0.0316, "the second rate stops the sequence"
    assert critical_rate(line(0, 0, 6, 6, 5, 6)).high == 10.0


def test_rates_too_low_to_learn_anything_are_no_sign_of_a_rate_too_high():
    points = [Point(0.001, 6, 6, 0), Point(0.005, 2, 0, 2), Point(0.01, 6, 2, 1), *line(0, 0, 2, 5, 6, 6)]
    assert critical_rate(points) == critical_rate(line(0, 0, 2, 5, 6, 6))
    assert next_rates(points) == next_rates([Point(0.01, 6, 0, 0), *line(0, 0, 2, 5, 6, 6)])


def test_where_stalled_runs_are_many_the_best_of_them_are_no_place_to_start_from():
    points = [Point(0.1, 6, 0, 1), Point(0.316, 6, 3, 3), Point(1.0, 6, 6, 0)]
    assert critical_rate(points).value == pytest.approx(0.316)
    assert critical_rate(points).low == 0.1


def test_too_few_replicates_bound_nothing():
    found = critical_rate(line(0, 0, 5, 5, 5, 5, n=5))
    assert (found.low, found.high) == (0.0, math.inf)
    assert describe(found) == f"{found.value:.3g} (no bound)"


def test_the_order_of_the_points_does_not_matter():
    points = line(0, 0, 2, 5, 6, 6)
    assert critical_rate(points[::-1]) == critical_rate(points)


@pytest.mark.parametrize(
    ("failed", "text"), [((0, 0, 0, 0, 0, 0), "above 10"), ((6, 6, 6, 6, 6, 6), "below 0.0316"), ((3, 3), "unknown")]
)
def test_a_bracket_that_never_closed_is_said_to_be_open(failed: tuple[int, ...], text: str):
    found = critical_rate(line(*failed))
    assert math.isnan(found.value)
    assert describe(found) == text


def test_nothing_is_known_of_nothing():
    assert describe(critical_rate([])) == "unknown"
    assert describe(critical_rate([Point(0.1, 0, 0, 0)])) == "unknown"
    assert next_rates([]) == []


@pytest.mark.parametrize("n", range(1, 40))
def test_the_exact_test_behind_a_bound(n: int):
    k = fewest_failures(n)
    tail = [math.comb(n, i) / 2**n for i in range(n + 1)]
    assert sum(tail[: k + 1]) <= 0.025 < sum(tail[: k + 2])


def test_gain_by_hand():
    found = gain(Estimate(2.0, 1.0, 4.0), Estimate(0.2, 0.1, 0.4))
    assert found == pytest.approx((10.0, 10 / 2 ** math.sqrt(2), 10 * 2 ** math.sqrt(2)))
    narrow, unbounded = Estimate(2.0, 2.0, 2.0), Estimate(0.2, 0.0, 0.4)
    assert gain(narrow, unbounded) == pytest.approx((10.0, 5.0, math.inf))


def test_gain_of_a_rate_that_was_never_reached():
    found = gain(critical_rate(line(0, 0, 0, 0, 0, 0)), critical_rate(line(0, 6, 6, 6, 6, 6)))
    assert describe(found) == "above 100"


def test_ranks_tell_apart_only_what_is_shown():
    rates = {
        "far": Estimate(2.6, 1.0, 5.6), "near": Estimate(2.4, 1.0, 3.2), "low": Estimate(0.06, 0.03, 0.1),
        "beyond": Estimate(math.nan, 100.0, math.inf), "unknown": Estimate(math.nan, 0.0, math.inf),
    }  # fmt: skip
    assert ranks(rates) == [["low"], ["near", "far"], ["beyond"]]
    assert ranks({"unbounded": Estimate(1.0, 0.0, math.inf), "low": rates["low"]}) == [["low", "unbounded"]]


def test_usable_band_by_hand():
    points = [Point(0.1, 2, 0, 0), Point(10.0, 2, 2, 0), Point(1.0, 2, 0, 2)]
    assert usable_band(points) == pytest.approx(1.0)


# The search


def test_the_search_halves_the_gap_that_holds_the_critical_rate():
    points = [Point(0.1, 6, 0, 0), Point(1.0, 6, 6, 0)]
    assert next_rates(points) == [0.316]
    assert next_rates([Point(0.1, 6, 0, 0), Point(0.1 * RESOLUTION, 6, 6, 0)]) == []


def test_the_search_closes_both_ends_of_the_interval():
    points = [Point(r, 6, k, 0) for r, k in zip(GRID, (0, 1, 2, 4, 5, 6), strict=True)]
    assert next_rates(points) == pytest.approx([0.0562, 0.562, 5.62], rel=0.01)


def test_the_search_goes_beyond_the_rates_tried():
    assert next_rates([Point(0.1, 6, 0, 0), Point(1.0, 6, 0, 0)]) == [3.16]
    assert next_rates([Point(0.1, 6, 6, 0), Point(1.0, 6, 6, 0)]) == [0.0316]
    assert next_rates([Point(HIGHEST, 6, 0, 0)]) == []
    assert next_rates([Point(LOWEST, 6, 6, 0)]) == []


def test_the_search_looks_for_the_lower_end_of_the_usable_band():
    assert next_rates([Point(0.1, 6, 0, 6), Point(0.11, 6, 6, 0)]) == [0.0316]
    assert next_rates([Point(0.1, 6, 0, 3), Point(0.11, 6, 6, 0)]) == []


@pytest.mark.parametrize("lr50", [0.005, 0.2, 2.0, 50.0])
def test_a_sharp_edge_is_found_wherever_it_is(lr50: float):
    points = search(lambda rate: np.full(6, rate > lr50), 6)
    found = critical_rate(points)
    assert found.low <= lr50 <= found.high <= RESOLUTION * 1.01 * found.low
    assert len(points) <= 14


def tolerances(
    rng: np.random.Generator, lr50: float, spread: float, tied: float, common: np.ndarray, learns_from: float = 0.0
) -> Fails:
    """Replicates whose own critical rates scatter by ``spread`` decades.

    ``tied`` is the share of that which a replicate keeps at every rate and in every arm, the rest being drawn anew
    for each run. Below the rate ``learns_from`` nothing is learnt in time, which counts as failed, too.
    """

    def fails(rate: float) -> np.ndarray:
        noise = math.sqrt(tied) * common + math.sqrt(1 - tied) * rng.standard_normal(len(common))
        return (math.log10(lr50) + spread * noise < math.log10(rate)) | (rate < learns_from)

    return fails


@pytest.mark.parametrize("n", [6, 9])
@pytest.mark.parametrize("spread", [0.05, 0.3])
@pytest.mark.parametrize("tied", [0.0, 1.0])
@pytest.mark.parametrize(("share_ok", "learns_from"), [(ALL_STALL, 0.0), (0.6, 0.01)])
def test_the_intervals_cover_the_truth(n: int, spread: float, tied: float, share_ok: float, learns_from: float):
    rng = np.random.default_rng(7)
    covered, covered_gain, error = [], [], []
    for seed in range(150):
        lr50, factor = 10 ** rng.uniform(-0.9, -0.1), 10 ** rng.uniform(0, 0.9)
        common = rng.standard_normal(n)
        control, arm = (
            critical_rate(search(tolerances(rng, true, spread, tied, common, learns_from), n, share_ok, seed))
            for true in (lr50, lr50 * factor)
        )
        over = gain(arm, control)
        covered += [control.low <= lr50 <= control.high, arm.low <= lr50 * factor <= arm.high]
        covered_gain.append(over.low <= factor <= over.high)
        error.append(math.log10(control.value / lr50))
    assert np.mean(covered) >= 0.95
    assert np.mean(covered_gain) >= 0.95
    assert abs(np.mean(error)) < 0.15 * spread + 0.01, "next to no bias"


def test_the_interval_is_no_wider_than_the_replicates_scatter():
    rng = np.random.default_rng(3)
    common = rng.standard_normal(9)
    found = critical_rate(search(tolerances(rng, 0.3, 0.1, 1.0, common), 9))
    assert math.log10(found.high / found.low) <= 0.1 * (common.max() - common.min()) + 2 * math.log10(RESOLUTION)
