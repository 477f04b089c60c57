"""The potential v(y): one number per picture, high on plausible targets (METHOD.md 1.7).

No batch statistics anywhere, so v(y) depends on y alone and the outlier weights mean something.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SUM_SCALE = 1 / 16
LIMIT = 10.0
"""Bound of |v|, which lives around 1: a potential that runs away loses its gradient, so its say, and nothing else."""


class _Block(nn.Module):
    """Two 3x3 convolutions and a 2x2 average pool, with a 1x1 skip; variance-preserving sum."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        deep = F.leaky_relu(self.first(x), 0.2)
        deep = F.avg_pool2d(F.leaky_relu(self.second(deep), 0.2), 2)
        return (deep + self.skip(F.avg_pool2d(x, 2))) / 2**0.5


class Potential(nn.Module):
    """rgb [B, 3, H, W] in [0, 1] -> [B]. `width` is the first block's channels; 64 is METHOD.md's network.

    `reduce` averages the picture down first: on a CPU the potential judges colour, tone and layout at half size,
    a quarter of the work; detail is left to fidelity and the experts. The last layer starts at zero, so v starts as
    the constant 0.
    """

    def __init__(self, width: int = 64, reduce: int = 1) -> None:
        super().__init__()
        self.reduce = reduce
        widths = [width, 2 * width, 4 * width, 4 * width, 4 * width]
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in zip([width, *widths], widths, strict=False)))
        self.head = nn.Linear(widths[-1], 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rgb: Tensor) -> Tensor:
        features = torch.relu(self.blocks(self.stem(F.avg_pool2d(rgb, self.reduce) * 2 - 1)))
        # METHOD.md sums 8x8 positions of a 256-px crop and divides by 16; the mean keeps that scale at any crop.
        value = self.head(features.mean((2, 3)) * 64 * SUM_SCALE).squeeze(1)
        return LIMIT * torch.tanh(value / LIMIT)


def gradient_penalty(potential: nn.Module, pictures: Tensor) -> Tensor:
    """Mean over the batch of ||grad_y v(y)||^2 at pictures [B, 3, H, W]; needs a second backward."""
    pictures = pictures.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(potential(pictures).sum(), pictures, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()
