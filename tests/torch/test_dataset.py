"""Which frames are served, in which order, and from when on with which faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from ptycho.arrays import PtychoArrays, ScanSplits
from ptycho.faults import inject, parse_fault
from ptycho_torch.dataset import BatchRequest, Frames, PtychoBatch, SeededBatches, evaluation_loader, training_loader


def numbered(n_frames: int, size: int = 4) -> PtychoArrays:
    """Frames that hold their own number, from 1."""
    values = np.arange(1, n_frames + 1, dtype=np.float32)[:, None, None, None]
    return PtychoArrays(
        amplitude=np.broadcast_to(values, (n_frames, 1, size, size)).copy(),
        positions_px=np.zeros((n_frames, 1, 2), np.float32),
        probe=np.ones((1, size, size), np.complex64),
        photons_per_intensity=100.0,
    )


def passes(sampler: SeededBatches, n: int) -> list[list[list[int]]]:
    """The frames of each batch of ``n`` passes."""
    return [[request.frames.tolist() for request in sampler] for _ in range(n)]


def flat(batches: list[list[int]]) -> list[int]:
    return [frame for batch in batches for frame in batch]


# order


@pytest.mark.parametrize(("n_frames", "batch_size"), [(10, 3), (12, 4), (3, 8), (1, 1)])
def test_every_frame_once_per_pass_in_batches_of_which_the_last_may_be_smaller(n_frames: int, batch_size: int) -> None:
    sampler = SeededBatches(n_frames, batch_size, seed=5)
    for batches in passes(sampler, 3):
        assert sorted(flat(batches)) == list(range(n_frames))
        assert len(batches) == len(sampler)
        assert [len(b) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert len(batches[-1]) == n_frames - batch_size * (len(batches) - 1)


def test_the_order_is_a_function_of_the_seed_and_the_pass_alone() -> None:
    orders = [flat(batches) for batches in passes(SeededBatches(20, 3, seed=5), 4)]
    assert len({tuple(order) for order in orders}) == 4
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002  the global generator is what must not matter
    assert [flat(batches) for batches in passes(SeededBatches(20, 7, seed=5), 4)] == orders
    assert all(
        flat(batches) != order for batches, order in zip(passes(SeededBatches(20, 3, seed=6), 4), orders, strict=True)
    )


def test_every_batch_knows_its_optimizer_step() -> None:
    sampler = SeededBatches(10, 4, seed=5)
    assert [request.step for _ in range(3) for request in sampler] == list(range(9))


def test_an_evaluation_takes_the_frames_as_they_stand_every_time() -> None:
    loader = evaluation_loader(numbered(7), 3)
    next(iter(loader))
    for _ in range(2):
        batches = list(loader)
        assert [batch.frames.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
        assert torch.cat([batch.amplitude[:, 0, 0, 0] for batch in batches]).tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_a_pass_goes_on_where_its_state_says() -> None:
    def frames(loader: Any) -> list[list[int]]:
        return [batch.frames.tolist() for batch in loader]

    whole = training_loader(numbered(9), (), 2, seed=1)
    first, second = frames(whole), frames(whole)
    begun, resumed = (training_loader(numbered(9), (), 2, seed=1) for _ in range(2))
    assert [batch.frames.tolist() for batch, _ in zip(begun, range(3), strict=False)] == first[:3]
    resumed.load_state_dict({"position": 3})
    assert frames(resumed) == first[3:]
    assert frames(resumed) == second
    assert resumed.state_dict() == whole.state_dict() == {"position": 10}


def test_one_item_holds_all_frames_of_a_step_and_splits_into_batches() -> None:
    first, *_, last = training_loader(numbered(11), (), 2, seed=1, batches_per_step=3)
    assert [len(part.frames) for part in first.split(2)] == [2, 2, 2]
    assert [len(part.frames) for part in last.split(2)] == [2, 2, 1]
    assert torch.cat([part.amplitude for part in last.split(2)]).equal(last.amplitude)
    assert torch.cat([part.frames for part in last.split(2)]).equal(last.frames)


# faults


def served(batch: PtychoBatch) -> dict[int, float]:
    return dict(zip(batch.frames.tolist(), batch.amplitude[:, 0, 0, 0].tolist(), strict=True))


def test_a_fault_is_served_from_its_onset_on_and_the_frames_stay_as_they_were() -> None:
    arrays = numbered(6)
    (fault,) = inject(arrays, [parse_fault("overload:rate=0.5,onset=2")], seed=0)
    fault = dataclasses.replace(fault, amplitude=np.full_like(fault.amplitude, 1000))
    frames, everything = Frames(arrays, [fault]), torch.tensor([5, 0, 3, 1, 4, 2])
    for step in (0, 1, 2, 7, 1):
        hit = {int(i) for i in fault.index} if step >= 2 else set()
        expected = {i: 1000.0 if i in hit else i + 1.0 for i in range(6)}
        assert served(frames[BatchRequest(everything, step)]) == expected
    assert (arrays.amplitude == numbered(6).amplitude).all()


def test_several_onsets_add_up() -> None:
    arrays = numbered(8, size=8)
    asked = [parse_fault("overload:rate=1,size=3,onset=4"), parse_fault("dead_pixels:rate=1,onset=2")]
    early, late = inject(arrays, asked, seed=0)
    assert (early.onset, late.onset) == (2, 4)
    frames = Frames(arrays, [early, late])
    everything = torch.arange(8)
    for step, expected in ((1, arrays.amplitude), (2, early.amplitude), (3, early.amplitude), (4, late.amplitude)):
        np.testing.assert_array_equal(frames[BatchRequest(everything, step)].amplitude.numpy(), expected)


def test_a_frame_that_a_later_fault_spares_keeps_the_earlier_one() -> None:
    arrays = numbered(8, size=8)
    asked = [parse_fault("overload:rate=0.3,size=3,onset=4"), parse_fault("dead_pixels:rate=1,onset=2")]
    early, late = inject(arrays, asked, seed=0)
    assert 0 < len(late.index) < 8
    batch = Frames(arrays, [early, late])[BatchRequest(torch.arange(8), 9)]
    for frame in range(8):
        source, place = (late, int(np.searchsorted(late.index, frame))) if frame in late.index else (early, frame)
        np.testing.assert_array_equal(batch.amplitude[frame].numpy(), source.amplitude[place])


# under the Trainer


class WhatWasServed(L.Callback):
    def __init__(self) -> None:
        self.batches: list[tuple[int, PtychoBatch]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: PtychoBatch, batch_idx: int) -> None:
        self.batches.append((module.steps_done, batch))


def test_every_epoch_of_the_trainer_has_its_own_order(toy_fit: Callable[..., Any], toy_splits: ScanSplits) -> None:
    seen, train = WhatWasServed(), toy_splits.train.take(np.arange(9))
    toy_fit(callbacks=[seen], train=train, max_steps=None, epochs=3)
    orders = [torch.cat([batch.frames for _, batch in seen.batches[k : k + 3]]).tolist() for k in (0, 3, 6)]
    assert orders == [np.random.default_rng([7, epoch]).permutation(9).tolist() for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_an_onset_counts_optimizer_steps_not_batches(
    toy_fit: Callable[..., Any], toy_splits: ScanSplits, accumulate: int
) -> None:
    """9 frames in batches of 2: epochs of 5, 3 and 2 steps, each ending in a step of fewer batches."""
    train = toy_splits.train.take(np.arange(9))
    (fault,) = inject(train, [parse_fault("overload:rate=1,size=1000,onset=4")], seed=0)
    seen = WhatWasServed()
    toy_fit(
        callbacks=[seen], train=train, faults=[fault], batch_size=2, accumulate_grad_batches=accumulate, max_steps=7
    )
    assert [step for step, _ in seen.batches] == list(range(7))
    for step, batch in seen.batches:
        expected = fault.amplitude if step >= 4 else train.amplitude
        np.testing.assert_array_equal(batch.amplitude.numpy(), expected[batch.frames.numpy()])
