"""QISP: our int8-first mobile family. Purely local; conv and ReLU only; all work at half the packed resolution.

One 6x6 stride-2 convolution takes a 12x12 window of the mosaic, a chain of 3x3 convolutions that start as the
identity does the rest, and one depth-to-space of block 4 writes 4x4 output pixels at once. At a quarter of the
sensor's resolution per axis every tensor is small, so the int8 kernels run from cache and 32 or more channels
keep their inner loops full. Source: our own (measurements in train/LOG.md).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .base import IspNet

Size = Literal["s", "m", "l"]
SHAPES: dict[Size, tuple[int, int]] = {"s": (32, 3), "m": (48, 4), "l": (64, 8)}
"""Channels and number of 3x3 convolutions between stem and tail."""


class Qisp(IspNet):
    """`size` s, m or l. Output of an untrained network is near mid-grey detail of its input, not noise."""

    shuffle = 4
    multiple = 2

    def __init__(self, size: Size = "s") -> None:
        super().__init__()
        width, depth = SHAPES[size]
        self.name = f"qisp-{size}"
        self.halo = 2 * (depth + 2)
        self.stem = nn.Conv2d(4, width, 6, stride=2, padding=2)
        self.chain = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.tail = nn.Conv2d(width, 48, 3, padding=1)
        for conv in self.chain:
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            with torch.no_grad():
                conv.weight.mul_(0.5)
                index = torch.arange(width)
                conv.weight[index, index, 1, 1] += 0.7
            nn.init.zeros_(conv.bias)

    def body(self, planes: Tensor) -> Tensor:
        features = torch.relu(self.stem(planes))
        for conv in self.chain:
            features = torch.relu(conv(features))
        return self.tail(features)
