"""The GPUs of this machine, and how many trainings fit. Plain numbers; torch is not asked, since it takes seconds."""

from __future__ import annotations

import collections
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"
MEMORY_PER_WORKER = 1 << 30  # of a small training; torch alone takes a third of it


def visible_gpus(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Names of the GPUs that a process may use, as CUDA_VISIBLE_DEVICES has them."""
    if VISIBLE in environment:
        return tuple(name.strip() for name in environment[VISIBLE].split(",") if name.strip() not in ("", "-1"))
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    listed = subprocess.run([command, "--list-gpus"], capture_output=True, text=True, check=False)
    found = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")] if listed.returncode == 0 else []
    return tuple(str(number) for number in range(len(found)))


def workers_that_fit(cores: int, threads: int, memory_bytes: int, gpus: int, gpus_per_run: float) -> int:
    """Trainings at a time: no more than cores, memory or GPUs hold, and at least one.

    >>> workers_that_fit(cores=16, threads=2, memory_bytes=64 << 30, gpus=0, gpus_per_run=1)
    8
    >>> workers_that_fit(cores=16, threads=2, memory_bytes=64 << 30, gpus=2, gpus_per_run=0.25), workers_that_fit(
    ...     cores=64, threads=1, memory_bytes=64 << 30, gpus=2, gpus_per_run=1)
    (8, 2)

    Args:
        cores, memory_bytes, gpus: what the machine has.
        threads, gpus_per_run: what one training takes; no GPUs means that it takes none.
    """
    fit = [cores // threads, memory_bytes // MEMORY_PER_WORKER]
    if gpus:
        fit.append(runs_on(gpus, gpus_per_run))
    return max(1, min(fit))


def runs_on(gpus: int, gpus_per_run: float) -> int:
    """Trainings that so many GPUs hold; one that takes half a GPU or less is not spread over two.

    >>> runs_on(4, 0.3), runs_on(4, 2.0)
    (12, 2)
    """
    if gpus_per_run >= 1:
        return int(gpus / gpus_per_run)
    return gpus * int(1 / gpus_per_run + 1e-9)


def least_used(gpus: Sequence[str], taken: Sequence[str | None]) -> str | None:
    """The GPU that fewest workers have; None where there is none."""
    used = collections.Counter(taken)
    return min(gpus, key=lambda name: used[name], default=None)
