"""PUNET, 5,725,199 parameters: the U-Net baseline of the MAI 2021 challenge, widths 16 to 256.

After METHOD.md 4.5: double 3x3 convolutions with leaky ReLU, max-pooling, four blocks at the bottom of which two are
residual, 3x3 transposed convolutions, concatenated skips (levels 1 and 2 process the skip again, level 1 concatenates
it as it was too), a last transposed convolution to 4 channels, conv3 to 3, tanh * 0.58 + 0.5. The count fixes what is
left open: no transposed convolution has a bias. Chosen: slope 0.2, leaky ReLU after each of them, the residual blocks
are the second and third. The loss is not described, so the default stands in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import IspNet, Recipe
from .packed import doubling_conv, full_resolution_conv
from .unet32 import double_conv

WIDTHS = (16, 32, 64, 128)
BOTTOM = 256
SLOPE = 0.2


def squashed(values: Tensor) -> Tensor:
    """tanh * 0.58 + 0.5: a little more than [0, 1]."""
    return torch.tanh(values) * 0.58 + 0.5


class Punet(IspNet):
    """Purely local, with a wide window."""

    name = "punet"
    halo = 224  # 206, or 222 where rounding fills zeros of transposed convolutions written out, rounded up
    multiple = 16
    mobile_safe = False  # tanh
    recipe = Recipe(lr=1e-4, batch=32, betas=(0.9, 0.999))

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(double_conv(a, b) for a, b in zip((4, *WIDTHS), WIDTHS, strict=False))
        self.bottom = nn.ModuleList(double_conv(c, BOTTOM) for c in (WIDTHS[-1], BOTTOM, BOTTOM, BOTTOM))
        upward = (BOTTOM, *WIDTHS[::-1])
        self.up = nn.ModuleList(_up(a, b) for a, b in zip(upward, WIDTHS[::-1], strict=False))
        self.again = nn.ModuleList(double_conv(c, c) for c in WIDTHS[:2])
        self.join = nn.ModuleList(double_conv(c, out) for c, out in zip((256, 128, 64, 48), WIDTHS[::-1], strict=True))
        self.finest = doubling_conv(WIDTHS[0], 4)
        self.tail = full_resolution_conv(4, 3)

    def body(self, planes: Tensor) -> Tensor:
        skips: list[Tensor] = []
        features = planes
        for block in self.down:
            skips.append(block(features))
            features = F.max_pool2d(skips[-1], 2)
        first, second, third, fourth = self.bottom
        features = first(features)
        features = features + second(features)
        features = features + third(features)
        features = fourth(features)
        for level, up, join in zip((3, 2, 1, 0), self.up, self.join, strict=True):
            features = join(torch.cat([F.leaky_relu(up(features), SLOPE), *self._skip(level, skips[level])], 1))
        return squashed(self.tail(F.leaky_relu(self.finest(features), SLOPE)))

    def _skip(self, level: int, skip: Tensor) -> list[Tensor]:
        if level > 1:
            return [skip]
        again = self.again[level](skip)
        return [again] if level else [skip, again]


def _up(channels: int, out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out, 3, stride=2, padding=1, output_padding=1, bias=False)
