"""QISP: our int8-first mobile family. Purely local; conv and ReLU only; all work at half the packed resolution.

One 6x6 stride-2 convolution takes a 12x12 window of the mosaic, a chain of 3x3 convolutions does the work, and one
depth-to-space of block 4 writes 4x4 output pixels at once. At a quarter of the sensor's resolution per axis every
tensor is small, so the int8 kernels run from cache and 24 or more channels keep their inner loops full.

All places of a 2x2 block of packed pixels want much the same filters, and a network that has to find them four times
over learns slowly. So in training every layer is the sum of two: one at packed resolution with a quarter of the
channels, equal at the four places, and the layer itself, which starts at zero and learns what differs. `deploy` adds
them up. An untrained network is a bilinear demosaic (see `start`). Source: our own (measurements in train/LOG.md).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import IspNet
from .packed import full_resolution_conv
from .start import start_as_bilinear

Size = Literal["xs", "s", "m", "l"]
SHAPES: dict[Size, tuple[int, int]] = {"xs": (24, 1), "s": (32, 3), "m": (48, 2), "l": (64, 8)}
"""Channels and number of 3x3 convolutions between stem and tail."""
BLOCK = 4
PLACES = 4
"""Packed pixels in a block."""


class Qisp(IspNet):
    """`size` xs, s, m or l; `shape` gives channels (a multiple of 4) and number of 3x3 convolutions instead.

    `deployed`: plain convolutions in the place of the sums.
    """

    shuffle = BLOCK
    multiple = 2

    def __init__(self, size: Size = "s", shape: tuple[int, int] | None = None, *, deployed: bool = False) -> None:
        super().__init__()
        self.shape = shape or SHAPES[size]
        width, depth = self.shape
        self.name = f"qisp-{size}" if shape is None else f"qisp-{width}x{depth}"
        self.halo = 2 * (depth + 2)
        self.deployed = deployed
        stem = nn.Conv2d(4, width, 6, stride=2, padding=2)
        chain = [nn.Conv2d(width, width, 3, padding=1) for _ in range(depth)]
        tail = nn.Conv2d(width, 3 * BLOCK * BLOCK, 3, padding=1)
        self.stem: nn.Module = stem if deployed else SharedStem(stem)
        self.chain = nn.ModuleList(chain if deployed else [Shared(conv) for conv in chain])
        self.tail: nn.Module = tail if deployed else SharedTail(tail)
        if not deployed:
            start_as_bilinear([shared.at_places.layer for shared in self._shared().values()])

    def body(self, planes: Tensor) -> Tensor:
        features = torch.relu(self.stem(planes))
        for conv in self.chain:
            features = torch.relu(conv(features))
        return self.tail(features)

    def deploy(self) -> Qisp:
        if self.deployed:
            return self
        with torch.device(next(self.parameters()).device):
            twin = Qisp(shape=self.shape, deployed=True)
        twin.name = self.name
        sums = {path: shared.summed() for path, shared in self._shared().items()}
        twin.load_state_dict({f"{path}.{key}": t for path, both in sums.items() for key, t in both.items()})
        return twin.train(self.training)

    def _shared(self) -> dict[str, Shared]:
        """The layers in their order, by path."""
        return {path: module for path, module in self.named_modules() if isinstance(module, Shared)}


class Shared(nn.Module):
    """`own`, a convolution at half the packed resolution, plus one of the same at packed resolution, `at_places`.

    A quarter of the channels at the four places of a block are channels here, in the order of `pixel_shuffle`.
    """

    def __init__(self, own: nn.Conv2d, channels: int | None = None, out: int | None = None) -> None:
        super().__init__()
        assert own.bias is not None
        nn.init.zeros_(own.weight)
        nn.init.zeros_(own.bias)
        self.own = own
        self.at_places = full_resolution_conv(channels or own.in_channels // PLACES, out or own.out_channels // PLACES)
        nn.init.kaiming_normal_(self.at_places.layer.weight, nonlinearity="relu")

    def forward(self, maps: Tensor) -> Tensor:
        summed = self.summed()
        return F.conv2d(maps, summed["weight"], summed["bias"], self.own.stride, self.own.padding)

    @property
    def computes_as(self) -> nn.Conv2d:
        """The convolution whose multiply-adds these are; summing the weights costs nothing per pixel."""
        return self.own

    def summed(self) -> dict[str, Tensor]:
        """Weight and bias of the one convolution that equals this."""
        weight, bias = self.at_places.weight, self.at_places.bias
        assert bias is not None
        assert self.own.bias is not None
        return {"weight": self.own.weight + self.arranged(weight), "bias": self.own.bias + self.arranged(bias)}

    def arranged(self, values: Tensor) -> Tensor:
        """Weight or bias of `at_places` as `own` has it."""
        return values


class SharedStem(Shared):
    """The first: four planes at four places are a 6x6 window of them, read with stride 2."""

    def __init__(self, own: nn.Conv2d) -> None:
        super().__init__(own, channels=own.in_channels)

    def arranged(self, values: Tensor) -> Tensor:
        return values if values.ndim == 1 else F.pixel_shuffle(values, 2)


class SharedTail(Shared):
    """The last: 2x2 pixels of a colour at four places are 4x4 pixels of it."""

    def arranged(self, values: Tensor) -> Tensor:
        # Colour, y and x in a packed pixel, y and x of that pixel in the block.
        rows = values.reshape(3, 2, 2, 2, 2, -1)
        return rows.permute(0, 3, 1, 4, 2, 5).reshape(3 * BLOCK * BLOCK, *values.shape[1:])
