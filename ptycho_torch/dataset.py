"""Training frames as resident tensors, served in a seeded order, with faults that set in at a step.

The training loader serves all frames of one optimizer step at once; the training step splits them
where gradients are accumulated. So the Trainer counts steps, not batches: a validation never falls
between two batches of one step, and the last, smaller step of an epoch needs no bookkeeping.

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

    def split(self, batch_size: int) -> list[PtychoBatch]:
        """Batches of at most ``batch_size`` frames, in order."""
        parts = zip(self.amplitude.split(batch_size), self.frames.split(batch_size), strict=True)
        return [PtychoBatch(amplitude, frames) for amplitude, frames in parts]


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

    Attributes:
        epoch: number of the pass, from 0.
        served: batches of the epoch that were handed out, 0 once all were.
        resume_at: first batch of the next pass, for that pass only.
    """

    def __init__(self, n_frames: int, batch_size: int, seed: int | None) -> None:
        self.n_frames, self.batch_size, self.seed = n_frames, batch_size, seed
        self.epoch = self.served = self.resume_at = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.n_frames // self.batch_size)

    def __iter__(self) -> Iterator[BatchRequest]:
        order = self._order()
        first, self.resume_at = self.resume_at, 0
        for k in range(first, len(self)):
            self.served = (k + 1) % len(self)
            yield BatchRequest(order[k * self.batch_size : (k + 1) * self.batch_size], self.epoch * len(self) + k)

    def _order(self) -> Tensor:
        if self.seed is None:
            return torch.arange(self.n_frames)
        rng = np.random.default_rng([self.seed, self.epoch])
        return torch.from_numpy(rng.permutation(self.n_frames))


class ResumableLoader(DataLoader[PtychoBatch]):
    """Batches of a :class:`SeededBatches`; its state lets a training that stopped within an epoch go on there."""

    sampler: SeededBatches

    def state_dict(self) -> dict[str, int]:
        """The batches that this epoch has handed out; the Trainer puts it into a checkpoint."""
        return {"served": self.sampler.served}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Make the next pass begin behind those batches."""
        self.sampler.resume_at = state_dict["served"]


def training_loader(
    arrays: PtychoArrays,
    faults: Sequence[FaultyFrames],
    batch_size: int,
    seed: int,
    batches_per_step: int = 1,
) -> ResumableLoader:
    """Shuffled training frames, faults included: ``batches_per_step`` batches together make one optimizer step."""
    sampler = SeededBatches(arrays.n_frames, batch_size * batches_per_step, seed)
    return ResumableLoader(Frames(arrays, faults), sampler=sampler, batch_size=None)


def evaluation_loader(arrays: PtychoArrays, batch_size: int) -> DataLoader[PtychoBatch]:
    """The frames in order, without faults."""
    return DataLoader(Frames(arrays), sampler=SeededBatches(arrays.n_frames, batch_size, None), batch_size=None)
