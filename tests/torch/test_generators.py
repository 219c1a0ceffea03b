"""One contract for every network of the table, and what sets each block apart."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ptycho.config.config import U_SHAPED, largest_depth
from ptycho.errors import InputError
from ptycho_torch.config_params import ModelConfig
from ptycho_torch.generators import NETWORKS, ComplexHead, Generator, build_generator, count_parameters, output_mode
from ptycho_torch.generators.blocks import ConvBlock, PtychoBlock, StablePtychoBlock
from ptycho_torch.model import PtychoPINN, build_model
from ptycho_torch.train_utils import GradientClipper

EVERY_NETWORK = pytest.mark.parametrize("name", NETWORKS)
PROBE = torch.ones(1, 16, 16, dtype=torch.complex64).numpy()


def small(name: str, **changes: Any) -> ModelConfig:
    return ModelConfig(
        **{"architecture": name, "N": 16, "fno_width": 4, "fno_modes": 3, "fno_blocks": 2, "fno_cnn_blocks": 1}
        | changes
    )


def generator(config: ModelConfig) -> Generator:
    torch.manual_seed(0)
    return build_generator(config)


def amplitudes(config: ModelConfig, batch: int = 3) -> Tensor:
    torch.manual_seed(1)
    return 5 * torch.rand(batch, config.gridsize**2, config.N, config.N)


# the contract


def test_the_table_and_the_setting_name_the_same_networks() -> None:
    for name in NETWORKS:
        assert ModelConfig(architecture=name).architecture == name  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"architecture: unknown value 'unet'; known: {', '.join(NETWORKS)}"):
        ModelConfig(architecture="unet")  # type: ignore[arg-type]


@EVERY_NETWORK
@pytest.mark.parametrize("gridsize", [1, 2])
@pytest.mark.parametrize("mode", ["real_imag", "amp_phase"])
def test_amplitudes_in_complex_patches_out(name: str, gridsize: int, mode: str) -> None:
    config = small(name, gridsize=gridsize, generator_output_mode=mode)
    patches = generator(config)(amplitudes(config))
    assert patches.shape == (3, gridsize**2, 16, 16)
    assert patches.dtype == torch.complex64
    assert patches.isfinite().all()


@EVERY_NETWORK
@pytest.mark.parametrize("gridsize", [1, 2])
@pytest.mark.parametrize("mode", ["real_imag", "amp_phase"])
def test_the_gradient_reaches_every_parameter(name: str, gridsize: int, mode: str) -> None:
    config = small(name, gridsize=gridsize, generator_output_mode=mode)
    network = generator(config)
    patches = network(amplitudes(config))
    (patches * torch.randn_like(patches)).abs().square().sum().backward()
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label
        assert parameter.grad.abs().max() > 0, label


@EVERY_NETWORK
def test_frames_do_not_see_each_other(name: str) -> None:
    config = small(name)
    network, frames = generator(config), amplitudes(config)
    alone = torch.cat([network(frame[None]) for frame in frames])
    torch.testing.assert_close(network(frames), alone, rtol=1e-4, atol=1e-5)


@EVERY_NETWORK
def test_the_initial_weights_are_a_function_of_the_seed_alone(name: str) -> None:
    def weights(seed: int, global_seed: int) -> list[Tensor]:
        torch.manual_seed(global_seed)
        torch.rand(global_seed)
        before = torch.get_rng_state()
        model = build_model(small(name), PROBE, seed)
        assert torch.equal(torch.get_rng_state(), before)
        return list(model.parameters())

    first, again, other = weights(5, 1), weights(5, 2), weights(6, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@EVERY_NETWORK
def test_the_final_layer_makes_the_output(name: str) -> None:
    config = small(name, generator_output_mode="real_imag")
    network = generator(config)
    assert network(amplitudes(config)).std() > 0
    with torch.no_grad():
        for parameter in network.final_layer.parameters():
            parameter.zero_()
    assert network(amplitudes(config)).abs().max() == 0


@EVERY_NETWORK
def test_clipping_can_leave_the_final_layer_out(name: str) -> None:
    model = PtychoPINN(generator(small(name)), PROBE)
    clipper = GradientClipper(model, algorithm="agc", threshold=0.01, skip_last=True)
    own = {id(p) for p in model.final_layer.parameters()}
    assert set(clipper.exempt) == {label for label, p in model.named_parameters() if id(p) in own}
    assert clipper.exempt


# depth and odd sizes


@pytest.mark.parametrize("name", U_SHAPED)
@pytest.mark.parametrize(("size", "deepest"), [(8, 3), (12, 3), (16, 4), (9, 1)])
def test_the_deepest_network_of_a_size_works_and_a_deeper_one_is_refused(name: str, size: int, deepest: int) -> None:
    assert largest_depth(size) == deepest
    config = small(name, N=size, fno_blocks=deepest, fno_width=2)
    assert generator(config)(amplitudes(config)).shape[-2:] == (size, size)
    with pytest.raises(
        InputError, match=rf"fno_blocks: {deepest + 1} levels of {name} .* {size} px; allowed: at most {deepest} "
    ):
        small(name, N=size, fno_blocks=deepest + 1)


@pytest.mark.parametrize("name", ["fno", "fno_vanilla"])
def test_a_network_of_one_resolution_takes_any_depth_and_size(name: str) -> None:
    config = small(name, N=9, fno_blocks=6)
    assert generator(config)(amplitudes(config)).shape == (3, 1, 9, 9)


def test_depth_adds_levels() -> None:
    assert [generator(small("hybrid", fno_blocks=depth)).network.encoder.__len__() for depth in (1, 2, 3)] == [1, 2, 3]


# blocks


def test_a_complex_weight_counts_once() -> None:
    network = generator(small("fno_vanilla", fno_blocks=1))
    lifter = (4 * 9 + 4) + (4 * 4 * 9 + 4)
    block = 4 * 4 * 6 * 3 + (4 * 4 * 9 + 4)
    assert count_parameters(network) == lifter + block + (2 * 4 + 2)


@pytest.mark.parametrize("block", [PtychoBlock(4, 3, 8), StablePtychoBlock(4, 3, 8, 0.5), ConvBlock(4)])
def test_a_block_without_weights_passes_the_image_on(block: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), x)


def test_a_layerscale_of_zero_makes_a_stable_block_the_identity() -> None:
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(StablePtychoBlock(4, 3, 8, 0.0)(x), x)
    assert not torch.equal(StablePtychoBlock(4, 3, 8, 1e-3)(x), x)


@pytest.mark.parametrize("weights", [1.0, 1e3])
def test_a_stable_block_adds_as_much_as_its_layerscale_says(weights: float) -> None:
    torch.manual_seed(0)
    block = StablePtychoBlock(4, 3, 16, 0.25)
    with torch.no_grad():
        block.spectral.weight.mul_(weights)
        block.local.weight.mul_(weights)
    x = torch.randn(2, 4, 16, 16)
    increment = block(x) - x
    torch.testing.assert_close(increment.std(dim=(2, 3), correction=0), torch.full((2, 4), 0.25), rtol=1e-3, atol=0)
    torch.testing.assert_close(increment.mean(dim=(2, 3)), torch.zeros(2, 4), rtol=0, atol=1e-5)


def test_a_plain_block_adds_more_for_larger_weights() -> None:
    torch.manual_seed(0)
    block, x = PtychoBlock(4, 3, 16), torch.randn(2, 4, 16, 16)
    before = (block(x) - x).std()
    with torch.no_grad():
        block.local.weight.mul_(1e3)
    assert (block(x) - x).std() > 100 * before


# the head


def test_real_and_imaginary_part() -> None:
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(ComplexHead("real_imag")(x), torch.complex(x[:, :2], x[:, 2:]))


def test_amplitude_and_phase_stay_in_their_ranges() -> None:
    head = ComplexHead("amp_phase")
    patches = head(100 * torch.randn(2, 4, 3, 3))
    assert patches.abs().max() <= 5.0 * (1 + 1e-6)
    middle = head(torch.cat((torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5)), dim=1))
    torch.testing.assert_close(middle.abs(), torch.full((1, 1, 2, 2), 2.5))
    torch.testing.assert_close(middle.angle(), torch.full((1, 1, 2, 2), math.pi * math.tanh(0.5)))


def test_each_architecture_has_its_own_output_mode() -> None:
    modes = {name: output_mode(small(name)) for name in NETWORKS}
    assert modes == {name: "amp_phase" if name == "cnn" else "real_imag" for name in NETWORKS}
    assert output_mode(small("cnn", generator_output_mode="real_imag")) == "real_imag"


@pytest.mark.parametrize(
    ("transform", "function"), [("none", lambda x: x), ("sqrt", torch.sqrt), ("log1p", torch.log1p)]
)
def test_the_input_transform_acts_on_the_amplitudes(transform: str, function: Any) -> None:
    config = small("fno")
    plain, transformed = generator(config), generator(small("fno", fno_input_transform=transform))
    torch.testing.assert_close(transformed(amplitudes(config)), plain(function(amplitudes(config))))
