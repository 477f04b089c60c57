"""QISP: our int8-first mobile family. Purely local; conv and ReLU only; all work at half the packed resolution.

One 6x6 stride-2 convolution takes a 12x12 window of the mosaic, a chain of 3x3 convolutions does the work, and one
depth-to-space of block 4 writes 4x4 output pixels at once. At a quarter of the sensor's resolution per axis every
tensor is small, so the int8 kernels run from cache and 24 or more channels keep their inner loops full.
An untrained network is a bilinear demosaic: sixteen channels carry the 4x4 raw samples of a block through the
chain, the tail interpolates them, and the other channels start without a say. Source: our own
(measurements in train/LOG.md).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .base import IspNet
from .start import bilinear, sample_sites

Size = Literal["xs", "s", "m", "l"]
SHAPES: dict[Size, tuple[int, int]] = {"xs": (24, 1), "s": (32, 3), "m": (48, 4), "l": (64, 8)}
"""Channels and number of 3x3 convolutions between stem and tail."""
BLOCK = 4
SAMPLES = BLOCK * BLOCK


class Qisp(IspNet):
    """`size` xs, s, m or l; `shape` gives channels and number of 3x3 convolutions instead."""

    shuffle = BLOCK
    multiple = 2

    def __init__(self, size: Size = "s", shape: tuple[int, int] | None = None) -> None:
        super().__init__()
        width, depth = shape or SHAPES[size]
        self.name = f"qisp-{size}" if shape is None else f"qisp-{width}x{depth}"
        self.halo = 2 * (depth + 2)
        self.stem = nn.Conv2d(4, width, 6, stride=2, padding=2)
        self.chain = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.tail = nn.Conv2d(width, 3 * SAMPLES, 3, padding=1)
        self._start_as_bilinear()

    def body(self, planes: Tensor) -> Tensor:
        features = torch.relu(self.stem(planes))
        for conv in self.chain:
            features = torch.relu(conv(features))
        return self.tail(features)

    @torch.no_grad()
    def _start_as_bilinear(self) -> None:
        for conv in (self.stem, *self.chain, self.tail):
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        self.stem.weight[:SAMPLES] = 0
        for channel, (row, col, plane) in enumerate(sample_sites(BLOCK)):
            self.stem.weight[channel, plane, 2 + row // 2, 2 + col // 2] = 1
        for conv in self.chain:
            assert isinstance(conv, nn.Conv2d)
            conv.weight[:SAMPLES] = 0
            index = torch.arange(SAMPLES)
            conv.weight[index, index, 1, 1] = 1
        self.tail.weight.zero_()
        self.tail.weight[:, :SAMPLES] = bilinear(BLOCK)
