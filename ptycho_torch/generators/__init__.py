"""Generator networks behind one table: diffraction amplitudes in, complex object patches out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ptycho.config.config import ModelConfig
from ptycho.config.plugins import ORIGINS
from ptycho.errors import InputError, unknown_name
from ptycho_torch.clipping.units import final_layer
from ptycho_torch.generators.networks import CNN, FNO, Hybrid, StableHybridGenerator

OutputMode = Literal["real_imag", "amp_phase"]
LARGEST_INITIAL_AMPLITUDE = 5.0  # the brightest line of a grid-lines object has amplitude 4.94

NETWORKS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "cnn": CNN,
    "fno": lambda config: FNO(config, conv_blocks=config.fno_cnn_blocks),
    "fno_vanilla": lambda config: FNO(config, conv_blocks=0),
    "hybrid": Hybrid,
    "stable_hybrid": StableHybridGenerator,
}

INPUT_TRANSFORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "sqrt": torch.sqrt,
    "log1p": torch.log1p,
}


def output_mode(config: ModelConfig) -> OutputMode:
    """What a network's outputs stand for: as configured, else the architecture's own choice."""
    if config.generator_output_mode is not None:
        return config.generator_output_mode
    return "amp_phase" if config.architecture == "cnn" else "real_imag"


class ComplexHead(nn.Module):
    """Turn 2 * C real channels into C complex ones.

    ``real_imag``: real and imaginary part. ``amp_phase``: amplitude a * sigmoid(u) with a learnt
    ceiling a, and phase pi * tanh(v).
    """

    def __init__(self, mode: OutputMode) -> None:
        super().__init__()
        self.mode = mode
        if mode == "amp_phase":
            self.log_ceiling = nn.Parameter(torch.tensor(math.log(LARGEST_INITIAL_AMPLITUDE)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2 * C, N, N) real -> (B, C, N, N) complex."""
        first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-3)  # no complex halves
        if self.mode == "real_imag":
            return torch.complex(first, second)
        amplitude = self.log_ceiling.exp() * torch.sigmoid(first)
        return torch.polar(amplitude, math.pi * torch.tanh(second))


class Generator(nn.Module):
    """(B, C, N, N) diffraction amplitudes -> (B, C, N, N) complex object patches."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.transform = INPUT_TRANSFORMS[config.fno_input_transform]
        self.network = NETWORKS[config.architecture](config)
        self.head = ComplexHead(output_mode(config))

    @property
    def final_layer(self) -> nn.Module:
        """The layer that makes the output."""
        return final_layer(self.network)

    def forward(self, amplitude: Tensor) -> Tensor:
        images = self.transform(amplitude).clone(memory_format=torch.channels_last)  # convolutions run faster so
        return self.head(self.network(images))


def build_generator(config: ModelConfig) -> Generator:
    """The generator that ``config`` describes, initialised from torch's global generator.

    Raises:
        InputError: an unknown architecture, or one too deep for the frame size.
    """
    if config.architecture not in NETWORKS:
        raise unknown_name("architecture", config.architecture, NETWORKS)
    generator = Generator(config)
    if ("architecture", config.architecture) in ORIGINS:
        _require_shape(generator.network, config)
    return generator


def _require_shape(network: nn.Module, config: ModelConfig) -> None:
    """Refuse a user's network whose output cannot be object patches."""
    shape = (1, config.gridsize**2, config.N, config.N)
    with torch.no_grad():
        found = network.eval()(torch.zeros(shape)).shape
    network.train()
    wanted = (1, 2 * shape[1], *shape[2:])
    if found != wanted:
        raise InputError(
            f"architecture: {config.architecture} makes {tuple(found)} of frames {shape}; allowed: {wanted}"
        )


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters, a complex one counted once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
