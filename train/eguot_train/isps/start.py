"""A start that renders: weights by which an untrained network is a bilinear demosaic.

Small networks that start at random learn luma first and find colours late, or in a short run never; one that carries
the samples through and interpolates them has colours from the first step (measurements in train/LOG.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eguot_sdk.ingest import PLANE_AT

GREEN = {(0, 0): 1.0, (0, 1): 0.25, (1, 0): 0.25}
"""Green sits on a quincunx: a pixel takes itself, or its four neighbours; keys are distances in rows and columns."""


def sample_sites(block: int) -> list[tuple[int, int, int]]:
    """Row, column and plane of the samples of a `block` x `block` piece of the mosaic, in the order of its channels."""
    return [
        (2 * row + dy, 2 * col + dx, plane)
        for row in range(block // 2)
        for col in range(block // 2)
        for plane, (dy, dx) in enumerate(PLANE_AT)
    ]


def bilinear(block: int) -> Tensor:
    """[3 * block**2, block**2, 3, 3]: weights that interpolate each colour of a block between its sites.

    Input channels are the samples of `sample_sites`, output channels those of `pixel_shuffle` by `block`.
    """
    weights = torch.zeros(3, block, block, block * block, 3, 3)
    for channel, (row, col, plane) in enumerate(sample_sites(block)):
        color = (0, 1, 1, 2)[plane]
        for block_row in range(3):
            for block_col in range(3):
                for y in range(block):
                    for x in range(block):
                        dy = abs(block * (block_row - 1) + row - y)
                        dx = abs(block * (block_col - 1) + col - x)
                        weight = max(0, 2 - dy) * max(0, 2 - dx) / 4 if color != 1 else GREEN.get((dy, dx), 0.0)
                        weights[color, y, x, channel, block_row, block_col] = weight
    return weights.reshape(3 * block * block, block * block, 3, 3)


@torch.no_grad()
def start_as_bilinear(stem: nn.Conv2d, middle: nn.Conv2d, tail: nn.Conv2d, gain: float = 0.5) -> None:
    """Let tail(relu(middle(tanh(stem(planes))))) be a bilinear demosaic, but for what the tanh bends.

    The first four channels carry the planes, at `gain` where the tanh is nearly straight; the others keep their random
    weights and have no say yet.
    """
    for conv in (stem, middle, tail):
        assert conv.bias is not None
        conv.bias.zero_()
    carried = torch.arange(4)
    for conv, weight in ((stem, gain), (middle, 1.0)):
        conv.weight[:4] = 0
        conv.weight[carried, carried, 1, 1] = weight
    tail.weight.zero_()
    tail.weight[:, :4] = bilinear(2) / gain
