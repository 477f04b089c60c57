"""A start that renders: weights by which an untrained network is a bilinear demosaic.

Small networks that start at random learn luma first and find colours late, or in a short run never; one that carries
the samples through and interpolates them has colours from the first step (measurements in train/LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eguot_sdk.ingest import PLANE_AT

GREEN = {(0, 0): 1.0, (0, 1): 0.25, (1, 0): 0.25}
"""Green sits on a quincunx: a pixel takes itself, or its four neighbours; keys are distances in rows and columns."""


def bilinear() -> Tensor:
    """[12, 4, 3, 3]: packed planes -> the 2x2 pixels of R, G, B in the order of `pixel_shuffle`, interpolated."""
    weights = torch.zeros(3, 2, 2, 4, 3, 3)
    for plane, (row, column) in enumerate(PLANE_AT):
        color = (0, 1, 1, 2)[plane]
        for down in range(3):
            for right in range(3):
                for y in range(2):
                    for x in range(2):
                        dy, dx = abs(2 * (down - 1) + row - y), abs(2 * (right - 1) + column - x)
                        weight = max(0, 2 - dy) * max(0, 2 - dx) / 4 if color != 1 else GREEN.get((dy, dx), 0.0)
                        weights[color, y, x, plane, down, right] = weight
    return weights.reshape(12, 4, 3, 3)


@torch.no_grad()
def start_as_bilinear(layers: Sequence[nn.Module]) -> None:
    """Let a chain of 3x3 convolutions, planes [B, 4, h, w] -> [B, 12, h, w], be a bilinear demosaic.

    The first four channels of each layer carry the planes; the others keep their random weights and have no say yet.
    The planes are not made smaller, though a tanh bends them: it has few steps of 8 bits to spare.
    """
    carried = torch.arange(4)
    for place, layer in enumerate(layers):
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        layer.bias.zero_()
        if place < len(layers) - 1:
            layer.weight[:4] = 0
            layer.weight[carried, carried, 1, 1] = 1
        else:
            layer.weight.zero_()
            layer.weight[:, :4] = bilinear()
