"""The fast training step against plain twins in float64: transforms, layers in their networks, optimizers, norms."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.reference import ReferenceFNO, ReferenceHybrid, ReferencePINN, copy_weights
from ptycho_torch.config_params import ModelConfig, TrainingConfig
from ptycho_torch.generators import build_generator
from ptycho_torch.generators.spectral import SpectralConv2d, fourier_matrices
from ptycho_torch.model import PtychoPINN
from ptycho_torch.optimizers import OPTIMIZERS, SMALL, make_optimizer
from ptycho_torch.telemetry import UpdateMeter

PLAIN = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.999), weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.999), weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.8, weight_decay=0.1),
}
NETWORKS = ("fno", "hybrid", "stable_hybrid")


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def small(name: str, **changes: Any) -> ModelConfig:
    sizes = {"N": 16, "fno_width": 4, "fno_modes": 5, "fno_blocks": 2, "fno_cnn_blocks": 1, **changes}
    return ModelConfig(architecture=name, **sizes)  # type: ignore[arg-type]


class PlainSpectral(nn.Module):
    """The spectral layer by fast transforms of the whole image."""

    def __init__(self, layer: SpectralConv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().contiguous())
        self.m1, self.m2 = layer.m1, layer.m2

    def forward(self, x: Tensor) -> Tensor:
        rows = [*range(self.m1), *range(-self.m1, 0)]
        spectrum = torch.fft.rfft2(x)
        mixed = spectrum.new_zeros(len(x), len(self.weight), *spectrum.shape[-2:])
        kept = spectrum[:, :, rows, : self.m2]
        mixed[:, :, rows, : self.m2] = torch.einsum("bixy,oixy->boxy", kept, self.weight)
        return torch.fft.irfft2(mixed, s=x.shape[-2:])


def with_plain_layers(network: nn.Module) -> nn.Module:
    """A copy of a network with plain layers in place of the fast ones."""
    twin = copy.deepcopy(network)
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, SpectralConv2d):
                setattr(module, name, PlainSpectral(child))
    return twin


def gradients(output: Tensor, module: nn.Module) -> list[Tensor]:
    torch.manual_seed(3)
    return list(torch.autograd.grad((output * torch.randn(output.shape)).sum(), list(module.parameters())))


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12 * float(other.detach().abs().max()))


# layers and networks


@pytest.mark.parametrize(("size", "modes"), [(8, 4), (9, 4), (16, 5), (12, 99), (64, 12)])
def test_the_spectral_layer_equals_fast_transforms_of_the_whole_image(size: int, modes: int) -> None:
    torch.manual_seed(size)
    layer = SpectralConv2d(3, 2, modes, size)
    plain = PlainSpectral(layer)
    images = torch.randn(4, 3, size, size, requires_grad=True)
    found, expected = layer(images), plain(images)
    assert found.dtype == torch.float64
    assert_equal([found], [expected])
    assert_equal(gradients(layer(images), layer), gradients(plain(images), plain))
    cotangent = torch.randn(found.shape)
    assert_equal(
        list(torch.autograd.grad(found, images, cotangent)), list(torch.autograd.grad(expected, images, cotangent))
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_equals_its_plain_twin(name: str) -> None:
    torch.manual_seed(0)
    generator = build_generator(small(name, layerscale_init=0.5))
    twin = with_plain_layers(generator.network)
    frames = torch.rand(3, 1, 16, 16)
    assert_equal([torch.view_as_real(generator(frames))], [twin(frames).permute(0, 2, 3, 1).unsqueeze(1)])
    fast = gradients(torch.view_as_real(generator(frames)), generator)
    torch.testing.assert_close([g.shape for g in fast], [p.shape for p in twin.parameters()])
    assert_equal(fast, gradients(twin(frames).permute(0, 2, 3, 1).unsqueeze(1), twin))


@pytest.mark.parametrize(("name", "reference"), [("fno", ReferenceFNO), ("hybrid", ReferenceHybrid)])
def test_the_reference_of_the_benchmark_computes_the_same(
    name: str, reference: Callable[[ModelConfig], nn.Module]
) -> None:
    config = small(name)
    generator = build_generator(config)
    probe = torch.randn(2, 16, 16, dtype=torch.complex128)
    plain = ReferencePINN(reference(config), probe)
    copy_weights(generator.network, plain.network)
    frames = torch.rand(3, 1, 16, 16)
    assert_equal([PtychoPINN(generator, probe.numpy())(frames).intensity], [plain(frames)])


@pytest.mark.parametrize("size", [8, 12, 64])
def test_no_rounding_reaches_the_imaginary_parts_that_stay_zero(size: int) -> None:
    """Adam would blow up a gradient of 1e-17 to a full step."""
    torch.manual_seed(size)
    torch.set_default_dtype(torch.float32)
    layer = SpectralConv2d(3, 3, size // 2, size)
    (layer(torch.randn(4, 3, size, size)) * torch.randn(4, 3, size, size)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad[:, :, [0, layer.m1], 0].imag.abs().max() == 0
    assert layer.weight.grad[:, :, 1, 0].imag.abs().min() > 0


def test_a_layer_first_used_without_gradients_can_train() -> None:
    fourier_matrices.cache_clear()
    layer, images = SpectralConv2d(1, 1, 2, 8), torch.randn(2, 1, 8, 8, requires_grad=True)
    with torch.inference_mode():
        layer(torch.randn(2, 1, 8, 8))
    layer(images).sum().backward()
    assert layer.weight.grad is not None
    assert images.grad is not None


def test_images_stay_channels_last_through_a_block() -> None:
    generator = build_generator(small("hybrid"))
    seen: list[Tensor] = []
    for block in generator.network.encoder:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    generator(torch.rand(3, 1, 16, 16))
    assert len(seen) == 2
    assert all(image.is_contiguous(memory_format=torch.channels_last) for image in seen)


# optimizers


def weights() -> list[nn.Parameter]:
    """Real, complex, oddly laid out and large ones, a number, and one that is frozen."""
    torch.manual_seed(1)
    laid_out = torch.randn(3, 4, 2, dtype=torch.complex128).permute(1, 2, 0)
    large = torch.randn(3, 2, SMALL // 5, dtype=torch.complex128).permute(2, 0, 1)
    found = [torch.randn(3, 4), torch.randn(5, dtype=torch.complex128), laid_out, torch.randn(()), large]
    return [*(nn.Parameter(w) for w in found), nn.Parameter(torch.randn(2), requires_grad=False)]


def steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], n: int = 4) -> None:
    torch.manual_seed(2)
    for _ in range(n):
        for p in parameters:
            p.grad = torch.randn_like(p) if p.requires_grad else None
        optimizer.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in parameters)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_flat_optimizer_equals_one_that_steps_each_tensor(name: str) -> None:
    flat, plain, start = weights(), weights(), weights()
    config = TrainingConfig(optimizer=name, learning_rate=0.01, momentum=0.8, weight_decay=0.1)  # type: ignore[arg-type]
    steps(make_optimizer(flat, config), flat)
    steps(PLAIN[name]([p for p in plain if p.requires_grad]), plain)
    assert_equal([p.detach() for p in flat], [p.detach() for p in plain])
    assert [p.stride() for p in flat] == [p.stride() for p in start]
    assert torch.equal(flat[-1], start[-1])
    assert not torch.equal(flat[0], start[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_flat_optimizer_goes_on_from_its_state_and_loaded_weights(name: str) -> None:
    config = TrainingConfig(optimizer=name, momentum=0.8)  # type: ignore[arg-type]
    whole, resumed = nn.ParameterList(weights()), nn.ParameterList(weights())
    first, second = make_optimizer(whole, config), make_optimizer(resumed, config)
    steps(first, list(whole))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed.load_state_dict(whole.state_dict())
    steps(first, list(whole))
    steps(second, list(resumed))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_a_parameter_without_gradient_stays() -> None:
    parameters = weights()
    before = [p.detach().clone() for p in parameters]
    optimizer = make_optimizer(parameters, TrainingConfig(learning_rate=0.1))
    parameters[0].grad = torch.ones_like(parameters[0])
    optimizer.step()
    assert [torch.equal(a, b) for a, b in zip(parameters, before, strict=True)] == [False, True, True, True, True, True]


def test_an_optimizer_calls_its_closure_and_returns_the_loss() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = make_optimizer([weight], TrainingConfig(optimizer="sgd", momentum=0.0, learning_rate=0.1))

    def closure() -> Tensor:
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0  # type: ignore[arg-type, attr-defined]
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.8))


# telemetry


def test_the_size_of_an_update_is_exact_for_many_weights() -> None:
    """Equal numbers are the worst case of a float32 sum: 2e-4 in one go."""
    weight = nn.Parameter(torch.full((2**22 + 5,), 0.1, dtype=torch.float32))
    meter = UpdateMeter([weight])
    meter.mark()
    weight.data.mul_(1.5)
    ratio, norm = meter.measure()
    expected = float(torch.full((2**22 + 5,), 0.1, dtype=torch.float32).double().norm())
    assert float(norm) == pytest.approx(expected, rel=1e-6)
    assert float(ratio) == pytest.approx(0.5, rel=1e-6)
