"""The generator networks: (B, C, N, N) real images -> (B, 2 * C, N, N) real images.

Every network has an attribute ``final_layer``, the module that makes the output; adaptive
clipping can leave it out.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ptycho.config.config import ModelConfig
from ptycho_torch.generators.blocks import ConvBlock, PtychoBlock, StablePtychoBlock, join, lifter
from ptycho_torch.generators.convolutions import GELU, Conv2d, ConvTranspose2d

MakeBlock = Callable[[int, int, int], nn.Module]


class FNO(nn.Module):
    """Spectral blocks at constant resolution, then ``conv_blocks`` convolutional ones, then 1 x 1."""

    def __init__(self, config: ModelConfig, conv_blocks: int) -> None:
        super().__init__()
        channels, width = config.gridsize**2, config.fno_width
        blocks = [PtychoBlock(width, config.fno_modes, config.N) for _ in range(config.fno_blocks)]
        self.body = nn.Sequential(lifter(channels, width), *blocks, *(ConvBlock(width) for _ in range(conv_blocks)))
        self.final_layer = Conv2d(width, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.final_layer(self.body(x))


class Hybrid(nn.Module):
    """A U of spectral blocks: ``fno_blocks`` encoder levels, a bottleneck, transposed convolutions back up.

    Level k works on N / 2**k pixels with width * 2**k channels; the bottleneck keeps half of the modes.
    """

    def __init__(self, config: ModelConfig, make_block: MakeBlock = PtychoBlock) -> None:
        super().__init__()
        channels, levels = config.gridsize**2, config.fno_blocks
        widths = [config.fno_width * 2**k for k in range(levels)]
        sizes = [config.N // 2**k for k in range(levels)]
        self.lift = lifter(channels, widths[0])
        self.encoder = nn.ModuleList(make_block(w, config.fno_modes, s) for w, s in zip(widths, sizes, strict=True))
        self.down = nn.ModuleList(Conv2d(w, 2 * w, 2, stride=2) for w in widths[:-1])
        self.bottleneck = make_block(widths[-1], max(1, config.fno_modes // 2), sizes[-1])
        self.up = nn.ModuleList(ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(nn.Sequential(Conv2d(2 * w, w, 3, padding=1), GELU()) for w in reversed(widths[:-1]))
        self.final_layer = Conv2d(widths[0], 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(x)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)
        x = self.bottleneck(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(join(up(x), skips.pop()))
        return self.final_layer(x)


class CNN(nn.Module):
    """Convolutional autoencoder baseline with a decoder for each of its two outputs."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels, levels = config.gridsize**2, config.fno_blocks
        widths = [config.fno_width * 2**k for k in range(levels)]
        encoder: list[nn.Module] = [lifter(channels, widths[0])]
        for width in widths[:-1]:
            encoder += [*self._convs(width, config), Conv2d(width, 2 * width, 2, stride=2)]
        self.encoder = nn.Sequential(*encoder, *self._convs(widths[-1], config))
        self.decoders = nn.ModuleList(self._decoder(widths, config) for _ in range(2))
        self.final_layer = nn.ModuleList(Conv2d(widths[0], channels, 3, padding=1) for _ in range(2))

    @staticmethod
    def _convs(width: int, config: ModelConfig) -> list[nn.Module]:
        return [ConvBlock(width) for _ in range(config.fno_cnn_blocks)]

    def _decoder(self, widths: list[int], config: ModelConfig) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width in reversed(widths[:-1]):
            layers += [ConvTranspose2d(2 * width, width, 2, stride=2), GELU(), *self._convs(width, config)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        code = self.encoder(x)
        heads = [final(decode(code)) for decode, final in zip(self.decoders, self.final_layer, strict=True)]
        return join(*heads)


class StableHybridGenerator(Hybrid):
    """``Hybrid`` of :class:`StablePtychoBlock`."""

    def __init__(self, config: ModelConfig) -> None:
        def stable_block(channels: int, modes: int, size: int) -> nn.Module:
            return StablePtychoBlock(channels, modes, size, config.layerscale_init)

        super().__init__(config, stable_block)
