"""Training frames as resident tensors, served in a seeded order, with faults that set in at a step.

Shape legend: b frames of a batch, C stacked neighbours, N pixels a side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ptycho.arrays import PtychoArrays
from ptycho.faults import FaultyFrames


class PtychoBatch(NamedTuple):
    """One batch: amplitude (b, C, N, N) float32 in model units, frames (b,) int64 their numbers."""

    amplitude: Tensor
    frames: Tensor


class BatchRequest(NamedTuple):
    """The numbers (b,) of one batch's frames and the optimizer step that they serve."""

    frames: Tensor
    step: int


class Frames(Dataset[PtychoBatch]):
    """The frames of one scan; from a fault's onset on, the frames that it hit."""

    def __init__(self, arrays: PtychoArrays, faults: Sequence[FaultyFrames] = ()) -> None:
        self.amplitude = torch.from_numpy(np.ascontiguousarray(arrays.amplitude))
        self.faults = [
            (fault.onset, torch.from_numpy(fault.index), torch.from_numpy(fault.amplitude)) for fault in faults
        ]

    def __len__(self) -> int:
        return self.amplitude.shape[0]

    def __getitem__(self, request: BatchRequest) -> PtychoBatch:
        amplitude = self.amplitude[request.frames]
        for onset, hit, faulty in self.faults:
            if request.step >= onset:
                row, which = (request.frames[:, None] == hit[None, :]).nonzero(as_tuple=True)
                amplitude[row] = faulty[which]
        return PtychoBatch(amplitude, request.frames)


class SeededBatches(Sampler[BatchRequest]):
    """Every epoch a new permutation of the frames, a function of (seed, epoch) alone.

    Args:
        n_frames: frames to serve.
        batch_size: frames per batch; the last batch of an epoch may be smaller.
        seed: of the order; None serves the frames as they stand.
        batches_per_step: batches that make one optimizer step.
    """

    def __init__(self, n_frames: int, batch_size: int, seed: int | None, batches_per_step: int = 1) -> None:
        self.n_frames, self.batch_size = n_frames, batch_size
        self.seed, self.batches_per_step = seed, batches_per_step
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.n_frames // self.batch_size)

    def __iter__(self) -> Iterator[BatchRequest]:
        order = self._order()
        steps_per_epoch = -(-len(self) // self.batches_per_step)
        for k in range(len(self)):
            step = self.epoch * steps_per_epoch + k // self.batches_per_step
            yield BatchRequest(order[k * self.batch_size : (k + 1) * self.batch_size], step)

    def _order(self) -> Tensor:
        if self.seed is None:
            return torch.arange(self.n_frames)
        rng = np.random.default_rng([self.seed, self.epoch])
        return torch.from_numpy(rng.permutation(self.n_frames))


def training_loader(
    arrays: PtychoArrays,
    faults: Sequence[FaultyFrames],
    batch_size: int,
    seed: int,
    batches_per_step: int = 1,
) -> DataLoader[PtychoBatch]:
    """Shuffled batches of the training frames, faults included."""
    sampler = SeededBatches(arrays.n_frames, batch_size, seed, batches_per_step)
    return DataLoader(Frames(arrays, faults), sampler=sampler, batch_size=None)


def evaluation_loader(arrays: PtychoArrays, batch_size: int) -> DataLoader[PtychoBatch]:
    """The frames in order, without faults."""
    return DataLoader(Frames(arrays), sampler=SeededBatches(arrays.n_frames, batch_size, None), batch_size=None)
