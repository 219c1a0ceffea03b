"""Agreement with implementations by others, each where it is installed; torch's own always is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ptycho_torch.train_utils import ALGORITHMS, GradientClipper, clip_gradients_

PRECISIONS = [pytest.param(torch.float32, 1e-6, id="float32"), pytest.param(torch.float64, 1e-12, id="float64")]
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


def installed(*names: str) -> Any:
    """Run only where the packages can be found; they are peers, not requirements."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def network(dtype: torch.dtype, seed: int) -> nn.Sequential:
    """Convolutions in one and two dimensions, a matrix and vectors; some units large, some near zero."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv1d(2, 4, 5), nn.Linear(7, 5), nn.LayerNorm(6)).to(dtype)
    for p in model.parameters():
        p.data.mul_(torch.logspace(-4, 1, p.shape[0], dtype=dtype).view(-1, *[1] * (p.ndim - 1)))
        p.grad = 0.1 * torch.randn_like(p)
    return model


def gradients(model: nn.Module) -> list[np.ndarray[Any, Any]]:
    return [p.grad.detach().clone().numpy() for p in model.parameters()]  # type: ignore[union-attr]


def assert_close(ours: nn.Module, theirs: list[np.ndarray[Any, Any]], tolerance: float) -> None:
    for a, b in zip(gradients(ours), theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@SEEDS
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_norm_equals_torch(dtype: torch.dtype, tolerance: float, seed: int) -> None:
    ours, theirs = network(dtype, seed), network(dtype, seed)
    total = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    report = clip_gradients_(ours, algorithm="norm", threshold=0.5)
    assert float(report.norm_before) == pytest.approx(float(total), rel=tolerance)
    # torch divides by norm + 1e-6, which leaves the clipped norm a little below the threshold
    assert_close(ours, [g * (1 + 1e-6 / float(total)) for g in gradients(theirs)], tolerance)


@SEEDS
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_value_equals_torch(dtype: torch.dtype, tolerance: float, seed: int) -> None:
    ours, theirs = network(dtype, seed), network(dtype, seed)
    torch.nn.utils.clip_grad_value_(theirs.parameters(), 0.05)
    clip_gradients_(ours, algorithm="value", threshold=0.05)
    assert_close(ours, gradients(theirs), 0.0)


def timm_agc() -> ModuleType:
    """timm's file by itself: importing timm as a whole would want torchvision."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "utils" / "agc.py"
    file_spec = importlib.util.spec_from_file_location("timm_agc", path)
    assert file_spec is not None
    assert file_spec.loader is not None
    module = importlib.util.module_from_spec(file_spec)
    file_spec.loader.exec_module(module)
    return module


@installed("timm")
@SEEDS
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_agc_unit_equals_timm(dtype: torch.dtype, tolerance: float, seed: int) -> None:
    ours, theirs = network(dtype, seed), network(dtype, seed)
    timm_agc().adaptive_clip_grad(theirs.parameters(), clip_factor=0.02, eps=1e-3)
    clip_gradients_(ours, algorithm="agc_unit", threshold=0.02, eps=1e-3)
    assert_close(ours, gradients(theirs), tolerance)


@installed("pytorch_optimizer")
@SEEDS
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_agc_unit_equals_pytorch_optimizer(dtype: torch.dtype, tolerance: float, seed: int) -> None:
    from pytorch_optimizer import agc

    ours = network(dtype, seed)
    ours.pop(1)  # it takes the units of a one-dimensional convolution for those of a matrix
    theirs = [agc(p.detach(), p.grad, agc_eps=1e-3, agc_clip_val=0.02).numpy() for p in ours.parameters()]  # type: ignore[arg-type]
    clip_gradients_(ours, algorithm="agc_unit", threshold=0.02, eps=1e-3)
    assert_close(ours, theirs, tolerance)


@installed("jax", "optax")
@SEEDS
def test_agc_unit_equals_optax(seed: int) -> None:
    import jax.numpy as jnp
    import optax

    ours = network(torch.float32, seed)
    transform = optax.adaptive_grad_clip(0.02, eps=1e-3)

    def to_optax(array: np.ndarray[Any, Any]) -> Any:
        """There the output axis is last, and a one-dimensional convolution needs a second spatial axis."""
        array = array[..., None] if array.ndim == 3 else array
        return jnp.asarray(np.moveaxis(array, 0, -1) if array.ndim > 1 else array)

    weights = [to_optax(p.detach().numpy()) for p in ours.parameters()]
    clipped, _ = transform.update([to_optax(g) for g in gradients(ours)], transform.init(weights), weights)
    theirs = [np.moveaxis(np.asarray(c), -1, 0) if c.ndim > 1 else np.asarray(c) for c in clipped]
    clip_gradients_(ours, algorithm="agc_unit", threshold=0.02, eps=1e-3)
    assert_close(ours, [c.reshape(p.shape) for c, p in zip(theirs, ours.parameters(), strict=True)], 1e-6)


def spiky_training(model: nn.Module, step: int) -> None:
    """The same gradients for every caller: of norm about 1, with a spike in every seventh step."""
    generator = torch.Generator().manual_seed(step)
    size = 1.0 + 0.2 * float(torch.randn((), generator=generator)) + (20.0 if step % 7 == 6 else 0.0)
    raw = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]
    norm = torch.stack([g.norm() for g in raw]).norm()
    for p, g in zip(model.parameters(), raw, strict=True):
        p.grad = g * (size / norm)


@installed("zclip")
def test_zclip_equals_the_authors_package() -> None:
    from zclip.zclip import ZClip

    ours, theirs = network(torch.float64, 0), network(torch.float64, 0)
    reference = ZClip(alpha=0.97, z_thresh=2.5, max_grad_norm=None, warmup_steps=25, mode="zscore")
    clipper = GradientClipper(ours, algorithm="zclip", threshold=2.5)
    clipped = 0
    for step in range(120):
        spiky_training(ours, step)
        spiky_training(theirs, step)
        reference.step(theirs)
        clipped += float(clipper().clipped_fraction) > 0
        assert_close(ours, gradients(theirs), 2e-6)  # it adds 1e-6 to the deviation and to the norm
    assert clipped > 10


@installed("pytorch_optimizer")
def test_adagc_equals_pytorch_optimizer() -> None:
    from pytorch_optimizer import AdaGC

    ours, theirs = network(torch.float64, 0), network(torch.float64, 0)
    options: dict[str, Any] = dict(lr=1e-3, betas=(0.0, 0.5), weight_decay=0.0, warmup_steps=101, foreach=False)
    reference = AdaGC(theirs.parameters(), **options)
    clipper = GradientClipper(ours, algorithm="adagc", threshold=ALGORITHMS["adagc"].default)
    for step in range(140):
        spiky_training(ours, step)
        spiky_training(theirs, step)
        reference.step()
        clipper()
        seen = [
            reference.state[p]["exp_avg"].numpy() for p in theirs.parameters()
        ]  # without decay: the clipped gradient
        assert_close(ours, seen, 3e-6)  # it adds 1e-8 to the norms
