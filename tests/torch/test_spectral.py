"""The spectral layer against a slow twin that walks the frequencies one by one in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ptycho_torch.generators.spectral import SpectralConv2d
from ptycho_torch.train_utils import GradientClipper

SHAPES = [(8, 3), (8, 4), (9, 3), (9, 4), (12, 99), (5, 2), (2, 4), (3, 1)]  # (pixels, modes asked for)


def layer_and_images(size: int, modes: int, channels: tuple[int, int] = (2, 3)) -> tuple[SpectralConv2d, Tensor]:
    torch.manual_seed(size * 100 + modes)
    layer = SpectralConv2d(*channels, modes, size)
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))
    return layer, torch.randn(4, channels[0], size, size)


def twin(images: Tensor, weight: Tensor, size: int) -> Tensor:
    """Take each kept frequency (ky, kx) of every image and multiply it by that frequency's matrix."""
    spectrum = torch.fft.rfft2(images.double())
    mixed = torch.zeros(len(images), len(weight), size, size // 2 + 1, dtype=torch.complex128)
    m1 = weight.shape[2] // 2
    for ky in range(-m1, m1):
        for kx in range(weight.shape[3]):
            matrix = weight[:, :, ky if ky >= 0 else 2 * m1 + ky, kx].to(torch.complex128)
            mixed[:, :, ky % size, kx] = torch.einsum("bi,oi->bo", spectrum[:, :, ky % size, kx], matrix)
    return torch.fft.irfft2(mixed, s=(size, size))


@pytest.mark.parametrize(("size", "modes"), SHAPES)
def test_it_equals_the_twin(size: int, modes: int) -> None:
    layer, images = layer_and_images(size, modes)
    expected = twin(images, layer.weight, size)
    torch.testing.assert_close(layer(images).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "modes"), SHAPES)
def test_its_gradient_equals_the_twins(size: int, modes: int) -> None:
    layer, images = layer_and_images(size, modes)
    cotangent = torch.randn(4, 3, size, size)
    weight = layer.weight.detach().to(torch.complex128).requires_grad_()
    (twin(images, weight, size) * cotangent).sum().backward()
    (layer(images) * cotangent).sum().backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad.to(torch.complex64), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("ky", "row"), [(1, 1), (-1, 5), (2, 2), (-2, 4), (-3, 3), (0, 0)])
def test_upward_and_downward_waves_have_weights_of_their_own(ky: int, row: int) -> None:
    layer, _ = layer_and_images(8, 3, channels=(1, 1))
    y, x = np.mgrid[:8, :8] / 8
    wave = torch.from_numpy(np.cos(2 * np.pi * (ky * y + 2 * x))).float()[None, None]
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, row, 2] = 3.0
    torch.testing.assert_close(layer(wave), 3 * wave, rtol=1e-5, atol=1e-5)
    if ky:
        mirrored = torch.from_numpy(np.cos(2 * np.pi * (-ky * y + 2 * x))).float()[None, None]
        assert layer(mirrored).abs().max() < 1e-5


def test_frequencies_that_are_not_kept_are_left_out() -> None:
    layer, _ = layer_and_images(16, 3, channels=(1, 1))
    y, x = np.mgrid[:16, :16] / 16
    for ky, kx in ((3, 1), (4, 0), (0, 3), (-4, 1), (8, 8)):
        wave = torch.from_numpy(np.cos(2 * np.pi * (ky * y + kx * x))).float()[None, None]
        assert layer(wave).abs().max() < 1e-5


def test_it_is_a_convolution() -> None:
    layer, images = layer_and_images(8, 3)
    shifted = layer(images.roll((3, -2), dims=(-2, -1)))
    torch.testing.assert_close(shifted, layer(images).roll((3, -2), dims=(-2, -1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "modes"), SHAPES)
def test_only_reachable_modes_are_allocated(size: int, modes: int) -> None:
    kept = min(modes, size // 2)
    assert SpectralConv2d(2, 3, modes, size).weight.shape == (3, 2, 2 * kept, kept)


@pytest.mark.parametrize(("size", "modes"), SHAPES)
def test_every_weight_that_counts_receives_a_gradient(size: int, modes: int) -> None:
    torch.manual_seed(0)
    layer = SpectralConv2d(2, 3, modes, size)
    images = torch.randn(4, 2, size, size)
    (layer(images) * torch.randn(4, 3, size, size)).sum().backward()
    moved = torch.view_as_real(layer.weight.grad).abs() > 1e-6
    counted = torch.view_as_real(layer.weight.detach()) != 0
    assert torch.equal(moved, counted)
    assert moved.any(-1).all()


def test_the_initial_weights_follow_the_published_scale() -> None:
    for channels in (2, 8):
        weight = torch.view_as_real(SpectralConv2d(channels, channels, 4, 16).weight.detach())
        assert weight.min() >= 0
        assert 0.9 / channels**2 < weight.max() <= 1 / channels**2


def test_an_image_of_another_size_is_refused() -> None:
    layer = SpectralConv2d(1, 1, 2, 8)
    with pytest.raises(ValueError, match="built for images of 8 px, got 16 x 16"):
        layer(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="got 8 x 6"):
        layer(torch.zeros(1, 1, 8, 6))


def test_a_units_norm_is_the_norm_of_its_spatial_kernel() -> None:
    """Parseval: a horizontal frequency above zero stands for itself and its conjugate."""
    layer, _ = layer_and_images(8, 3)
    with torch.no_grad():
        layer.weight[..., 0] = 0
        deltas = torch.zeros(2, 2, 8, 8)
        deltas[0, 0, 0, 0] = deltas[1, 1, 0, 0] = 1
        kernels = layer(deltas)  # (I, O, H, W)
    layer.weight.grad = layer.weight.detach().clone()
    unit_norms = GradientClipper(layer, algorithm="agc_unit", threshold=1e9)().unit_norms
    expected = (kernels.double() ** 2).sum(dim=(0, 2, 3)).sqrt() * 8 / 2**0.5
    torch.testing.assert_close(unit_norms, expected, rtol=1e-5, atol=0)


def test_half_precision_stops_at_its_door() -> None:
    layer, images = layer_and_images(12, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = layer(images.bfloat16())
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), layer(images.bfloat16().float()), rtol=1e-2, atol=1e-2)
