"""The study's command, as its users run it: real processes, real trainings, a real store, at toy size.

Where it does not matter that the command has a process of its own, it is called in this one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from ptycho.config.algorithms import ALGORITHMS
from ptycho.config.config import DataConfig
from ptycho.simulate import simulate_grid_lines

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*path_separator.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ROOT = Path(__file__).resolve().parents[2]
TOY = (
    *("--preset", "smoke", "--seeds", "2", "--N", "16", "--object-size", "48", "--n-lines", "20"),
    *("--fno-width", "4", "--fno-modes", "3", "--fno-blocks", "2", "--max-steps", "20", "--eval-every", "10"),
    *("--validation-fraction", "0.2", "--ensemble", "3"),  # a group in four
)
REQUIRED_COLUMNS = (
    *("run_id", "regime", "algorithm", "threshold", "architecture", "optimizer", "learning_rate", "replicate"),
    *("seed_init", "seed_order", "seed_data", "outcome", "reason", "failed_at_step", "steps", "wall_s"),
    *("val_loss_final", "val_loss_best", "baseline_constant", "baseline_mean_patch", "baseline_oracle"),
    *("amp_ssim", "phase_ssim", "amp_mae", "phase_mae", "frc50", "grad_norm_median", "grad_norm_p99"),
    *("grad_norm_max", "clipped_fraction", "stall_ratio", "update_ratio_p99", "spikes", "ensemble_size"),
    *("n_parameters", "dataset_digest", "git_commit", "study_version"),
)
Command = subprocess.CompletedProcess[str]
Shootout = Callable[..., Command]
MAY_VARY = ["wall_s", "git_commit"]


@pytest.fixture
def shootout(call: Shootout, empty_store: Path) -> Shootout:
    """Call the command in this process; a store that is not there is made."""

    def inside(*arguments: str, cwd: Path, store: Path | None = None) -> Command:
        if store is not None and not store.exists():
            shutil.copy(empty_store, store)
        return call("shootout", *arguments, cwd=cwd, store=store)

    return inside


def apart(*arguments: str, cwd: Path, store: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    return subprocess.run(
        [sys.executable, "-m", "study.shootout", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


class Finished:
    """A finished toy study."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.store = folder, folder / "out", folder / "store.db"
        self.command = (*TOY, "--workers", "2", "--out", str(self.out))
        self.process = apart(*self.command, cwd=folder, store=self.store)

    def runs(self) -> pd.DataFrame:
        return pd.read_csv(self.out / "runs.csv")

    def results(self) -> dict[str, int]:
        return {p.parent.name: p.stat().st_mtime_ns for p in self.out.glob("runs/*/result.json")}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("study"))


def test_the_study_ends_well_and_says_where_the_report_is(study: Finished) -> None:
    assert study.process.returncode == 0, study.process.stderr
    assert f"report: {study.out / 'report.html'}" in study.process.stdout
    assert "overload" in study.process.stdout
    assert "12/12 runs" in study.process.stderr


def test_it_leaves_every_file_that_its_users_rely_on(study: Finished) -> None:
    for name in ("report.html", "report.md", "runs.csv", "steps.parquet", "summary.json", "study.json"):
        assert (study.out / name).stat().st_size > 0, name
    assert list(study.out.glob("figures/*.png"))
    runs = study.runs()
    assert set(REQUIRED_COLUMNS) <= set(runs.columns)
    assert len(runs) == 2 * 3 * 2
    steps = pd.read_parquet(study.out / "steps.parquet")
    assert {"run_id", "step", "loss", "grad_norm_preclip", "grad_norm_postclip", "clipped_fraction"} <= set(steps)
    assert {"update_ratio", "learning_rate"} <= set(steps)
    assert steps.groupby("run_id").size().to_dict() == runs.set_index("run_id")["steps"].to_dict()


def test_the_summary_has_one_entry_per_arm(study: Finished) -> None:
    summary = json.loads((study.out / "summary.json").read_text())
    arms = {(arm["regime"], arm["algorithm"]): arm for arm in summary["arms"]}
    assert set(arms) == {(r, a) for r in ("control", "overload") for a in ("none", "norm", "agc")}
    for arm in arms.values():
        assert arm["n"] == 2
        assert arm["n_ok"] + arm["n_plateau"] + arm["n_failed"] == 2
        assert 0 <= arm["p_fail_low"] <= arm["p_fail"] <= arm["p_fail_high"] <= 1
        assert {"p_vs_control", "rmst", "val_loss_iqm", "amp_ssim_median"} <= set(arm)
    assert summary["verdict"]


