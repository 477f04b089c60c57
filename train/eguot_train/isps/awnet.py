"""AWNet for packed planes, 50,618,596 parameters: dense blocks with global context between wavelet steps.

After METHOD.md 4.6. Left open there and chosen so that the count
comes out: dense blocks on the way down only, batch norm after each dense layer, context through a quarter of the
channels with layer norm, channel weights through an eighth without bias, the way down with biases and the way up
without, a 3x3 convolution that joins each step up, one PReLU slope per step, heads at the four coarser scales, four
pooled maps of 16 channels. Batch norm stays at its start, a scale and shift per channel, as adversarial runs want
none. The loss is not described: Charbonnier + 0.15 (1 - SSIM) stands in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..losses import charbonnier, ssim
from .base import IspNet, Recipe
from .haar import dwt, idwt
from .liteispnet import conv3

WIDTHS = (64, 128, 256, 512, 1024)
DENSE_BLOCKS = (2, 2, 2, 3, 4)
DENSE_LAYERS, GROWTH = 6, 16
POOLS = (1, 2, 3, 6)


class AwNet(IspNet):
    """The four-channel network of the two; the largest of the zoo."""

    name = "awnet"
    shuffle = 1
    halo = 0
    multiple = 16
    global_context = True
    mobile_safe = False  # global context, pyramid pooling
    recipe = Recipe(lr=1e-4, batch=16, betas=(0.9, 0.999))

    def __init__(self) -> None:
        super().__init__()
        self.head = conv3(4, WIDTHS[0])
        self.levels = nn.ModuleList(
            nn.Sequential(ChannelWeights(width), *(DenseBlock(width) for _ in range(count)))
            for width, count in zip(WIDTHS, DENSE_BLOCKS, strict=True)
        )
        self.down = nn.ModuleList(Down(width) for width in WIDTHS[:-1])
        self.up = nn.ModuleList(Up(width) for width in WIDTHS[-2::-1])
        self.heads = nn.ModuleList(conv3(width, 3) for width in WIDTHS[:0:-1])
        self.spread = conv3(64, 256)
        self.pool = PyramidPooling(64)
        self.tail = nn.Sequential(conv3(128, 64), conv3(64, 3))
        self.train()

    def train(self, mode: bool = True) -> AwNet:
        """Batch norm stays out of it: it never looks at a batch and keeps the statistics 0 and 1."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = False
        return self

    def body(self, planes: Tensor) -> Tensor:
        features = self._coarse_to_fine(planes)[-1]
        features = F.pixel_shuffle(self.spread(features), 2)
        return torch.sigmoid(self.tail(self.pool(features)))

    def original_loss(self, rendered: Tensor, truth: Tensor) -> Tensor:
        """[B] Charbonnier + 0.15 (1 - SSIM), for the one that is not described."""
        return charbonnier(rendered, truth) + 0.15 * (1 - ssim(rendered, truth))

    def _coarse_to_fine(self, planes: Tensor) -> list[Tensor]:
        features = self.head(planes)
        stored: list[Tensor] = []
        for level, down in zip(self.levels, self.down, strict=False):
            features = level(features)
            stored.append(dwt(features))
            features = down(features, stored[-1])
        found = [self.levels[-1](features)]
        for up, bands in zip(self.up, stored[::-1], strict=True):
            found.append(up(found[-1], bands))
        return found


class Down(nn.Module):
    """[B, C, 2h, 2w] and its bands -> [B, 2 C, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.low = nn.Conv2d(width, width, 1)
        self.slope = nn.PReLU()
        self.width = width

    def forward(self, x: Tensor, bands: Tensor) -> Tensor:
        return self.slope(torch.cat([self.stem(x), self.low(bands[:, : self.width])], 1))


class Up(nn.Module):
    """[B, 2 C, h, w] and the bands [B, 4 C, h, w] stored on the way down -> [B, C, 2h, 2w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False)
        self.low = nn.Conv2d(2 * width, width, 1, bias=False)
        self.join = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.slope = nn.PReLU()
        self.width = width

    def forward(self, x: Tensor, bands: Tensor) -> Tensor:
        shuffled = F.pixel_shuffle(self.stem(x), 2)
        synthesised = idwt(torch.cat([self.low(x), bands[:, self.width :]], 1))
        return self.slope(self.join(torch.cat([shuffled, synthesised], 1)))


class DenseBlock(nn.Module):
    """Six layers that each see all before them, 1x1 back to the width, global context; residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width + GROWTH * i, GROWTH, 3, padding=1), nn.BatchNorm2d(GROWTH), nn.ReLU())
            for i in range(DENSE_LAYERS)
        )
        self.join = nn.Conv2d(width + GROWTH * DENSE_LAYERS, width, 1)
        self.context = GlobalContext(width)

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for layer in self.layers:
            features = torch.cat([features, layer(features)], 1)
        return x + self.context(self.join(features))


class GlobalContext(nn.Module):
    """Adds to every place one vector: the attention-weighted mean over all places, transformed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.Conv2d(width, 1, 1)
        self.squeeze = nn.Conv2d(width, width // 4, 1)
        self.norm = nn.LayerNorm([width // 4, 1, 1])
        self.spread = nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.attention(x).flatten(2).softmax(-1)
        context = (x.flatten(2) @ weights.transpose(1, 2)).unsqueeze(-1)
        return x + self.spread(torch.relu(self.norm(self.squeeze(context))))


class ChannelWeights(nn.Module):
    """A weight in (0, 1) per channel from the frame's mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        few = width // 8
        self.weigh = nn.Sequential(
            nn.Conv2d(width, few, 1, bias=False), nn.ReLU(), nn.Conv2d(few, width, 1, bias=False), nn.Sigmoid()
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x.mean((2, 3), keepdim=True))


class PyramidPooling(nn.Module):
    """[B, C, h, w] -> [B, 2 C, h, w]: beside the maps, their means on grids of 1, 2, 3 and 6 cells."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(width, width // len(POOLS), 1) for _ in POOLS)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        pooled = [conv(F.adaptive_avg_pool2d(x, cells)) for conv, cells in zip(self.reduce, POOLS, strict=True)]
        return torch.cat([x, *(F.interpolate(p, size=size, mode="bilinear", align_corners=False) for p in pooled)], 1)
