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
    """Every pass a new permutation of the frames, a function of (seed, number of the pass) alone.

    A pass begins where the one before ended, so that one number says where a training is.

    Args:
        n_frames: frames to serve.
        batch_size: frames per batch; the last batch of a pass may be smaller.
        seed: of the order.

    Attributes:
        position: batches handed out so far; so the next one's number, and the optimizer step it serves.
    """

    def __init__(self, n_frames: int, batch_size: int, seed: int) -> None:
        self.n_frames, self.batch_size, self.seed = n_frames, batch_size, seed
        self.position = 0

    def __len__(self) -> int:
        return -(-self.n_frames // self.batch_size)

    def __iter__(self) -> Iterator[BatchRequest]:
        epoch, first = divmod(self.position, len(self))
        order = torch.from_numpy(np.random.default_rng([self.seed, epoch]).permutation(self.n_frames))
        for frames in order.split(self.batch_size)[first:]:
            self.position += 1
            yield BatchRequest(frames, self.position - 1)


class ResumableLoader(DataLoader[PtychoBatch]):
    """Batches of a :class:`SeededBatches`; its state tells the Trainer that a training can go on within an epoch."""

    sampler: SeededBatches

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint needs to go on with the next batch."""
        return {"position": self.sampler.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.sampler.position = state_dict["position"]


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
    batches = [BatchRequest(frames, 0) for frames in torch.arange(arrays.n_frames).split(batch_size)]
    return DataLoader(Frames(arrays), sampler=batches, batch_size=None)