def test_the_arms_of_a_replicate_are_paired(study: Finished) -> None:
    for _, runs in study.runs().groupby("replicate"):
        for seed in ("seed_init", "seed_order", "seed_data", "dataset_digest"):
            assert len(set(runs[seed])) == 1
    assert study.runs().groupby("algorithm")["seed_init"].nunique().eq(2).all()
    steps = pd.read_parquet(study.out / "steps.parquet")
    first = steps[steps.step == 0].merge(study.runs()[["run_id", "regime", "algorithm", "replicate"]], on="run_id")
    assert first.groupby(["regime", "replicate"])["loss"].nunique().eq(1).all()
    clipped = first[(first.regime == "overload") & (first.algorithm == "agc")]
    assert (clipped.grad_norm_postclip < clipped.grad_norm_preclip).all()


def test_mlflow_has_one_parent_and_one_child_per_run(study: Finished) -> None:
    client = MlflowClient(f"sqlite:///{study.store}")
    experiment = client.get_experiment_by_name("stability-shootout")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert len(children) == 12
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in found} == {"FINISHED"}
    assert {run.info.run_name for run in children} == {
        f"{r}/{a}/{k}" for r in ("control", "overload") for a in ("none", "norm", "agc") for k in (0, 1)
    }
    agc = next(run for run in children if run.info.run_name == "overload/agc/0")
    assert agc.data.params["gradient_clip_algorithm"] == "agc"
    assert float(agc.data.params["gradient_clip_val"]) == 0.01
    assert {"train/loss", "val/loss", "grad_norm/preclip", "grad_norm/postclip", "lr"} <= set(agc.data.metrics)
    assert {"grad_norm/clipped_fraction", "divergence/loss_ratio", "divergence/update_ratio"} <= set(agc.data.metrics)
    assert agc.data.tags["study.outcome"] in ("ok", "plateau", "failed")
    assert all(np.isfinite(value) and abs(value) < 1e300 for run in found for value in run.data.metrics.values())
    assert "report.html" in {item.path for item in client.list_artifacts(parent.info.run_id)}
    default = client.get_experiment("0")
    assert not client.search_runs([default.experiment_id], run_view_type=ViewType.ALL)


def test_the_same_command_again_trains_nothing(study: Finished, shootout: Shootout) -> None:
    before, stamp = study.results(), (study.out / "report.html").stat().st_mtime_ns
    again = shootout(*study.command, cwd=study.folder, store=study.store)
    assert again.returncode == 0, again.stderr
    assert study.results() == before
    assert (study.out / "report.html").stat().st_mtime_ns > stamp
    assert "12 of them finished before" in again.stderr
    client = MlflowClient(f"sqlite:///{study.store}")
    experiment = client.get_experiment_by_name("stability-shootout")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id], max_results=1000)) == 13


def test_runs_that_were_cut_short_are_run_again_and_the_numbers_are_the_same_bit_for_bit(
    study: Finished, shootout: Shootout
) -> None:
    before, finished = study.runs(), study.results()
    victims = set(before.loc[before["regime"] == "control", "run_id"])
    for victim in victims:
        (study.out / "runs" / victim / "result.json").unlink()
    again = shootout(*study.command, cwd=study.folder, store=study.store)
    assert again.returncode == 0, again.stderr
    changed = {name for name, stamp in study.results().items() if finished[name] != stamp}
    assert changed == victims
    pd.testing.assert_frame_equal(study.runs().drop(columns=MAY_VARY), before.drop(columns=MAY_VARY), check_exact=True)


def test_all_nine_algorithms_meet_in_one_study(shootout: Shootout, tmp_path: Path) -> None:
    arms = [flag for name in ALGORITHMS for flag in ("--algo", name)]
    toy = [*TOY, *arms, "--seeds", "1", "--regime", "overload", "--fault", "overload:rate=0.5,size=1000,onset=5"]
    process = shootout(*toy, "--out", str(tmp_path / "out"), cwd=tmp_path, store=tmp_path / "s.db")
    assert process.returncode == 0, process.stderr
    runs = pd.read_csv(tmp_path / "out" / "runs.csv", keep_default_na=False).set_index("algorithm")
    assert set(runs.index) == set(ALGORITHMS)
    assert set(runs["outcome"]) <= {"ok", "plateau", "failed"}
    losses = runs["val_loss_final"].astype(str)
    assert losses["agc"] != losses["agc_unit"] != losses["norm"] != losses["value"] != losses["none"]


