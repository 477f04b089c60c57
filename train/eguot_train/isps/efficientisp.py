"""EfficientISP, 3,060 parameters: three 3x3 convolutions at packed resolution.

METHOD.md 4.7: conv 4-12 tanh, conv 12-12 ReLU, conv 12-12 ReLU, shuffle; nothing squashes the output.
Its own training is unpaired and adversarial; no supervised loss is described, so the default stands in. How it starts
is not described either: here as a bilinear demosaic (see `start`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import IspNet, Recipe
from .start import start_as_bilinear


class EfficientIsp(IspNet):
    """Baseline of an unpaired challenge."""

    name = "efficientisp"
    halo = 3
    recipe = Recipe(lr=5e-4, batch=16)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 12, 3, padding=1)
        self.middle = nn.Conv2d(12, 12, 3, padding=1)
        self.tail = nn.Conv2d(12, 12, 3, padding=1)
        start_as_bilinear([self.stem, self.middle, self.tail])

    def body(self, planes: Tensor) -> Tensor:
        features = torch.relu(self.middle(torch.tanh(self.stem(planes))))
        return torch.relu(self.tail(features))
