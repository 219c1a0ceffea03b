"""Faults: one contract for each entry of the registry, what each does, and how they are asked for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ptycho.arrays import PtychoArrays
from ptycho.errors import InputError
from ptycho.fault_kinds import FAULTS, HOT_PIXELS, OVERLOAD_PIXELS
from ptycho.faults import Fault, FaultyFrames, inject, parse_fault

PPI = 4.0


@pytest.fixture(scope="module")
def scan() -> PtychoArrays:
    """40 frames of 2 channels of 16 px, counts 1 to 99, on a line of positions 3 px apart."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 100, size=(40, 2, 16, 16))
    rows = 3.0 * np.arange(40)[:, None] + [0.0, 1.0]
    return PtychoArrays(
        amplitude=np.sqrt(counts / PPI).astype(np.float32),
        positions_px=np.stack([rows, np.zeros_like(rows)], axis=-1).astype(np.float32),
        probe=np.ones((1, 16, 16), np.complex64),
        photons_per_intensity=PPI,
    )


def counts(frames: FaultyFrames) -> np.ndarray:
    return frames.amplitude.astype(np.float64) ** 2 * PPI


def put_in(scan: PtychoArrays, *texts: str, seed: int = 7) -> list[FaultyFrames]:
    return inject(scan, [parse_fault(text) for text in texts], seed)


def same(a: list[FaultyFrames], b: list[FaultyFrames]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(getattr(x, name), getattr(y, name), equal_nan=True)
        for x, y in zip(a, b, strict=True)
        for name in ("index", "amplitude", "positions_px", "onset")
    )


@pytest.mark.parametrize("name", FAULTS)
def test_contract_of_every_fault(scan: PtychoArrays, name: str) -> None:
    before = scan.digest()
    info = FAULTS[name]
    (frames,) = put_in(scan, f"{name}:rate=0.2,onset=11")
    k = len(frames.index)
    assert k == 8
    assert frames.onset == 11
    assert np.array_equal(frames.index, np.unique(frames.index))
    assert frames.index.dtype == np.int64
    assert frames.amplitude.shape == (k, 2, 16, 16)
    assert frames.positions_px.shape == (k, 2, 2)
    assert frames.amplitude.dtype == frames.positions_px.dtype == np.float32
    assert scan.digest() == before, "the scan itself must stay as it was"
    changed = [
        not np.array_equal(frames.amplitude[i], scan.amplitude[j])
        or not np.array_equal(frames.positions_px[i], scan.positions_px[j])
        for i, j in enumerate(frames.index)
    ]
    assert all(changed), "every frame hit must differ from the true one"
    assert same(put_in(scan, f"{name}:rate=0.2,onset=11"), [frames]), "the same seed, the same faults"
    assert not same(put_in(scan, f"{name}:rate=0.2,onset=11", seed=8), [frames])
    assert len(put_in(scan, f"{name}:rate=0.0001")[0].index) == 1, "at least one frame"
    assert put_in(scan, f"{name}:rate=0") == []
    assert set(frames.index) <= set(put_in(scan, f"{name}:rate=0.5")[0].index), "a higher rate hits the same and more"
    assert info.summary
    assert (info.size is None) == (info.size_meaning == "")
    assert info.size is None or info.low <= info.size <= info.high
    assert parse_fault(name) == Fault(name=name, rate=info.rate, size=info.size, onset=info.onset)


@pytest.mark.parametrize("name", [name for name, info in FAULTS.items() if info.size is not None])
def test_the_size_acts_on_the_same_frames(scan: PtychoArrays, name: str) -> None:
    low, high = put_in(scan, f"{name}:rate=0.2,size=0.3"), put_in(scan, f"{name}:rate=0.2,size=0.9")
    assert np.array_equal(low[0].index, high[0].index)
    assert not same(low, high)