def test_a_study_that_is_ended_goes_on_where_it_was_left(
    study: Finished, shootout: Shootout, new_store: Path, tmp_path: Path
) -> None:
    """Told to end, then killed. In another folder and with one worker its numbers are those of the other study."""
    command = [*TOY, "--workers", "1", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{new_store}"}

    def results() -> dict[str, int]:
        return {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("out/runs/*/result.json")}

    for how in (signal.SIGTERM, signal.SIGKILL):
        kept = results()
        with subprocess.Popen(
            [sys.executable, "-m", "study.shootout", *command], cwd=tmp_path, env=environment, stderr=subprocess.PIPE
        ) as process:
            deadline = time.monotonic() + 300
            while len(results()) == len(kept) and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(how)
            _, err = process.communicate(timeout=300)
        assert kept.items() <= results().items()
        assert len(kept) < len(results()) < 12
        if how is signal.SIGTERM:
            assert process.returncode == 130
            assert b"interrupted; everything finished so far is kept" in err
            assert b"Traceback" not in err
    kept = results()
    again = shootout(*command, cwd=tmp_path, store=new_store)
    assert again.returncode == 0, again.stderr
    assert kept.items() <= results().items()
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "out" / "runs.csv").drop(columns=MAY_VARY),
        study.runs().drop(columns=MAY_VARY),
        check_exact=True,
    )
    found = MlflowClient(f"sqlite:///{new_store}").search_runs(["1"], max_results=1000)
    assert not [run.info.run_name for run in found if run.info.status == "RUNNING"]


def test_a_run_that_dies_does_not_take_the_study_with_it(shootout: Shootout, tmp_path: Path) -> None:
    """A network too large for any memory: every run is an outcome, and the study still reports."""
    toy = [*TOY, "--fno-width", str(2**21), "--fno-modes", "1", "--seeds", "1", "--algo", "agc", "--regime", "control"]
    process = shootout(*toy, "--out", str(tmp_path / "out"), cwd=tmp_path, store=tmp_path / "s.db")
    assert process.returncode == 0, process.stderr
    runs = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert runs["outcome"].tolist() == ["oom"]
    assert (tmp_path / "out" / "report.html").exists()


def write_scan(path: Path, frames: int = 40, size: int = 16, **changes: Any) -> Path:
    """A small scan in the NPZ format of tike."""
    data = DataConfig(object_size=64, n_lines=20, nphotons=1e5, probe="gaussian", outer_offset_train=12)
    train = simulate_grid_lines(data, size, 1, 0).train.take(np.arange(frames))
    content: dict[str, Any] = {
        "data": np.fft.ifftshift(np.round(train.counts()[:, 0]), axes=(-2, -1))[None],
        "scan": train.positions_px[:, 0][None],
        "probe": train.probe[None, None, None],
    }
    np.savez(path, **{**content, **changes})
    return path


def write_cxi(path: Path) -> Path:
    """The same scan as a beamline may write it: raw 24 px frames, metres, joules, a dead pixel, no probe."""
    with np.load(write_scan(path.with_suffix(".npz"), size=24)) as scan:
        frames, positions_px = np.fft.fftshift(scan["data"][0], axes=(1, 2)).astype(np.uint32), scan["scan"][0]
    frames[:, 2, 3] = 2**32 - 1
    with h5py.File(path, "w") as file:
        file["entry_1/data_1/data"] = frames
        pixel_m = 1e-10 * 2.0 / (24 * 75e-6)
        file["entry_1/data_1/translation"] = positions_px[:, ::-1] * pixel_m
        file["entry_1/instrument_1/detector_1/distance"] = 2.0
        file["entry_1/instrument_1/source_1/wavelength"] = 1e-10
    return path


def test_a_real_scan_is_trained_and_reconstructed_without_a_truth(shootout: Shootout, tmp_path: Path) -> None:
    scan = write_cxi(tmp_path / "scan.cxi")
    process = shootout(
        *("--preset", "real", "--data", str(scan), "--algo", "none", "--algo", "agc", "--seeds", "1"),
        *("--pixel-size-um", "75", "--scan-crop", "16"),
        *("--fno-width", "4", "--fno-modes", "3", "--fno-blocks", "2", "--max-steps", "2", "--eval-every", "2"),
        *("--out", str(tmp_path / "out")),
        cwd=tmp_path,
        store=tmp_path / "s.db",
    )
    assert process.returncode == 0, process.stderr
    runs = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert len(runs) == 2
    assert runs["amp_ssim"].isna().all()
    assert runs["r_factor"].notna().all()
    run = tmp_path / "out" / "runs" / runs.loc[0, "run_id"]
    assert (run / "reconstruction.npz").exists()
    realised = json.loads((run / "result.json").read_text())["realised"]
    assert realised["scan_object_pixel_nm"] == pytest.approx(1e-10 * 2 / (16 * 75e-6) * 1e9)
    assert (realised["scan_format"], realised["scan_crop_px"], realised["scan_probe_source"]) == (
        "CXI",
        16,
        "estimated",
    )


