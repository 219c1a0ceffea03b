"""One training run, from its cached frames to its result, with nothing inside it patched out."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho.arrays import ScanSplits
from ptycho.cache import load_split, save_split
from ptycho.config.algorithms import ALGORITHMS
from ptycho.errors import InputError
from ptycho_torch.config_params import ModelConfig, TrainingConfig
from study.command import run_command
from study.grid_lines_torch_runner import (
    build_parser,
    compute_metrics,
    load_cached_dataset,
    main,
    run_grid_lines_torch,
    run_torch_inference,
    run_torch_training,
    setup_torch_configs,
    to_complex_patches,
)
from study.run_config import TorchRunnerConfig
from study.run_frames import cached_baselines, load_splits
from study.seeds import seeds_of

MakeConfig = Callable[..., TorchRunnerConfig]
RESULT_COLUMNS = {
    *("run_id", "regime", "algorithm", "threshold", "architecture", "optimizer", "learning_rate", "replicate"),
    *("seed_init", "seed_order", "seed_data", "outcome", "reason", "failed_at_step", "steps", "wall_s"),
    *("val_loss_final", "val_loss_best", "baseline_constant", "baseline_mean_patch", "baseline_oracle"),
    *("amp_ssim", "phase_ssim", "amp_mae", "phase_mae", "frc50", "grad_norm_median", "grad_norm_p99"),
    *("grad_norm_max", "clipped_fraction", "stall_ratio", "update_ratio_p99", "spikes", "ensemble_size"),
    *("n_parameters", "dataset_digest", "git_commit", "study_version"),
}


def read_steps(folder: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "steps.jsonl").read_text().splitlines()]


def command(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Run the command's own entry point with these arguments: status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["runner", *arguments])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run_command(main)
    return status, out.getvalue(), err.getvalue()


def flags(cfg: TorchRunnerConfig, *more: str) -> list[str]:
    names = ("train_npz", "validation_npz", "test_npz", "output_dir", "N", "fno_width", "fno_modes", "fno_blocks")
    given = [part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(cfg, name)))]
    return [*given, "--batch-size", "4", "--max-steps", "2", "--eval-every", "1", *more]


def comparable(result: dict[str, Any]) -> str:
    """A result as text, without what two equal runs may differ in."""
    return json.dumps({k: v for k, v in result.items() if k not in ("wall_s", "run_id")})


# configuration


def test_the_defaults_are_those_its_users_know() -> None:
    cfg = TorchRunnerConfig(train_npz="a", test_npz="b", output_dir="c")
    assert (cfg.seed, cfg.epochs, cfg.batch_size, cfg.learning_rate) == (42, 50, 16, 1e-3)
    assert (cfg.gradient_clip_val, cfg.gradient_clip_algorithm) == (1.0, "norm")
    assert (cfg.N, cfg.gridsize, cfg.torch_loss_mode) == (64, 1, "mae")
    assert (cfg.fno_modes, cfg.fno_width, cfg.fno_blocks, cfg.fno_cnn_blocks) == (12, 32, 4, 2)
    assert (cfg.fno_input_transform, cfg.log_grad_norm) == ("none", False)


@pytest.mark.parametrize("missing", ["train_npz", "test_npz", "output_dir"])
def test_the_files_are_required(missing: str) -> None:
    paths = {"train_npz": "a", "test_npz": "b", "output_dir": "c"}
    paths.pop(missing)
    with pytest.raises(TypeError, match=missing):
        TorchRunnerConfig(**paths)


def test_the_torch_configurations_say_what_the_run_says(toy_config: MakeConfig) -> None:
    cfg = toy_config(gradient_clip_algorithm="agc", gradient_clip_val=0.02, optimizer="sgd", fno_modes=2)
    model, training = setup_torch_configs(cfg)
    assert isinstance(model, ModelConfig)
    assert isinstance(training, TrainingConfig)
    assert (model.fno_modes, model.N) == (2, 16)
    assert (training.gradient_clip_algorithm, training.gradient_clip_val, training.optimizer) == ("agc", 0.02, "sgd")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "hybird"}, r"architecture: unknown value 'hybird'; known: cnn, fno.*did you mean 'hybrid'"),
        ({"gradient_clip_algorithm": "agd"}, r"gradient_clip_algorithm: unknown value 'agd'; known: none, norm"),
        ({"gradient_clip_val": math.nan}, r"gradient_clip_val: nan is not a finite number"),
        ({"gradient_clip_val": math.inf}, r"gradient_clip_val: inf is not a finite number"),
        ({"learning_rate": -1.0}, r"learning_rate: -1.0 is out of range; allowed: above 0"),
        ({"batch_size": 0}, r"batch_size: 0 is out of range; allowed: at least 1"),
        ({"optimizer": "adm"}, r"optimizer: unknown value 'adm'.*did you mean 'adam'"),
        ({"fno_blocks": 9}, r"fno_blocks: 9 levels of hybrid do not fit frames of 16 px; allowed: at most 4"),
        ({"fault": ("overlaod",)}, r"overlaod.*overload"),
        ({"epochs": 1.5}, r"epochs: 1.5 is not of type int"),
    ],
)
def test_a_bad_setting_is_one_clear_line(toy_config: MakeConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        toy_config(**changes)
    assert "\n" not in str(refusal.value)


# data


def test_the_cached_frames_load(toy_files: tuple[Path, Path, Path]) -> None:
    arrays = load_cached_dataset(toy_files[0])
    assert arrays.amplitude.shape[1:] == (1, 16, 16)
    assert arrays.patches_true is not None


@pytest.mark.parametrize("key", ["diffraction", "Y_I", "Y_phi", "coords_nominal"])
def test_a_missing_required_key_is_a_key_error(toy_files: tuple[Path, Path, Path], tmp_path: Path, key: str) -> None:
    with np.load(toy_files[0], allow_pickle=False) as stored:
        content = {name: stored[name] for name in stored.files if name != key}
    np.savez(tmp_path / "cut.npz", **content)
    with pytest.raises(KeyError, match=f"Missing required key.*{key}"):
        load_cached_dataset(tmp_path / "cut.npz")


def test_complex_patches_from_pairs() -> None:
    pairs = torch.randn(2, 1, 4, 4, 2)
    assert torch.equal(to_complex_patches(pairs), torch.complex(pairs[..., 0], pairs[..., 1]))


def test_frames_of_another_size_are_refused(toy_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=r"frames have shape.*N=32 and gridsize=1 need"):
        load_splits(toy_config(N=32))


def test_without_validation_frames_a_tenth_of_the_training_frames_is_kept(toy_config: MakeConfig) -> None:
    given = load_splits(toy_config())
    kept = load_splits(toy_config(validation_npz=None))
    assert kept.validation.n_frames == round(given.train.n_frames / 10)
    assert kept.train.n_frames + kept.validation.n_frames == given.train.n_frames
    both = {frame.tobytes() for frame in kept.train.amplitude} & {
        frame.tobytes() for frame in kept.validation.amplitude
    }
    assert not both


def test_baselines_are_computed_once_and_follow_the_frames(
    toy_config: MakeConfig, toy_splits: ScanSplits, tmp_path: Path
) -> None:
    train = tmp_path / "train.npz"
    save_split(train, toy_splits.train, {})
    cfg = toy_config(train_npz=str(train))
    first = cached_baselines(cfg, load_splits(cfg))
    (kept,) = tmp_path.glob("train.baselines-*.json")
    stamp = kept.stat().st_mtime_ns
    assert cached_baselines(cfg, load_splits(cfg)) == first
    assert kept.stat().st_mtime_ns == stamp
    save_split(train, toy_splits.train.take(np.arange(8)), {})
    assert cached_baselines(cfg, load_splits(cfg)) != first


# training


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_real_steps_under_every_algorithm(toy_config: MakeConfig, algorithm: str) -> None:
    threshold = {"value": 1e-4, "norm": 1e-3}.get(algorithm, ALGORITHMS[algorithm].default)  # type: ignore[call-overload, index]
    result = run_grid_lines_torch(toy_config(gradient_clip_algorithm=algorithm, gradient_clip_val=threshold or 1.0))
    steps = read_steps(toy_config().output_dir)
    assert result["steps"] == len(steps) == 2
    assert result["outcome"] in ("ok", "plateau", "failed")
    assert result["algorithm"] == result["realised"]["gradient_clip_algorithm"] == algorithm
    assert all(math.isfinite(row["grad_norm_preclip"]) for row in steps)
    assert all(row["update_ratio"] > 0 for row in steps)
    if algorithm in ("norm", "value", "agc", "agc_unit"):
        assert all(row["grad_norm_postclip"] < row["grad_norm_preclip"] for row in steps)
    if algorithm == "norm":
        assert all(row["grad_norm_postclip"] == pytest.approx(1e-3, rel=1e-5) for row in steps)


def test_a_threshold_of_zero_or_less_is_off(toy_config: MakeConfig, tmp_path: Path) -> None:
    off = [
        run_grid_lines_torch(toy_config(gradient_clip_val=value, output_dir=str(tmp_path / str(value))))
        for value in (None, 0.0, -1.0)
    ]
    unclipped = run_grid_lines_torch(toy_config(gradient_clip_algorithm="none", output_dir=str(tmp_path / "none")))
    for result in off:
        assert result["algorithm"] == "none"
        assert result["threshold"] is None
        assert result["val_loss_final"] == unclipped["val_loss_final"]
        assert result["clipped_fraction"] == 0


def test_the_same_run_twice_gives_the_same_numbers(toy_config: MakeConfig, tmp_path: Path) -> None:
    first, second = (
        run_grid_lines_torch(toy_config(max_steps=5, output_dir=str(tmp_path / name))) for name in ("a", "b")
    )
    assert (tmp_path / "a" / "steps.jsonl").read_bytes() == (tmp_path / "b" / "steps.jsonl").read_bytes()
    assert comparable(first) == comparable(second)


def test_the_seed_changes_weights_and_order(toy_config: MakeConfig, toy_splits: ScanSplits) -> None:
    folder = Path(toy_config().output_dir)
    trained = {}
    for init, order in ((1, 1), (2, 1), (1, 2)):
        seeds = type(seeds_of(0))(init=init, order=order, data=0)
        cfg = toy_config()
        run = run_torch_training(cfg, toy_splits, cached_baselines(cfg, toy_splits), seeds, folder)
        trained[init, order] = [record.loss for record in run.recorder.steps]
    assert trained[1, 1] != trained[2, 1]
    assert trained[1, 1] != trained[1, 2]


def test_a_fault_acts_from_its_onset_on(toy_config: MakeConfig, tmp_path: Path) -> None:
    clean = toy_config(max_steps=4, output_dir=str(tmp_path / "clean"))
    faulty = toy_config(max_steps=4, output_dir=str(tmp_path / "faulty"), fault=("overload:rate=1,size=1000,onset=2",))
    for cfg in (clean, faulty):
        run_grid_lines_torch(cfg)
    before, after = read_steps(clean.output_dir), read_steps(faulty.output_dir)
    assert [row["loss"] for row in before[:2]] == [row["loss"] for row in after[:2]]
    assert after[2]["loss"] > 5 * before[2]["loss"]


def test_frames_that_are_not_finite_fail_the_run_and_end_it(toy_config: MakeConfig) -> None:
    result = run_grid_lines_torch(toy_config(max_steps=30, fault=("nan_frame:rate=1,onset=3",)))
    assert (result["outcome"], result["reason"], result["failed_at_step"]) == ("failed", "nonfinite", 3)
    assert result["steps"] < 30
    assert math.isnan(result["amp_ssim"])


def test_a_network_that_says_one_thing_has_collapsed(toy_config: MakeConfig) -> None:
    result = run_grid_lines_torch(
        toy_config(max_steps=20, optimizer="sgd", learning_rate=30.0, gradient_clip_algorithm="none")
    )
    assert result["outcome"] == "failed"
    assert result["reason"] in ("collapsed", "exploded", "nonfinite")


def test_a_training_that_dies_is_a_result(toy_config: MakeConfig) -> None:
    result = run_grid_lines_torch(toy_config(fno_width=2**21, fno_modes=1))
    assert result["outcome"] == "oom"
    folder = Path(toy_config().output_dir)
    assert json.loads((folder / "result.json").read_text())["outcome"] == "oom"
    assert "Traceback" in (folder / "error.txt").read_text()


# inference and scores


def test_inference_gives_a_patch_and_a_pattern_per_frame(toy_config: MakeConfig, toy_splits: ScanSplits) -> None:
    cfg = toy_config(infer_batch_size=3)
    trained = run_torch_training(cfg, toy_splits, cached_baselines(cfg, toy_splits), seeds_of(0), Path(cfg.output_dir))
    patches, amplitude = run_torch_inference(trained.module, toy_splits.test)
    assert patches.shape == amplitude.shape == toy_splits.test.amplitude.shape
    assert patches.dtype == np.complex64
    assert np.isfinite(amplitude).all()


def test_true_patches_score_full_marks(toy_splits: ScanSplits) -> None:
    def oracle(arrays: Any) -> Any:
        return arrays.patches_true, arrays.amplitude

    quality = compute_metrics(oracle, toy_splits)
    assert quality.scores["amp_ssim"] == pytest.approx(1, abs=1e-4)
    assert quality.scores["phase_ssim"] == pytest.approx(1, abs=1e-4)
    assert quality.scores["r_factor"] == 0


def test_a_real_scan_is_scored_without_a_truth(toy_splits: ScanSplits) -> None:
    parts = {
        name: type(toy_splits.test)(
            amplitude=part.amplitude,
            positions_px=part.positions_px,
            probe=part.probe,
            photons_per_intensity=part.photons_per_intensity,
        )
        for name, part in (
            ("train", toy_splits.train),
            ("validation", toy_splits.validation),
            ("test", toy_splits.test),
        )
    }
    quality = compute_metrics(
        lambda arrays: (np.ones_like(arrays.amplitude) + 0j, arrays.amplitude), ScanSplits(**parts)
    )
    assert math.isnan(quality.scores["amp_ssim"])
    assert quality.stitched is not None
    assert quality.stitched.object.shape >= (32, 32)


# the run as a whole


def test_the_result_has_every_column_and_what_was_realised(toy_config: MakeConfig) -> None:
    result = run_grid_lines_torch(toy_config(gradient_clip_algorithm="agc", gradient_clip_val=0.01))
    assert set(result) >= RESULT_COLUMNS
    assert json.loads((Path(toy_config().output_dir) / "result.json").read_text())["realised"] == result["realised"]
    assert result["realised"]["gradient_clip_val"] == 0.01
    assert result["realised"]["n_parameters"] == result["n_parameters"] > 0
    assert result["baseline_oracle"] < result["baseline_mean_patch"] <= result["baseline_constant"]


def test_a_training_that_ends_while_its_rate_rises_keeps_its_arm(toy_config: MakeConfig) -> None:
    result = run_grid_lines_torch(
        toy_config(learning_rate=0.01, scheduler="warmup_cosine", warmup_steps=50, max_steps=4)
    )
    assert result["learning_rate"] == 0.01, "by which arms are told apart"
    assert result["realised"]["learning_rate"] == pytest.approx(4 / 50 * 0.01)


def test_the_reconstruction_is_kept_beside_the_truth(toy_config: MakeConfig) -> None:
    run_grid_lines_torch(toy_config())
    with np.load(Path(toy_config().output_dir) / "reconstruction.npz", allow_pickle=False) as stored:
        assert stored["reconstruction"].shape == stored["truth"].shape == stored["weight"].shape
        assert stored["reconstruction"].dtype == np.complex64


# the command line


def test_every_setting_has_its_flag() -> None:
    text = build_parser().format_help()
    for flag in (
        "--grad-clip ",
        "--gradient-clip-algorithm",
        "--train-npz",
        "--fno-modes",
        "--log-grad-norm",
        "--fault",
    ):
        assert flag in text
    assert text.index("--grad-clip ") < text.index("--gradient-clip-algorithm")


@pytest.mark.parametrize("algorithm", ["norm", "value", "agc"])
def test_the_flag_reaches_the_optimizer_step(
    toy_config: MakeConfig, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = flags(toy_config(), "--gradient-clip-algorithm", algorithm, "--grad-clip", "0.0001")
    status, out, _ = command(arguments, monkeypatch)
    assert status == 0
    assert "result.json" in out
    result = json.loads((Path(toy_config().output_dir) / "result.json").read_text())
    assert (result["algorithm"], result["threshold"]) == (algorithm, 0.0001)
    first = read_steps(toy_config().output_dir)[0]
    assert first["grad_norm_postclip"] < 0.1 * first["grad_norm_preclip"]


def test_the_flags_make_three_different_trainings(toy_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = set()
    for algorithm in ("norm", "value", "agc"):
        arguments = flags(toy_config(), "--gradient-clip-algorithm", algorithm, "--grad-clip", "0.0001")
        command([*arguments, "--optimizer", "sgd", "--learning-rate", "1"], monkeypatch)
        losses.add(json.loads((Path(toy_config().output_dir) / "result.json").read_text())["val_loss_final"])
    assert len(losses) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--gradient-clip-algorithm", "agcc"), "gradient_clip_algorithm: unknown value 'agcc'"),
        (("--grad-clip", "inf"), "gradient_clip_val: inf is not a finite number"),
        (("--batch-size", "four"), "batch_size: 'four' is not a number of type int"),
        (("--foo", "3"), "unrecognized arguments: --foo 3"),
        (("--train-npz", "nowhere.npz"), "nowhere.npz"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    toy_config: MakeConfig, more: tuple[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = command([*flags(toy_config()), *more], monkeypatch)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (Path(toy_config().output_dir) / "result.json").exists()


def test_a_pickled_file_is_refused(toy_config: MakeConfig, tmp_path: Path, toy_files: tuple[Path, Path, Path]) -> None:
    assert load_split(toy_files[0]).n_frames
    np.savez(tmp_path / "pickled.npz", diffraction=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"pickled\.npz"):
        run_grid_lines_torch(toy_config(train_npz=str(tmp_path / "pickled.npz")))