@pytest.mark.parametrize("name", FAULTS)
def test_other_faults_leave_a_fault_s_frames_where_they_were(scan: PtychoArrays, name: str) -> None:
    other = "dropped" if name != "dropped" else "zinger"
    (alone,) = put_in(scan, f"{name}:rate=0.2,onset=5")
    both = put_in(scan, f"{other}:rate=0.2,onset=1000", f"{name}:rate=0.2,onset=5")
    assert same([both[0]], [alone])


def test_overload_saturates_a_few_pixels_at_a_multiple_of_the_scan_s_brightest(scan: PtychoArrays) -> None:
    (frames,) = put_in(scan, "overload:rate=0.1,size=1000")
    level = 1000 * scan.counts().max()
    assert np.all((counts(frames) > 0.999 * level).sum(axis=(2, 3)) == OVERLOAD_PIXELS)
    assert counts(frames).max() == pytest.approx(level, rel=1e-5)
    untouched = np.isclose(counts(frames), scan.counts()[frames.index])
    assert np.all((~untouched).sum(axis=(2, 3)) == OVERLOAD_PIXELS)


def test_a_zinger_is_one_pixel_and_lands_elsewhere_in_each_frame(scan: PtychoArrays) -> None:
    (frames,) = put_in(scan, "zinger:rate=0.5,size=10")
    hit = counts(frames) > 5 * scan.counts().max()
    assert np.all(hit.sum(axis=(2, 3)) == 1)
    assert hit.any(axis=(0, 1)).sum() > 10


def test_hot_and_dead_pixels_stay_in_place_over_the_scan(scan: PtychoArrays) -> None:
    (hot,) = put_in(scan, "hot_pixels:rate=1,size=5")
    places = counts(hot) > 4 * scan.counts().max()
    assert places.any(axis=(0, 1)).sum() == places.all(axis=(0, 1)).sum() == HOT_PIXELS
    (dead,) = put_in(scan, "dead_pixels:rate=1,size=0.05")
    zero = dead.amplitude == 0
    assert zero.any(axis=(0, 1)).sum() == zero.all(axis=(0, 1)).sum() == round(0.05 * 256)


def test_dropped_frames_are_zero_and_dumped_ones_nearly_dark(scan: PtychoArrays) -> None:
    assert np.all(put_in(scan, "dropped")[0].amplitude == 0)
    (dark,) = put_in(scan, "beam_dump:rate=1,size=30")
    assert counts(dark).sum(axis=(2, 3)).mean() == pytest.approx(30, rel=0.1)
    assert counts(dark) == pytest.approx(np.rint(counts(dark)), abs=1e-5)


def test_a_duplicated_frame_shows_its_neighbour_at_its_own_position(scan: PtychoArrays) -> None:
    (frames,) = put_in(scan, "duplicated:rate=0.2")
    for i, j in enumerate(frames.index):
        near = [n for n in (j - 1, j + 1) if 0 <= n < 40]
        assert any(np.array_equal(frames.amplitude[i], scan.amplitude[n]) for n in near)
    assert np.array_equal(frames.positions_px, scan.positions_px[frames.index])


def test_an_intensity_jump_is_a_factor_on_the_counts(scan: PtychoArrays) -> None:
    (frames,) = put_in(scan, "intensity_jump:size=9")
    assert frames.amplitude == pytest.approx(3 * scan.amplitude[frames.index])


def test_jitter_has_the_width_asked_for_and_leaves_the_pattern(scan: PtychoArrays) -> None:
    (frames,) = put_in(scan, "position_jitter:rate=1,size=2")
    assert np.array_equal(frames.amplitude, scan.amplitude)
    assert np.std(frames.positions_px - scan.positions_px) == pytest.approx(2, rel=0.2)


def test_a_nan_frame_has_the_fraction_asked_for(scan: PtychoArrays) -> None:
    (frames,) = put_in(scan, "nan_frame:size=0.25")
    assert np.isnan(frames.amplitude).mean() == pytest.approx(0.25)
    assert np.isnan(put_in(scan, "nan_frame:size=1")[0].amplitude).all()