BAD_INPUT = {
    "unknown algorithm": (("--algo", "agd"), "algo: unknown value 'agd'; known: none, norm"),
    "unknown preset": (("--preset", "smok"), "preset: unknown value 'smok'"),
    "unknown regime": (("--regime", "calm"), "regime: unknown value 'calm'"),
    "unknown architecture": (("--architecture", "unet"), "architecture: unknown value 'unet'"),
    "threshold not a number": (("--threshold", "nan"), "nan is not a finite number"),
    "threshold of one arm": (("--algo", "agc=inf"), "threshold of agc: 'inf'; allowed: finite numbers above 0"),
    "threshold that does not clip": (("--algo", "none", "--algo", "agc=0"), "threshold of agc: '0'; allowed: finite"),
    "threshold below 0": (("--threshold", "-1"), "threshold of norm: -1.0; allowed: finite numbers above 0"),
    "fresh rounds in a queue": (("--fresh", "--engine", "slurm"), "fresh: with engine slurm"),
    "unknown flag": (("--foo", "3"), "unrecognized arguments: --foo 3"),
    "unknown fault": (("--fault", "rain"), "rain"),
    "too deep": (("--fno-blocks", "7"), "fno_blocks: 7 levels of hybrid do not fit frames of 32 px"),
    "no scan": (("--preset", "real"), "data: the preset real needs a scan"),
    "probe missing": (
        ("--probe", "nowhere.npz", "--probe-defocus", "0", "--dry-run"),
        "probe: 'nowhere.npz' is no file; allowed: disk",
    ),
    "scan missing": (("--preset", "real", "--data", "nowhere.npz"), "nowhere.npz"),
    "folder store": (("--tracking-uri", "file:///tmp/mlruns"), "tracking-uri"),
    "no server": (("--tracking-uri", "http://127.0.0.1:9"), "http://127.0.0.1:9"),
    "folder not writable": (("--out", "/proc/nowhere"), "out: /proc/nowhere cannot be written"),
    "no seeds": (("--seeds", "0"), "seeds: 0 is out of range; allowed: at least 1"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_nothing_is_trained(shootout: Shootout, case: str, tmp_path: Path) -> None:
    arguments, message = BAD_INPUT[case]
    out = () if "--out" in arguments else ("--out", str(tmp_path / "out"))
    process = shootout(*arguments, *out, cwd=tmp_path, store=tmp_path / "s.db")
    assert process.returncode == 2, process.stderr
    assert message in process.stderr
    assert process.stderr.count("\n") == 1, process.stderr
    assert process.stdout == ""
    assert not list(tmp_path.glob("out/runs/*"))


BAD_SCANS = {
    "truncated": lambda path: path.write_bytes(write_scan(path).read_bytes()[:500]),
    "negative counts": lambda path: write_scan(path, data=-np.ones((1, 40, 16, 16), dtype=np.float32)),
    "not finite": lambda path: write_scan(path, data=np.full((1, 40, 16, 16), np.nan, dtype=np.float32)),
    "wrong shape": lambda path: write_scan(path, data=np.ones((40, 16), dtype=np.float32)),
    "positions that do not match": lambda path: write_scan(path, scan=np.zeros((1, 39, 2), dtype=np.float32)),
    "probe of another size": lambda path: write_scan(path, probe=np.ones((1, 1, 1, 32, 32), dtype=np.complex64)),
    "pickled": lambda path: np.savez(path, data=np.array([{}], dtype=object)),
}


@pytest.mark.parametrize("case", BAD_SCANS)
def test_a_bad_scan_is_one_line_that_names_the_file(shootout: Shootout, case: str, tmp_path: Path) -> None:
    scan = tmp_path / "scan.npz"
    BAD_SCANS[case](scan)
    process = shootout("--preset", "real", "--data", str(scan), "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert process.returncode == 2, process.stderr
    assert "scan.npz" in process.stderr
    assert process.stderr.count("\n") == 1, process.stderr


def test_the_scan_and_N_are_checked_against_each_other(shootout: Shootout, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan.npz")
    process = shootout("--preset", "real", "--data", str(scan), "--N", "64", "--out", str(tmp_path / "o"), cwd=tmp_path)
    assert process.returncode == 2
    assert "N: 64 px, but the frames of" in process.stderr


def test_a_folder_with_a_study_of_another_preset_is_refused(study: Finished, shootout: Shootout) -> None:
    process = shootout("--preset", "default", "--out", str(study.out), cwd=study.folder, store=study.store)
    assert process.returncode == 2
    assert "holds a study of preset 'smoke'" in process.stderr
