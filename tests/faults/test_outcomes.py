"""Faults of single runs: each ends with its word, and what is refused is refused before anything is trained."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.cache import cached_grid_lines
from ptycho.config.config import DataConfig
from ptycho.errors import InputError
from study.design import RunSpec
from study.disk import require_space, space_needed
from study.engines import Ended, Job
from study.grid_lines_torch_runner import run_grid_lines_torch
from study.local_engine import LocalEngine
from study.run_config import TorchRunnerConfig
from study.settings import RunSettings

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def toy_run(tmp_path: Path) -> Callable[..., TorchRunnerConfig]:
    data = DataConfig(object_size=48, n_lines=20, validation_fraction=0.2)
    files = dict(
        zip(("train_npz", "validation_npz", "test_npz"), cached_grid_lines(data, 16, 1, 0, tmp_path), strict=True)
    )
    toy: dict[str, Any] = {name: str(path) for name, path in files.items()}
    toy |= {"N": 16, "fno_width": 4, "fno_modes": 3, "fno_blocks": 2, "batch_size": 4, "max_steps": 6, "eval_every": 3}
    return lambda **changes: TorchRunnerConfig(**{**toy, "output_dir": str(tmp_path / "run"), **changes})


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(1, 1, 240.0, ENVIRONMENT) as pool:
        yield pool


def train_with_files_of_at_most(cfg: TorchRunnerConfig, limit_bytes: int) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
    try:
        return run_grid_lines_torch(cfg)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def train_with_memory_for(cfg: TorchRunnerConfig, more_bytes: int) -> dict[str, Any]:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more_bytes, resource.RLIM_INFINITY))
    try:
        return run_grid_lines_torch(cfg)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def eat_memory_in(group: str) -> int:
    (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    return int(np.ones(1 << 28, dtype=np.uint8).sum())


def only(ended: Iterator[Ended]) -> Ended:
    (one,) = ended
    return one


def test_a_loss_that_is_nan_at_step_0_is_a_result(toy_run: Callable[..., TorchRunnerConfig]) -> None:
    result = run_grid_lines_torch(toy_run(fault=("nan_frame:rate=1,onset=0",)))
    assert (result["outcome"], result["reason"], result["failed_at_step"]) == ("failed", "nonfinite", 0)


def test_a_training_under_a_memory_limit_ends_as_oom(
    engine: LocalEngine, toy_run: Callable[..., TorchRunnerConfig]
) -> None:
    cfg = toy_run(fno_width=256, fno_blocks=3)
    ended = only(engine.run([Job("x", train_with_memory_for, (cfg, 64 << 20))]))
    assert ended.value["outcome"] == "oom", ended.value
    assert json.loads((Path(cfg.output_dir) / "result.json").read_text())["outcome"] == "oom"


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of 128 MB, where one can be made."""
    group = MEMORY_GROUPS / "study-test-of-memory"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(128 << 20))
    except OSError:
        pytest.skip("no memory control group can be made here")
    yield group
    with contextlib.suppress(OSError):
        group.rmdir()


def test_a_worker_that_the_kernel_kills_for_memory_ends_as_oom(engine: LocalEngine, small_group: Path) -> None:
    ended = only(engine.run([Job("x", eat_memory_in, (str(small_group),))]))
    assert ended.outcome is not None
    assert (ended.outcome.word, ended.again) == ("oom", False), ended.message
    assert ended.message.endswith("for want of memory")


def test_a_full_disk_is_no_outcome(engine: LocalEngine, toy_run: Callable[..., TorchRunnerConfig]) -> None:
    cfg = toy_run()
    with pytest.raises(OSError, match="File too large") as caught:
        list(engine.run([Job("x", train_with_files_of_at_most, (cfg, 1000))]))
    assert caught.value.errno == errno.EFBIG
    assert not (Path(cfg.output_dir) / "result.json").exists()


def test_a_crash_and_a_hang_are_results() -> None:
    with LocalEngine(2, 1, 5.0, ENVIRONMENT, ()) as pool:
        ended = {
            e.job.key: e for e in pool.run([Job("hang", signal.pause, ()), Job("crash", signal.raise_signal, (11,))])
        }
    words = {key: e.outcome.word for key, e in ended.items() if e.outcome is not None}
    assert words == {"hang": "timeout", "crash": "error"}


def specs(n: int, **settings: Any) -> list[RunSpec]:
    return [RunSpec(regime="r", settings=RunSettings(seed=k, **settings)) for k in range(n)]


def test_the_space_that_is_asked_for_grows_with_what_is_written() -> None:
    few = space_needed(specs(1, max_steps=100))
    assert space_needed(specs(10, max_steps=100)) > few
    assert space_needed(specs(1, max_steps=100_000)) > few + 100_000 * 300
    assert space_needed(specs(1, max_steps=100, checkpoint_every=10)) > few + 2 * 3 * 4 * 1_000_000


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path) -> None:
    require_space(tmp_path, specs(1, max_steps=10))
    much = specs(1, max_steps=shutil.disk_usage(tmp_path).free // 100)
    with pytest.raises(InputError, match=r"out: .* has [\d,]+ MB free, but 1 runs need about [\d,]+ MB; allowed"):
        require_space(tmp_path, much)


def test_a_study_on_a_disk_that_is_too_small_trains_nothing(toy_study: Any, tmp_path: Path) -> None:
    out = tmp_path / "small"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(out)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no disk of its own can be mounted here")
    try:
        study = toy_study(tmp_path / "study", 1, out=out)
        status, stderr = study.end_of(study.start())
        assert status == 2
        assert stderr.count("\n") == 1
        assert "MB free, but 2 runs need about" in stderr
        assert not list(out.glob("runs/*"))
    finally:
        subprocess.run(["umount", "--lazy", str(out)], check=True)
