"""Haar wavelet transform of feature maps, orthonormal: filters of +-0.5, so the inverse is the transpose.

Bands lie one after the other along the channels: [B, 4 C, h, w] = low, horizontal, vertical and diagonal detail.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dwt(maps: Tensor) -> Tensor:
    """[B, C, 2h, 2w] -> [B, 4 C, h, w]."""
    a, b = maps[..., 0::2, 0::2], maps[..., 0::2, 1::2]
    c, d = maps[..., 1::2, 0::2], maps[..., 1::2, 1::2]
    return torch.cat(_mix(a, b, c, d), 1)


def idwt(bands: Tensor) -> Tensor:
    """[B, 4 C, h, w] -> [B, C, 2h, 2w], the inverse of `dwt`."""
    low, horizontal, vertical, diagonal = bands.chunk(4, 1)
    phases = torch.stack(_mix(low, horizontal, vertical, diagonal), 2)
    return F.pixel_shuffle(phases.flatten(1, 2), 2)


def _mix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 2x2 Haar matrix, which is its own inverse."""
    top, bottom, top_difference, bottom_difference = a + b, c + d, a - b, c - d
    return (
        (top + bottom) / 2,
        (top_difference + bottom_difference) / 2,
        (top - bottom) / 2,
        (top_difference - bottom_difference) / 2,
    )
