"""The forward model against its NumPy twin, and against what physics says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ptycho.simulate import diffraction_intensity
from ptycho_torch.physics import diffract, interaction, measurement, propagation

SIZES = pytest.mark.parametrize("size", [8, 9])


def waves(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.complex128, generator=generator)


@SIZES
@pytest.mark.parametrize("modes", [1, 3])
def test_it_equals_the_simulation(size: int, modes: int) -> None:
    patches, probe = waves(2, 4, size, size), waves(modes, size, size, seed=1)
    expected = diffraction_intensity(patches.numpy(), probe.numpy())
    np.testing.assert_allclose(diffract(patches, probe).numpy(), expected, rtol=1e-12)
    single = diffract(patches.to(torch.complex64), probe.to(torch.complex64))
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-3, atol=1e-4)


@SIZES
def test_energy_is_conserved(size: int) -> None:
    patches, probe = waves(2, 4, size, size), waves(3, size, size, seed=1)
    exit_waves = interaction(patches, probe)
    assert exit_waves.shape == (2, 4, 3, size, size)
    power = (exit_waves.abs() ** 2).sum(dim=(2, 3, 4))
    torch.testing.assert_close(diffract(patches, probe).sum(dim=(2, 3)), power)


@SIZES
def test_a_global_phase_leaves_no_trace(size: int) -> None:
    patches, probe = waves(2, 1, size, size), waves(2, size, size, seed=1)
    turned = patches * np.exp(0.7j)
    torch.testing.assert_close(diffract(turned, probe), diffract(patches, probe))


@SIZES
def test_a_shift_of_the_exit_wave_leaves_no_trace(size: int) -> None:
    patches, probe = waves(2, 1, size, size), waves(2, size, size, seed=1)
    shift = {"shifts": (3, -2), "dims": (-2, -1)}
    torch.testing.assert_close(diffract(patches.roll(**shift), probe.roll(**shift)), diffract(patches, probe))


@SIZES
@pytest.mark.parametrize("cycles", [(0, 0), (2, 0), (-1, 3)])
def test_a_phase_ramp_moves_the_pattern(size: int, cycles: tuple[int, int]) -> None:
    """A plane wave meets one pixel, counted from the centre [N // 2, N // 2]."""
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    ramp = torch.exp(2j * math.pi * (cycles[0] * row + cycles[1] * column).double() / size)
    intensity = diffract(ramp[None, None], torch.ones(1, size, size, dtype=torch.complex128))[0, 0]
    expected = torch.zeros(size, size, dtype=torch.float64)
    expected[size // 2 + cycles[0], size // 2 + cycles[1]] = size**2
    torch.testing.assert_close(intensity, expected, atol=1e-9, rtol=1e-9)


def test_a_centred_gaussian_gives_a_gaussian() -> None:
    """exp(-r**2 / (2 s**2)) transforms into one of width N / (2 pi s)."""
    size, width = 32, 3.0
    r = torch.arange(size, dtype=torch.float64) - size // 2
    r2 = r[:, None] ** 2 + r[None, :] ** 2
    probe = torch.exp(-r2 / (2 * width**2)).to(torch.complex128)
    intensity = diffract(torch.ones(1, 1, size, size, dtype=torch.complex128), probe[None])[0, 0]
    far_width = size / (2 * math.pi * width)
    expected = (2 * math.pi * width**2 / size) ** 2 * torch.exp(-r2 / far_width**2)
    torch.testing.assert_close(intensity, expected, atol=1e-4 * float(expected.max()), rtol=0)


def test_modes_add_incoherently() -> None:
    patches, probe = waves(2, 1, 8, 8), waves(3, 8, 8, seed=1)
    apart = sum(diffract(patches, mode[None]) for mode in probe)
    torch.testing.assert_close(diffract(patches, probe), apart)
    torch.testing.assert_close(diffract(patches, probe.flip(0)), diffract(patches, probe))
    assert not torch.allclose(diffract(patches, probe.sum(0, keepdim=True)), diffract(patches, probe))


def test_the_detector_sees_the_square() -> None:
    patches, probe = waves(2, 1, 8, 8), waves(2, 8, 8, seed=1)
    torch.testing.assert_close(diffract(3 * patches, probe), 9 * diffract(patches, probe))
    torch.testing.assert_close(measurement(propagation(interaction(patches, probe))), diffract(patches, probe))


def test_gradients_are_those_of_finite_differences() -> None:
    patches, probe = waves(1, 2, 4, 4).requires_grad_(), waves(2, 4, 4, seed=1)
    assert torch.autograd.gradcheck(lambda p: diffract(p, probe), patches)
