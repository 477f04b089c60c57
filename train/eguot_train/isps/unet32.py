"""U-Net-32, 1,926,252 parameters: our plain U-Net, widths 32, 64, 128, 256.

METHOD.md 4.7: three downs, two 3x3 convolutions with leaky ReLU per level, 2x2 transposed convolutions up, concatenated
skips, 1x1 convolution to 12 channels, shuffle. Left open there and chosen here: 2x2 max-pooling, slope 0.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import IspNet, Recipe

WIDTHS = (32, 64, 128, 256)


class UNet32(IspNet):
    """Every op of it is on the fast path; large, but a fair yardstick."""

    name = "unet32"
    halo = 48  # 46 rounded up
    multiple = 8
    recipe = Recipe(lr=2e-4, batch=32, betas=(0.9, 0.999))

    def __init__(self) -> None:
        super().__init__()
        widths = (4, *WIDTHS)
        self.down = nn.ModuleList(double_conv(a, b) for a, b in zip(widths, WIDTHS, strict=False))
        pairs = list(zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.join = nn.ModuleList(double_conv(a, b) for a, b in pairs)
        self.tail = nn.Conv2d(WIDTHS[0], 12, 1)

    def body(self, planes: Tensor) -> Tensor:
        skips: list[Tensor] = []
        features = planes
        for level, block in enumerate(self.down):
            features = block(F.max_pool2d(features, 2) if level else features)
            skips.append(features)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            features = join(torch.cat([up(features), skip], 1))
        return self.tail(features)


def double_conv(channels: int, out: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with leaky ReLU 0.2."""
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(out, out, 3, padding=1),
        nn.LeakyReLU(0.2),
    )