def test_a_frame_hit_twice_keeps_both_whatever_the_order(scan: PtychoArrays) -> None:
    texts = ["overload:rate=1,size=100,onset=3", "dropped:rate=1,onset=3", "position_jitter:rate=1,onset=3"]
    (frames,) = put_in(scan, *texts)
    assert same(put_in(scan, *reversed(texts)), [frames])
    assert np.all((frames.amplitude > 0).sum(axis=(2, 3)) == OVERLOAD_PIXELS)
    assert not np.array_equal(frames.positions_px, scan.positions_px)


def test_a_later_fault_is_added_to_what_has_set_in_before(scan: PtychoArrays) -> None:
    first, second = put_in(scan, "zinger:rate=1,onset=20", "intensity_jump:rate=0.3,size=2,onset=70")
    assert (first.onset, second.onset) == (20, 70)
    assert set(second.index) <= set(first.index)
    bright = 9 * scan.counts().max()
    assert np.all((counts(second) > bright).sum(axis=(2, 3)) == 1), "the zinger stays"
    assert np.median(counts(second) / scan.counts()[second.index]) == pytest.approx(2)


def test_the_same_fault_twice_draws_afresh(scan: PtychoArrays) -> None:
    (frames,) = put_in(scan, "zinger:rate=1,onset=0", "zinger:rate=1,onset=0")
    hits = (counts(frames) > 5 * scan.counts().max()).sum(axis=(2, 3))
    assert hits.max() == 2


def test_faults_depend_on_the_number_of_frames_and_not_on_their_content(scan: PtychoArrays) -> None:
    brighter = dataclasses.replace(scan, amplitude=2 * scan.amplitude)
    assert np.array_equal(put_in(scan, "zinger")[0].index, put_in(brighter, "zinger")[0].index)


def test_a_scan_of_one_frame_can_lose_it_but_not_repeat_a_neighbour(scan: PtychoArrays) -> None:
    one = scan.take(np.array([0]))
    assert np.all(put_in(one, "dropped")[0].amplitude == 0)
    with pytest.raises(InputError, match="at least two"):
        put_in(one, "duplicated")


def test_parsing_reads_every_key_and_spaces() -> None:
    fault = parse_fault(" overload: rate = 0.25, size=1e4 ,onset=1e2")
    assert fault == Fault(name="overload", rate=0.25, size=1e4, onset=100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("overlod", r"fault: unknown value 'overlod'; known: .*did you mean 'overload'"),
        ("", "fault: unknown value ''"),
        ("zinger:rat=0.1", r"key: unknown value 'rat'; known: rate, size, onset \(did you mean 'rate'"),
        ("zinger:rate", "'rate' is not key=value"),
        ("zinger:", "'' is not key=value"),
        ("zinger:rate=0.1,", "'' is not key=value"),
        ("zinger:rate=many", "rate is 'many'; allowed: a number"),
        ("zinger:rate=-0.1", "rate is -0.1; allowed: 0 to 1"),
        ("zinger:rate=1.01", "rate is 1.01; allowed: 0 to 1"),
        ("zinger:rate=nan", "rate is nan; allowed: 0 to 1"),
        ("zinger:size=inf", "size is inf; allowed: "),
        ("zinger:size=-1", "size is -1; allowed: "),
        ("dead_pixels:size=2", "size is 2; allowed: 1e-06 to 1"),
        ("zinger:onset=-1", "onset is -1; allowed: 0 to"),
        ("zinger:onset=1.5", "onset is 1.5; allowed: a whole number"),
        ("zinger:rate=0.1,rate=0.2", "rate is given twice"),
        ("dropped:size=2", "no size; keys: rate, onset"),
    ],
)
def test_a_fault_that_cannot_be_read_is_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_fault(text)
    assert "\n" not in str(caught.value)
