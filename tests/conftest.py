"""Test data for the tests of tables, statistics, reports and faults: study folders as a study leaves them.

Losses, gradients and images are invented, but shaped like those of real runs: a failed run's loss climbs to
that of a constant object and its gradient dies, a plateau stays at the mean patch.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

# the same examples every time, however busy the machine is
hypothesis.settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="module", autouse=True)
def own_litter(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where a module may leave pipes and stores to the garbage collector, it does so before the next module begins."""
    yield
    if "ResourceWarning" in repr(getattr(request.module, "pytestmark", "")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


ALGORITHMS = {"none": None, "norm": 1.0, "value": 0.01, "agc": 0.01, "agc_unit": 0.01}
REGIMES = {
    "control": dict(optimizer="adam", learning_rate=3e-3, loss="mae", baselines=(0.365, 0.2925, 0.046)),
    "overload": dict(optimizer="adam", learning_rate=3e-3, loss="poisson", baselines=(0.163, 0.099, 0.0003)),
    "rate_0.3": dict(optimizer="sgd", learning_rate=0.3, loss="poisson", baselines=(0.163, 0.099, 0.0003)),
    "rate_1.0": dict(optimizer="sgd", learning_rate=1.0, loss="poisson", baselines=(0.163, 0.099, 0.0003)),
}
# ok / plateau / failed of eight
COUNTS = {
    "control": {"none": (6, 2, 0), "norm": (6, 2, 0), "value": (5, 3, 0), "agc": (6, 2, 0), "agc_unit": (6, 2, 0)},
    "overload": {"none": (0, 2, 6), "norm": (7, 1, 0), "value": (8, 0, 0), "agc": (8, 0, 0), "agc_unit": (8, 0, 0)},
    "rate_0.3": {"none": (0, 0, 8), "norm": (2, 5, 1), "value": (5, 3, 0), "agc": (7, 1, 0), "agc_unit": (8, 0, 0)},
    "rate_1.0": {"none": (0, 1, 7), "norm": (0, 0, 8), "value": (1, 1, 6), "agc": (6, 2, 0), "agc_unit": (7, 1, 0)},
}
WORDS = ("ok", "plateau", "failed")
StudyWriter = Callable[..., Path]


def outcomes_of(counts: tuple[int, int, int]) -> list[str]:
    """One outcome a replicate; the same replicates are the weak ones in every arm."""
    return [word for word, n in zip(reversed(WORDS), reversed(counts), strict=True) for _ in range(n)]


def write_run(
    out: Path,
    *,
    regime: str,
    algorithm: str,
    replicate: int,
    outcome: str,
    steps: int = 60,
    side: int = 24,
    truth: bool = True,
    reconstruction: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """One run folder; ``changes`` replace columns of its result (or ``realised`` settings by that key)."""
    facts = REGIMES.get(regime, REGIMES["overload"])
    rng = np.random.default_rng(sum(map(ord, regime + algorithm)) * 1000 + replicate)
    baselines = facts["baselines"]
    failed_at = int(rng.integers(steps // 4, steps // 2)) if outcome == "failed" else None
    n = min(steps, failed_at + steps // 6) if failed_at else steps
    loss = _loss(rng, n, outcome, failed_at, baselines)
    run_id = f"{regime}-{algorithm}-{changes.get('learning_rate', '')}-{changes.get('fno_blocks', '')}-{replicate}"
    run_id = "".join(c if c.isalnum() or c in "-_." else "_" for c in run_id + changes.get("suffix", ""))
    changes.pop("suffix", None)
    folder = out / "runs" / run_id
    folder.mkdir(parents=True)
    steps_rows = _step_rows(rng, loss, algorithm, failed_at, facts["learning_rate"])
    evals = [
        dict(
            step=s,
            val_loss=float(loss[s - 1]),
            amp_spread=1e-5 if failed_at and s > failed_at else 0.4,
            phase_spread=0.3,
        )
        for s in range(10, n + 1, 10)
    ]
    threshold = ALGORITHMS.get(algorithm)
    pre = np.array([row["grad_norm_preclip"] for row in steps_rows])
    realised = {
        "gradient_clip_algorithm": algorithm, "gradient_clip_val": threshold, "torch_loss_mode": facts["loss"],
        "N": 32, "batch_size": 4, "max_steps": steps, "momentum": 0.9, **changes.pop("realised", {}),
    }  # fmt: skip
    if "fno_blocks" in changes:
        realised["fno_blocks"] = changes.pop("fno_blocks")
    row = {
        "run_id": run_id, "regime": regime, "algorithm": algorithm, "threshold": threshold,
        "architecture": "hybrid", "optimizer": facts["optimizer"], "learning_rate": facts["learning_rate"],
        "replicate": replicate, "seed_init": 2**63 + replicate, "seed_order": 100 + replicate, "seed_data": 7,
        "outcome": outcome, "reason": "collapsed" if outcome == "failed" else None, "failed_at_step": failed_at,
        "steps": n, "wall_s": 2.5 + rng.random(),
        "val_loss_final": float(loss[-1]), "val_loss_best": float(loss.min()),
        "baseline_constant": baselines[0], "baseline_mean_patch": baselines[1],
        "baseline_oracle": baselines[2] if truth else None,
        "amp_ssim": float(0.9 * np.exp(-loss[-1])), "phase_ssim": float(0.8 * np.exp(-loss[-1])),
        "amp_mae": float(loss[-1]), "phase_mae": 0.2, "frc50": 0.4,
        "grad_norm_median": float(np.median(pre)), "grad_norm_p99": float(np.quantile(pre, 0.99)),
        "grad_norm_max": float(pre.max()), "clipped_fraction": 0.0 if algorithm == "none" else 0.3,
        "stall_ratio": 0.02 if outcome == "failed" else 0.5, "update_ratio_p99": 0.02, "spikes": 3,
        "ensemble_size": 10, "n_parameters": 95_000, "dataset_digest": "d" * 32,
        "git_commit": "abc1234", "study_version": "0.1.0",
        **changes,
    }  # fmt: skip
    spec_keys = ("regime", "algorithm", "threshold", "replicate", "architecture", "optimizer", "learning_rate")
    spec = {"run_id": run_id, "name": f"{regime}/{algorithm}/{replicate}", **{k: row[k] for k in spec_keys}}
    (folder / "spec.json").write_text(json.dumps({**spec, "settings": realised, "study_version": "0.1.0"}))
    (folder / "steps.jsonl").write_text("".join(json.dumps(r) + "\n" for r in steps_rows))
    (folder / "evals.jsonl").write_text("".join(json.dumps(r) + "\n" for r in evals))
    (folder / "result.json").write_text(json.dumps({**row, "realised": realised}))
    if reconstruction:
        _write_reconstruction(folder / "reconstruction.npz", rng, side, outcome, truth)
    return row


def _loss(
    rng: np.random.Generator, n: int, outcome: str, failed_at: int | None, baselines: tuple[float, float, float]
) -> np.ndarray:
    floor = {"ok": 0.35, "plateau": 1.0, "failed": 0.6}[outcome] if outcome in WORDS else 0.5
    floor = baselines[2] + floor * rng.uniform(0.9, 1.1) * (baselines[1] - baselines[2])
    step = np.arange(n)
    loss = floor + (baselines[0] * 1.5 - floor) * np.exp(-step / max(n / 6, 1))
    loss *= np.exp(0.08 * rng.standard_normal(n))
    if failed_at is not None:
        loss[failed_at:] = baselines[0] * (1.0 + 40 * np.exp(-np.arange(n - failed_at)))
    return loss


def _step_rows(
    rng: np.random.Generator, loss: np.ndarray, algorithm: str, failed_at: int | None, rate: float
) -> list[dict[str, Any]]:
    pre = 3.0 * loss / loss[0] * np.exp(0.4 * rng.standard_normal(len(loss)))
    pre[rng.random(len(loss)) < 0.02] *= 300.0
    if failed_at is not None:
        pre[failed_at] = 5e4
        pre[failed_at + 1 :] = 1e-6
    clipped = np.zeros(len(loss)) if algorithm == "none" else np.clip(0.3 + 0.1 * rng.standard_normal(len(loss)), 0, 1)
    post = pre if algorithm == "none" else np.minimum(pre, 1.0)
    return [
        dict(
            step=i + 1, loss=float(loss[i]), grad_norm_preclip=float(pre[i]), grad_norm_postclip=float(post[i]),
            clipped_fraction=float(clipped[i]), update_ratio=0.01, weight_norm=30.0, learning_rate=rate,
        )
        for i in range(len(loss))
    ]  # fmt: skip


def _write_reconstruction(path: Path, rng: np.random.Generator, side: int, outcome: str, truth: bool) -> None:
    y, x = np.mgrid[:side, :side] / side
    spokes = np.cos(12 * np.arctan2(y - 0.5, x - 0.5)) > 0
    true = ((1 + spokes) * np.exp(0.6j * spokes)).astype(np.complex64)
    noise = rng.standard_normal((2, side, side))
    blur = {"ok": 0.15, "plateau": 0.6}.get(outcome)
    image = np.full_like(true, 1.0) if blur is None else true + blur * (noise[0] + 1j * noise[1])
    weight = np.zeros((side, side), np.float32)
    weight[2:-2, 2:-2] = 1
    arrays = dict(reconstruction=(image * 1.7 * np.exp(1.1j)).astype(np.complex64), weight=weight)
    np.savez(path, **arrays, **({"truth": true} if truth else {}))


def write_study_json(
    out: Path, regimes: Sequence[str], algorithms: Sequence[str], searched: Sequence[str] = (), **changes: Any
) -> None:
    """``study.json`` alone; the regimes that only search something are named in ``searched``."""
    out.mkdir(parents=True, exist_ok=True)
    study = {
        "study_id": "a1b2c3", "study_version": "0.1.0", "preset": "default", "created": "2026-02-01T12:00:00+00:00",
        "title": "Which clipping keeps the network alive?",
        "regimes": [
            {"name": r, "description": f"The {r} regime.", "evidence": r not in searched} for r in regimes
        ],
        "algorithms": [{"name": a, "threshold": ALGORITHMS.get(a)} for a in algorithms],
        "replicates": 8, "control": "none", "command": "python -m study.shootout", **changes,
    }  # fmt: skip
    (out / "study.json").write_text(json.dumps(study))


def write_study_folder(
    out: Path,
    counts: Mapping[str, Mapping[str, tuple[int, int, int]]] | None = None,
    *,
    study: Mapping[str, Any] | None = None,
    **run_options: Any,
) -> Path:
    """A study folder with the given ok / plateau / failed counts per regime and algorithm."""
    counts = COUNTS if counts is None else counts
    algorithms = list(dict.fromkeys(a for arms in counts.values() for a in arms))
    write_study_json(out, list(counts), algorithms, **(study or {}))
    for regime, arms in counts.items():
        for algorithm, numbers in arms.items():
            for replicate, outcome in enumerate(outcomes_of(numbers)):
                write_run(
                    out, regime=regime, algorithm=algorithm, replicate=replicate, outcome=outcome, **run_options
                )  # fmt: skip
    return out


@pytest.fixture(scope="session", name="write_study_folder")
def _write_study_folder() -> StudyWriter:
    """Writer of a study folder made of invented runs."""
    return write_study_folder


@pytest.fixture(scope="session", name="write_run")
def _write_run() -> Callable[..., dict[str, Any]]:
    """Writer of one invented run folder."""
    return write_run


@pytest.fixture(scope="session", name="write_study_json")
def _write_study_json() -> Callable[..., None]:
    """Writer of ``study.json``."""
    return write_study_json


@pytest.fixture(scope="session")
def default_study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four regimes, five algorithms, eight replicates, with the outcomes of the prototype; read-only."""
    return write_study_folder(tmp_path_factory.mktemp("study"))


MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Make a folder that every process of the suite shares: the first to need it makes it, the others wait for it."""
    own = tmp_path_factory.getbasetemp()
    base = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = base / f"shared-{name}", base / f"shared-{name}.done"
        with (base / f"shared-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def empty_store(made_once: MadeOnce) -> Path:
    """A store with its schema and nothing in it, to be copied; making one takes seconds."""

    def fill(folder: Path) -> None:
        code = "import sys; from mlflow import MlflowClient; MlflowClient(sys.argv[1]).search_experiments()"
        subprocess.run([sys.executable, "-c", code, f"sqlite:///{folder}/empty.db"], check=True, capture_output=True)

    return made_once("store", fill) / "empty.db"


@pytest.fixture
def new_store(empty_store: Path, tmp_path: Path) -> Path:
    """A store of the test's own, at ``store.db`` beside its folder's other files."""
    return Path(shutil.copy(empty_store, tmp_path / "store.db"))


OF_A_STORE = ("MLFLOW_TRACKING", "MLFLOW_RUN", "MLFLOW_EXPERIMENT")
Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def call() -> Call:
    """Call a command as ``python -m study.NAME`` does, but in this process, which has loaded already what it needs."""

    def run(
        name: str, *arguments: str, cwd: Path, store: Path | None = None, columns: int = 80
    ) -> subprocess.CompletedProcess[str]:
        heard = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        out, err, status = io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*found in sys.modules after import", RuntimeWarning)
            for category in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):  # as Python itself does
                warnings.simplefilter("ignore", category)
            for variable in [variable for variable in os.environ if variable.startswith(OF_A_STORE)]:
                patch.delenv(variable)
            if store is not None:
                patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
            patch.setenv("COLUMNS", str(columns))
            patch.chdir(cwd)
            patch.setattr(sys, "argv", [f"study.{name}", *arguments])
            try:
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    runpy.run_module(f"study.{name}", run_name="__main__", alter_sys=True)
            except SystemExit as end:
                status = int(end.code or 0)
            finally:
                for number, handler in heard.items():
                    signal.signal(number, handler)
        return subprocess.CompletedProcess([name, *arguments], status, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def forgotten_afterwards() -> Iterator[None]:
    """Algorithms, networks and faults that a test registers are gone after it."""
    from ptycho.config import plugins
    from ptycho.config.algorithms import ALGORITHMS
    from ptycho.config.config import ARCHITECTURES
    from ptycho.fault_kinds import FAULTS
    from ptycho_torch.clipping.rules import RULES
    from ptycho_torch.generators import NETWORKS

    tables: list[Any] = [ALGORITHMS, ARCHITECTURES, FAULTS, RULES, NETWORKS, plugins.ORIGINS, plugins._loaded]
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)
