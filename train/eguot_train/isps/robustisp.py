"""RobustISP, 1,616 parameters: three 3x3 convolutions at packed resolution.

METHOD.md 4.7: conv 4-16 tanh, conv 16-4 ReLU, conv 4-12 ReLU, shuffle. Its own training is
unpaired, with adversarial and VGG terms; no supervised loss is described, so the default stands in. It starts as
a bilinear demosaic, as `efficientisp` does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import IspNet, Recipe
from .start import start_as_bilinear


class RobustIsp(IspNet):
    """The smallest of the zoo."""

    name = "robustisp"
    halo = 3
    recipe = Recipe(lr=2e-4, batch=32)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 4, 3, padding=1)
        self.tail = nn.Conv2d(4, 12, 3, padding=1)
        start_as_bilinear([self.stem, self.middle, self.tail])

    def body(self, planes: Tensor) -> Tensor:
        features = torch.relu(self.middle(torch.tanh(self.stem(planes))))
        return torch.relu(self.tail(features))
