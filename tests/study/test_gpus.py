"""GPUs: which there are, how many trainings they hold, and which of them a worker sees."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from study.engines import Job
from study.gpus import least_used, runs_on, visible_gpus, workers_that_fit
from study.local_engine import LocalEngine

GIB = 1 << 30


@pytest.mark.parametrize(
    ("machine", "fit"),
    [
        (dict(cores=16, threads=1, memory_bytes=64 * GIB, gpus=0, gpus_per_run=1.0), 16),
        (dict(cores=16, threads=4, memory_bytes=64 * GIB, gpus=0, gpus_per_run=1.0), 4),
        (dict(cores=16, threads=1, memory_bytes=5 * GIB, gpus=0, gpus_per_run=1.0), 5),
        (dict(cores=16, threads=1, memory_bytes=64 * GIB, gpus=2, gpus_per_run=1.0), 2),
        (dict(cores=16, threads=1, memory_bytes=64 * GIB, gpus=2, gpus_per_run=0.25), 8),
        (dict(cores=4, threads=1, memory_bytes=64 * GIB, gpus=2, gpus_per_run=0.25), 4),
        (dict(cores=16, threads=1, memory_bytes=64 * GIB, gpus=8, gpus_per_run=4.0), 2),
        (dict(cores=1, threads=8, memory_bytes=GIB // 2, gpus=1, gpus_per_run=2.0), 1),
    ],
)
def test_as_many_workers_as_cores_memory_and_gpus_hold(machine: dict[str, float], fit: int) -> None:
    assert workers_that_fit(**machine) == fit  # type: ignore[arg-type]


def test_a_share_of_a_gpu_is_not_spread_over_two() -> None:
    assert [runs_on(3, share) for share in (0.1, 0.4, 0.6, 1.0, 2.0)] == [30, 6, 3, 3, 1]


def test_a_worker_is_given_the_gpu_that_fewest_have() -> None:
    assert least_used(("a", "b"), [None, "a"]) == "b"
    assert least_used((), []) is None


@pytest.mark.parametrize(("said", "names"), [("", ()), ("-1", ()), ("0", ("0",)), ("2, GPU-abc", ("2", "GPU-abc"))])
def test_what_the_environment_shows_counts(said: str, names: tuple[str, ...]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": said}) == names


@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("echo 'GPU 0: A (UUID: x)'; echo 'GPU 1: A (UUID: y)'", ("0", "1")),
        ("echo 'No devices were found'; exit 6", ()),
    ],
)
def test_otherwise_the_driver_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, names: tuple[str, ...]
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_gpus({}) == names


def meet(folder: str, others: int) -> str | None:
    """What this worker sees, once so many workers are here."""
    (Path(folder) / str(os.getpid())).touch()
    deadline = time.monotonic() + 120
    while len(list(Path(folder).iterdir())) < others and time.monotonic() < deadline:
        time.sleep(0.01)
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_workers_are_spread_over_the_gpus(tmp_path: Path) -> None:
    with LocalEngine(3, 1, None, os.environ, (), gpus=("4", "7")) as pool:
        seen = [ended.value for ended in pool.run([Job(str(k), meet, (str(tmp_path), 3)) for k in range(3)])]
    assert sorted(seen) == ["4", "4", "7"]
