"""MicroISP, 13,560 parameters: six independent branches of width 4, three colours by two stages.

After METHOD.md 4.2: seven 3x3 convolutions with PReLU; layer j with j % 3 == 0 keeps its output, with j % 3
== 2 it is multiplied by a gate and the kept output is added; a 3x3 convolution and tanh end the branch. Left open and
chosen here: PReLU has a slope per channel (the count says so), a frame of fewer than 79 packed pixels is continued by
its border for the gate, the weights start with variance 1e-3. The loss is not described: that of PyNET at level 0
(same authors) stands in, without VGG, whose weights cannot be had. The gate pools the whole frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..losses import ms_ssim
from .base import IspNet, Recipe

WIDTH = 4
LAYERS = 7
GATE_SIDE = 79
"""Smallest side that leaves the gate's four stride-3 convolutions a pixel."""


class MicroIsp(IspNet):
    """Each colour goes its own way from the raw to the picture."""

    name = "microisp"
    halo = 0
    global_context = True
    mobile_safe = False  # PReLU, tanh
    recipe = Recipe(lr=1e-4, batch=32, betas=(0.9, 0.999))

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(Branch() for _ in range(3))
        self.second = nn.ModuleList(Branch() for _ in range(3))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=1e-3**0.5)

    def body(self, planes: Tensor) -> Tensor:
        colors = [second(first(planes)) for first, second in zip(self.first, self.second, strict=True)]
        return torch.cat(colors, 1).mul(0.58).add(0.5)

    def original_loss(self, rendered: Tensor, truth: Tensor) -> Tensor:
        """[B] MSE + 0.4 (1 - MS-SSIM), for the one that is not described."""
        return (rendered - truth).square().mean((1, 2, 3)) + 0.4 * (1 - ms_ssim(rendered, truth))


class Branch(nn.Module):
    """[B, 4, h, w] -> [B, 4, h, w] in (-1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(LAYERS))
        self.slopes = nn.ModuleList(nn.PReLU(WIDTH) for _ in range(LAYERS))
        self.gates = nn.ModuleList(Gate() for j in range(LAYERS) if j % 3 == 2)
        self.tail = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        kept = x
        for j, (conv, slope) in enumerate(zip(self.convs, self.slopes, strict=True)):
            x = slope(conv(x))
            if j % 3 == 0:
                kept = x
            elif j % 3 == 2:
                x = x * self.gates[j // 3](x) + kept
        return torch.tanh(self.tail(x))


class Gate(nn.Module):
    """[B, 4, h, w] -> [B, 4, 1, 1] in (0, 1), from the whole frame."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for kernel in (1, 3, 3, 3):
            layers += [nn.Conv2d(WIDTH, WIDTH, kernel, stride=3), nn.PReLU(WIDTH)]
        self.look = nn.Sequential(*layers)
        self.weigh = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 1), nn.PReLU(WIDTH), nn.Conv2d(WIDTH, WIDTH, 1), nn.Sigmoid()
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.weigh(self.look(at_least(x, GATE_SIDE)).mean((2, 3), keepdim=True))


def at_least(maps: Tensor, side: int) -> Tensor:
    """The maps, continued below and to the right by their border where they are smaller than `side`."""
    height, width = maps.shape[-2:]
    if height >= side and width >= side:
        return maps
    return F.pad(maps, (0, max(0, side - width), 0, max(0, side - height)), mode="replicate")


torch.fx.wrap("at_least")
