"""How much disk a study needs, asked before it starts: better refused now than full at night."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from ptycho.errors import InputError
from study.design import RunSpec
from study.settings import RunSettings

BYTES_PER_STEP = 500  # its line of JSON (about 260), its row in steps.parquet and in the run's trace
BYTES_PER_RUN = 100_000  # specification, result, validations, their copies in the store
BYTES_PER_PIXEL = 2 * (8 + 8 + 4)  # reconstruction, truth and weight, and the copy in the store
BYTES_PER_FRAME_PIXEL = 4 + 8  # amplitude and the object under the frame
FOR_THE_REPORT = 20_000_000


def space_needed(specs: Sequence[RunSpec]) -> int:
    """Bytes that so many runs will write at most, roughly: records, results, frames, checkpoints, report."""
    datasets = {(s.settings.seed, s.settings.N, s.settings.object_size): s.settings for s in specs}
    return FOR_THE_REPORT + sum(_run(spec.settings) for spec in specs) + sum(map(_dataset, datasets.values()))


def require_space(out: Path, specs: Sequence[RunSpec]) -> None:
    """Refuse a study that its disk cannot hold.

    Raises:
        InputError: less is free than the runs need.
    """
    needed, free = space_needed(specs), shutil.disk_usage(out).free
    if free < needed:
        raise InputError(
            f"out: {out} has {_megabytes(free)} free, but {len(specs)} runs need about {_megabytes(needed)}; "
            "allowed: another folder, or less to keep"
        )


def planned_steps(settings: RunSettings) -> int:
    """Optimizer steps of a run; where epochs say it, for a simulated scan and roughly."""
    return settings.max_steps or settings.epochs * -(-_frames(settings) // settings.batch_size)


def _run(settings: RunSettings) -> int:
    records = BYTES_PER_STEP * planned_steps(settings) + BYTES_PER_RUN + BYTES_PER_PIXEL * settings.object_size**2
    return records + (0 if settings.checkpoint_every is None else _checkpoints(settings))


def _frames(settings: RunSettings) -> int:
    """Frames of a simulated training scan."""
    per_axis = max(1, (settings.object_size - settings.N) // (settings.outer_offset_train // 2) + 1)
    return per_axis**2


def _dataset(settings: RunSettings) -> int:
    return BYTES_PER_FRAME_PIXEL * 2 * _frames(settings) * settings.N**2


def _checkpoints(settings: RunSettings) -> int:
    """Two files and one that is being written, each of weights and two moments of them."""
    weights = 0
    for level in range(settings.fno_blocks):
        channels, modes = settings.fno_width << level, min(settings.fno_modes, max(1, settings.N >> (level + 1)))
        weights += 4 * modes**2 * channels**2
    return 3 * 3 * 4 * weights


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
