"""Where the units of each kind of layer lie, and which layer is the final one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ptycho.config.config import ModelConfig
from ptycho_torch.clipping.units import final_layer, list_parameters
from ptycho_torch.generators import NETWORKS, build_generator
from ptycho_torch.generators.spectral import SpectralConv2d
from ptycho_torch.train_utils import GradientClipper, clip_gradients_


def output_channels_hit_by_a_unit(layer: nn.Module, image: Tensor, unit: Tensor) -> list[int]:
    """Output channels that change when the weights of one unit (a mask over the weight) change."""
    with torch.no_grad():
        before = layer(image)
        layer.weight.add_(unit.to(layer.weight.dtype))  # type: ignore[union-attr, operator]
        changed = (layer(image) - before).abs().flatten(2).amax(dim=(0, 2)) > 1e-6
    return torch.nonzero(changed).flatten().tolist()


def units_found_by_clipping(layer: nn.Module) -> list[Tensor]:
    """Masks over the weight: entries that share a unit get the same factor, one unit at a time being large."""
    weight: nn.Parameter = layer.weight  # type: ignore[assignment]
    masks: list[Tensor] = []
    for index in range(weight.numel()):
        if any(bool(m.view(-1)[index]) for m in masks):
            continue
        gradient = torch.full(weight.shape, 1e-6, dtype=weight.dtype)
        gradient.view(-1)[index] = 1.0
        weight.grad = gradient.clone()
        clip_gradients_(layer, algorithm="agc_unit", threshold=0.01)
        masks.append((weight.grad / gradient).abs() < 0.99)
    return masks


LAYERS = {
    "linear": (lambda: nn.Linear(3, 4), (2, 5, 3)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 2), (2, 3, 5)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 2), (2, 3, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "grouped conv2d": (lambda: nn.Conv2d(4, 6, 2, groups=2), (2, 4, 5, 5)),
    "depthwise conv2d": (lambda: nn.Conv2d(3, 3, 2, groups=3), (2, 3, 5, 5)),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(3, 4, 2), (2, 3, 5)),
    "transposed conv2d": (lambda: nn.ConvTranspose2d(3, 4, 2, stride=2), (2, 3, 5, 5)),
    "grouped transposed conv2d": (lambda: nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 4, 5, 5)),
    "depthwise transposed conv2d": (lambda: nn.ConvTranspose2d(3, 3, 2, groups=3), (2, 3, 5, 5)),
    "transposed conv3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (1, 2, 3, 3, 3)),
    "spectral": (lambda: SpectralConv2d(2, 3, 2, 8), (2, 2, 8, 8)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_unit_is_what_one_output_channel_is_computed_with(kind: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer = make()
    image = torch.randn(shape)
    if kind == "linear":  # its channels are on the last axis
        forward = layer.forward
        layer.forward = lambda x: forward(x).movedim(-1, 1)  # type: ignore[method-assign]
    masks = units_found_by_clipping(layer)
    assert bool((torch.stack(masks).sum(0) == 1).all())  # every weight belongs to one unit
    hit = [output_channels_hit_by_a_unit(layer, image, mask) for mask in masks]
    assert sorted(hit) == [[channel] for channel in range(len(masks))]


@pytest.mark.parametrize("architecture", NETWORKS)
def test_every_layer_of_the_generators_has_output_units(architecture: str) -> None:
    config = ModelConfig(architecture=architecture, N=16, fno_width=4, fno_modes=3, fno_blocks=2)  # type: ignore[arg-type]
    model = build_generator(config)
    kinds = {nn.ConvTranspose2d: 1, nn.Conv2d: 0, SpectralConv2d: 0}
    owners = {
        f"{path}.weight": axis
        for path, module in model.named_modules()
        for kind, axis in kinds.items()
        if isinstance(module, kind)
    }
    assert owners
    for item in list_parameters(model):
        if item.name.endswith("layerscale") or item.parameter.ndim < 2:
            assert item.axes == ()
        else:
            assert item.axes == (owners[item.name],)


class PairsLayer(nn.Module):
    """A spectral weight (in, out, m1, m2, re/im) in the layout of other code bases."""

    def __init__(self, unit_axis: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3, 2, 2, 2))
        self.bias = nn.Parameter(torch.ones(3, 1, 1))
        self.unit_axis = unit_axis


@pytest.mark.parametrize(
    ("unit_axis", "n_units"),
    [
        (1, 3 + 1),
        ({"weight": 1}, 3 + 3),
        ({"weight": (1, 2, 3)}, 12 + 3),
        ({"weight": -4, "bias": None}, 3 + 1),
        (None, 2),
    ],
)
def test_a_layer_declares_its_units(unit_axis: object, n_units: int) -> None:
    layer = PairsLayer(unit_axis)
    for p in layer.parameters():
        p.grad = torch.ones_like(p)
    report = clip_gradients_(layer, algorithm="agc_unit", threshold=0.01)
    assert report.unit_norms.numel() == n_units
    assert float(report.smallest_scale) == pytest.approx(0.01, rel=1e-6)


def test_an_axis_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unit_axis: 3 of bias, shape \(3, 1, 1\); allowed: -3 to 2"):
        GradientClipper(PairsLayer({"weight": 1, "bias": 3}), algorithm="agc_unit", threshold=1.0)


def test_complex_units_join_real_and_imaginary_parts() -> None:
    layer = SpectralConv2d(2, 3, 2, 8)
    layer.weight.data.fill_(1.0)
    layer.weight.grad = torch.full_like(layer.weight, 3 + 4j)
    report = clip_gradients_(layer, algorithm="agc_unit", threshold=0.1)
    per_unit = layer.weight.numel() // 3
    assert report.unit_norms.tolist() == pytest.approx([5 * math.sqrt(per_unit)] * 3, rel=1e-6)
    torch.testing.assert_close(layer.weight.grad, torch.full_like(layer.weight, (3 + 4j) / 50))


def test_the_final_layer_is_the_declared_one_else_the_last() -> None:
    plain = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU())
    assert final_layer(plain) is plain[1]
    plain.final_layer = plain[0]
    assert final_layer(plain) is plain[0]
    assert final_layer(nn.Sequential(nn.Linear(1, 1), plain)) is plain[0]


@pytest.mark.parametrize("algorithm", ["agc", "agc_unit"])
@pytest.mark.parametrize("named", [False, True], ids=["module", "pairs"])
def test_the_final_layer_can_be_left_out(algorithm: str, named: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for p in model.parameters():
        p.grad = torch.full_like(p, 100.0)
    source = list(model.named_parameters()) if named else model
    clipper = GradientClipper(source, algorithm=algorithm, threshold=0.01, skip_last=True)
    report = clipper()
    assert clipper.skip_last
    assert clipper.exempt == ("1.weight", "1.bias")
    assert torch.equal(model[1].weight.grad, torch.full((2, 2), 100.0))
    assert float(model[0].weight.grad.abs().max()) < 1
    assert float(report.clipped_fraction) == pytest.approx({"agc": 2 / 4, "agc_unit": 3 / 6}[algorithm])


def test_leaving_the_final_layer_out_is_recorded_only_where_it_acts() -> None:
    clipper = GradientClipper(nn.Linear(2, 2), algorithm="norm", threshold=1e-3, skip_last=True)
    assert not clipper.skip_last
    assert clipper.exempt == ()


def test_a_lazy_parameter_is_refused_until_it_has_a_shape() -> None:
    layer = nn.LazyLinear(3)
    with pytest.raises(
        ValueError, match="parameters: weight has no shape yet; allowed: a module that has seen one batch"
    ):
        GradientClipper(layer, algorithm="agc", threshold=0.01)
