"""What every expert is: a transform that fixes what it can see, and a discriminator on what the transform leaves.

Pictures are float [B, 3, H, W], sRGB in [0, 1]; renderings may leave that range. An expert of one's own is a subclass.
One on features of a network trained elsewhere (`backbone`: any frozen module, [B, 3, H, W] -> [B, 64, h, w]):

    class TextureExpert(Expert):
        name = "texture"

        def __init__(self, backbone: nn.Module) -> None:
            super().__init__()
            self.backbone = backbone.eval().requires_grad_(False)
            self.head = nn.Sequential(nn.Conv2d(64, 64, 1), nn.LeakyReLU(0.2), nn.Conv2d(64, 1, 1))

        def transform(self, rgb: Tensor, reference: Tensor | None = None) -> Features:
            return (self.backbone(rgb.clamp(0, 1)),)

        def judge(self, features: Features) -> Tensor:
            return self.head(features[0]).mean((1, 2, 3))

    train(config, out, own_experts=[(TextureExpert(backbone), 0.1)])
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .. import ranks

Features = tuple[Tensor, ...]
"""What a transform makes of pictures: tensors with the batch first, of about unit variance (penalties assume it)."""

FULL_WIDTH = 64
"""The `width` at which the shipped experts have the full networks."""
MEMORY = 100
"""Batches that running statistics reach back."""


class Expert(nn.Module):
    """Base class: set `name`, implement `transform` and `judge`."""

    name: str

    def transform(self, rgb: Tensor, reference: Tensor | None = None) -> Features:
        """Features of pictures; `reference` are their reference renderings, where known. Nothing here is trained."""
        raise NotImplementedError

    def judge(self, features: Features) -> Tensor:
        """Logits, high where real: [B], or [B, heads] of heads that judge apart; a head sees its own tensors only."""
        raise NotImplementedError

    def observe(self, real: Tensor, weights: Tensor) -> None:
        """Gather running statistics from real pictures with weights [B]; an expert with a fixed transform has none."""


class Standardise(nn.Module):
    """Subtract the running mean of real features and divide by their deviation, element by element.

    `floor` is the least deviation, so that an element that never varies does not amplify rounding.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...], floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.variance.sqrt().clamp(min=self.floor)

    @torch.no_grad()
    def update(self, features: Tensor, weights: Tensor) -> None:
        """Blend in a batch [N, *shape] with weights [N]; one whose weights are all zero says nothing."""
        whole = ranks.total(weights.sum())
        if whole == 0:
            return
        share = (weights / whole).reshape(-1, *[1] * (features.dim() - 1))
        mean = ranks.total((share * features).sum(0))
        square = ranks.total((share * features.square()).sum(0))
        old_square = self.variance + self.mean.square()
        rate = 1 / (self.count + 1).clamp(max=MEMORY)
        self.mean.lerp_(mean, rate)
        self.variance.copy_((old_square + rate * (square - old_square) - self.mean.square()).clamp(min=0))
        self.count += 1


def scaled(channels: int, width: int) -> int:
    """Channels of a layer that has `channels` at full width."""
    return max(4, channels * width // FULL_WIDTH)


def strided(channels: tuple[int, ...], kernel: int) -> nn.Sequential:
    """Convolutions of stride 2, each followed by a leaky ReLU of slope 0.2."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, kernel, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)
