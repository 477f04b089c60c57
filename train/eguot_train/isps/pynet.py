"""PyNET, 47,551,666 parameters: an inverted pyramid of five scales with kernels up to 9x9.

After METHOD.md 4.3. Left open there and chosen so that the count comes out: an output
convolution on every level (progressive training wants them); level 2 is 5, skip, 7 (+) three times, 7, 5, skip and
late, 3; level 1 is 5, 7, skip, 9, 9 (+) three times, 7, skip and late, 5, 3; no instance norm in the first block and
the last two of level 1. Progressive training is left out: level 0 is trained from the start, as all networks here. Of
its loss the VGG term is left out, whose weights cannot be had.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..losses import ms_ssim
from .base import IspNet, Recipe

WIDTHS = (32, 64, 128, 256, 512)
SLOPE = 0.2


class PyNet(IspNet):
    """Instance norm makes it see the whole frame."""

    name = "pynet"
    shuffle = 1
    halo = 0
    multiple = 16
    global_context = True
    mobile_safe = False  # instance norm, reflection padding
    recipe = Recipe(lr=5e-5, batch=12, betas=(0.9, 0.999))

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.ModuleList(
            Stacks(a, b, 3, norm=b != WIDTHS[0]) for a, b in zip((4, *WIDTHS), WIDTHS, strict=False)
        )
        self.level5 = nn.Sequential(*(Stacks(512, 512, 3) for _ in range(3)))
        self.early = nn.ModuleList(_up(2 * width, width) for width in WIDTHS[:-1])
        self.late = nn.ModuleList(_up(2 * width, width) for width in WIDTHS[:-1])
        self.level4 = nn.ModuleList(
            [Stacks(512, 256, 3), *(Stacks(256, 256, 3) for _ in range(3)), Stacks(512, 256, 3)]
        )
        self.level3 = nn.ModuleList([*(Stacks(256, 128, 5) for _ in range(4)), Stacks(512, 128, 3)])
        self.level2 = nn.ModuleList(
            [Stacks(128, 64, 5), *(Stacks(192, 64, 7) for _ in range(4)), Stacks(192, 64, 5), Stacks(256, 64, 3)]
        )
        self.level1 = nn.ModuleList(
            [
                *(Stacks(64, 32, 5), Stacks(64, 32, 7)),
                *(Stacks(128, 32, 9) for _ in range(4)),
                *(Stacks(128, 32, 7), Stacks(160, 32, 5, norm=False), Stacks(64, 32, 3, norm=False)),
            ]
        )
        self.outputs = nn.ModuleList(nn.Conv2d(width, 3, 3, padding=1) for width in WIDTHS)
        self.full = nn.Conv2d(WIDTHS[0], 16, 3, padding=1)
        self.tail = nn.Conv2d(16, 3, 3, padding=1)

    def body(self, planes: Tensor) -> Tensor:
        features = self._levels(planes)[-1]
        full = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.sigmoid(self.tail(F.leaky_relu(self.full(full), SLOPE)))

    def original_loss(self, rendered: Tensor, truth: Tensor) -> Tensor:
        """[B] level 0: MSE + 0.4 (1 - MS-SSIM), without VGG."""
        return (rendered - truth).square().mean((1, 2, 3)) + 0.4 * (1 - ms_ssim(rendered, truth))

    def _levels(self, planes: Tensor) -> list[Tensor]:
        """Features of levels 5, 4, 3, 2, 1."""
        skips: list[Tensor] = []
        features = planes
        for level, block in enumerate(self.encode):
            features = block(F.max_pool2d(features, 2) if level else features)
            skips.append(features)
        found = [self.level5(features)]
        for level, build in ((3, self._level4), (2, self._level3), (1, self._level2), (0, self._level1)):
            below, skip = found[-1], skips[level]
            start = torch.cat([skip, self.early[level](below)], 1)
            found.append(build(start, skip, self.late[level](below)))
        return found

    def _level4(self, x: Tensor, skip: Tensor, late: Tensor) -> Tensor:
        first, second, third, fourth, last = self.level4
        x = first(x)
        x = x + second(x)
        x = x + third(x)
        return last(torch.cat([fourth(x), late], 1))

    def _level3(self, x: Tensor, skip: Tensor, late: Tensor) -> Tensor:
        *residual, fourth, last = self.level3
        for block in residual:
            x = x + block(x)
        return last(torch.cat([fourth(x), skip, late], 1))

    def _level2(self, x: Tensor, skip: Tensor, late: Tensor) -> Tensor:
        first, *residual, fifth, sixth, last = self.level2
        x = torch.cat([first(x), skip], 1)
        for block in residual:
            x = x + block(x)
        return last(torch.cat([sixth(fifth(x)), skip, late], 1))

    def _level1(self, x: Tensor, skip: Tensor, late: Tensor) -> Tensor:
        first, second, third, *residual, seventh, eighth, last = self.level1
        x = third(torch.cat([second(first(x)), skip], 1))
        for block in residual:
            x = x + block(x)
        return last(eighth(torch.cat([seventh(x), skip, late], 1)))


class Stacks(nn.Module):
    """Two convolutions of every odd kernel size from 3 to `largest`, side by side; `width` channels from each."""

    def __init__(self, channels: int, width: int, largest: int, *, norm: bool = True) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(
            nn.Sequential(*_layer(channels, width, kernel, norm), *_layer(width, width, kernel, norm))
            for kernel in range(3, largest + 1, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([stack(x) for stack in self.stacks], 1)


def _layer(channels: int, out: int, kernel: int, norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(channels, out, kernel, padding=kernel // 2, padding_mode="reflect")]
    if norm:
        layers.append(nn.InstanceNorm2d(out, affine=True))
    return [*layers, nn.LeakyReLU(SLOPE)]


def _up(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Conv2d(channels, out, 3, padding=1, padding_mode="reflect"),
        nn.LeakyReLU(SLOPE),
    )
