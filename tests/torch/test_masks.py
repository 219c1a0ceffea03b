"""Masked pixels of the detector: whatever they hold, no gradient, baseline or score knows of it."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho.arrays import PtychoArrays, ScanSplits
from ptycho.cache import load_split, save_split
from ptycho.faults import inject, parse_fault
from ptycho_torch.baselines import compute_baselines
from ptycho_torch.losses import LOSSES, LossScale
from study.grid_lines_torch_runner import run_torch_inference, run_torch_training
from study.quality import compute_metrics
from study.run_config import TorchRunnerConfig
from study.run_frames import load_splits
from study.seeds import seeds_of

MASK = np.ones((16, 16), bool)
MASK[2, 3] = MASK[8, 8:11] = MASK[:, 15] = False


def masked(arrays: PtychoArrays, value: float, place: Any = ~MASK) -> PtychoArrays:
    """A scan with the mask, whose detector read ``value`` at ``place``."""
    amplitude = arrays.amplitude.copy()
    amplitude[..., place] = value
    return dataclasses.replace(arrays, amplitude=amplitude, mask=MASK)


@pytest.fixture
def outcome(toy_files: tuple[Path, Path, Path], toy_config: Callable[..., TorchRunnerConfig], tmp_path: Path) -> Any:
    """Train for real on files whose frames a function changes; weights, baselines, score of the test frames."""

    def run(change: Callable[[PtychoArrays], PtychoArrays], loss: str) -> dict[str, Any]:
        paths = {f"{name}_npz": str(tmp_path / f"{name}.npz") for name in ("train", "validation", "test")}
        for source, path in zip(toy_files, paths.values(), strict=True):
            save_split(path, change(load_split(source)), {})
        cfg = toy_config(**paths, torch_loss_mode=loss, fault=("overload:rate=0.5,onset=1",))
        splits = load_splits(cfg)
        baselines = compute_baselines(splits, loss)
        shutil.rmtree(cfg.output_dir, ignore_errors=True)
        trained = run_torch_training(cfg, splits, baselines, seeds_of(cfg.seed), Path(cfg.output_dir))
        quality = compute_metrics(functools.partial(run_torch_inference, trained.module), splits)
        return {
            "weights": [p.detach().tolist() for p in trained.module.parameters()],
            "losses": [record.loss for record in trained.recorder.steps],
            "baselines": dataclasses.astuple(baselines),
            "r_factor": quality.scores["r_factor"],
        }

    return run


@pytest.mark.parametrize("loss", LOSSES)
def test_a_training_does_not_know_what_masked_pixels_hold(outcome: Any, loss: str) -> None:
    quiet = outcome(lambda arrays: masked(arrays, 0.0), loss)
    assert outcome(lambda arrays: masked(arrays, 1e6), loss) == quiet
    other = outcome(lambda arrays: masked(arrays, 3.0, (5, 5)), loss)
    assert all(other[name] != quiet[name] for name in quiet)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_gradient_reaches_a_masked_pixel(toy_splits: ScanSplits, loss: str) -> None:
    train = masked(toy_splits.train, 0.0)
    predicted = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    LOSSES[loss](predicted, torch.from_numpy(train.amplitude[:4]), LossScale.of(train)).sum().backward()
    assert predicted.grad is not None
    assert not predicted.grad[..., ~torch.from_numpy(MASK)].any()
    assert predicted.grad[..., torch.from_numpy(MASK)].all()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_the_mean_over_the_good_pixels(toy_splits: ScanSplits, loss: str) -> None:
    train = masked(toy_splits.train, 0.0)
    scale, good = LossScale.of(train), torch.from_numpy(MASK)
    predicted, measured = torch.rand(4, 1, 16, 16), torch.from_numpy(train.amplitude[:4])
    alone = dataclasses.replace(scale, mask=None)
    expected = LOSSES[loss](predicted[..., good][..., None, :], measured[..., good][..., None, :], alone)
    torch.testing.assert_close(LOSSES[loss](predicted, measured, scale), expected)
    assert scale.amplitude == pytest.approx(train.amplitude[..., MASK].mean(), rel=1e-6)
    assert scale.intensity == pytest.approx((train.amplitude[..., MASK] ** 2).mean(), rel=1e-6)


def test_a_mask_of_good_pixels_alone_changes_nothing_but_rounding(toy_splits: ScanSplits) -> None:
    all_good = dataclasses.replace(toy_splits.train, mask=np.ones((16, 16), bool))
    predicted, measured = torch.rand(4, 1, 16, 16), torch.from_numpy(all_good.amplitude[:4])
    for loss in LOSSES.values():
        plain = loss(predicted, measured, LossScale.of(toy_splits.train))
        torch.testing.assert_close(loss(predicted, measured, LossScale.of(all_good)), plain)


def test_faults_do_not_show_in_masked_pixels(toy_splits: ScanSplits) -> None:
    train = masked(toy_splits.train, 0.0)
    for name in ("nan_frame:size=1", "hot_pixels", "beam_dump"):
        (fault,) = inject(train, [parse_fault(name)], 0)
        assert not fault.amplitude[..., ~MASK].any()
        assert fault.amplitude[..., MASK].any()
