"""The structure expert: ringing, ghost edges, zippers, misplaced detail, over-smoothing (METHOD.md 3.2).

It sees luma after local normalisation, its gradients and how strongly they agree: nothing of colour, exposure or
local contrast. Two patch discriminators judge apart: one the picture alone, one whether it is the right detail for the
coarse layout of its reference rendering. For a real target that rendering is of the raw that would have made it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..blur import box, gaussian
from ..cost import luma
from .base import Expert, Features, scaled, strided

WINDOW = 15
LEAST_VARIANCE = 1e-4
TENSOR_SIGMA, TENSOR_RADIUS = 2.0, 6
CONDITION_SIGMA, CONDITION_RADIUS = 1.0, 3
"""Low-pass of the condition: the noise of real and simulated raws differs, and must not tell reals from fakes."""
GRADIENT_SCALE = 2.0
CHANNELS = 4


def structure(rgb: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 4, H, W] of about unit variance: normalised luma, its two gradients, coherence.

    Normalised by the mean and deviation over 15x15 windows. Coherence is the share of the gradients' energy
    that points one way (structure tensor, sigma 2), 0..1, centred to -1..1.
    """
    y = luma(rgb)
    mean = box(y, WINDOW)
    deviation = (box(y * y, WINDOW) - mean * mean).clamp(min=0).add(LEAST_VARIANCE).sqrt()
    gradients = _sobel(y) / deviation
    gx, gy = gradients[:, 0:1], gradients[:, 1:2]
    products = torch.cat([gx * gx, gy * gy, gx * gy], 1)
    xx, yy, xy = gaussian(products, TENSOR_SIGMA, TENSOR_RADIUS).split(1, 1)
    coherence = ((xx - yy).square() + 4 * xy.square() + 1e-8).sqrt() / (xx + yy + 1e-2)
    return torch.cat([(y - mean) / deviation, GRADIENT_SCALE * gradients, 2 * coherence - 1], 1)


def _sobel(y: Tensor) -> Tensor:
    """[B, 1, H, W] -> [B, 2, H, W]: horizontal and vertical derivative per pixel, smoothed 1-2-1 across."""
    # Slices: a convolution of one channel is slow backwards on a CPU.
    padded = F.pad(y, (1, 1, 1, 1), mode="reflect")
    columns = padded[..., 2:] - padded[..., :-2]
    rows = padded[..., 2:, :] - padded[..., :-2, :]
    horizontal = columns[..., :-2, :] + 2 * columns[..., 1:-1, :] + columns[..., 2:, :]
    vertical = rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]
    return torch.cat([horizontal, vertical], 1) / 8


class StructureExpert(Expert):
    """Two patch discriminators, [B, 2] logits: picture alone, picture under its reference.

    Without a reference the first judges alone, [B, 1].
    """

    name = "structure"

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.alone = _patch_gan(CHANNELS, width)
        self.conditional = _patch_gan(2 * CHANNELS, width)

    def transform(self, rgb: Tensor, reference: Tensor | None = None) -> Features:
        seen = structure(rgb)
        if reference is None:
            return (seen,)
        condition = structure(gaussian(reference, CONDITION_SIGMA, CONDITION_RADIUS)).detach()
        return seen, torch.cat([condition, seen], 1)

    def judge(self, features: Features) -> Tensor:
        heads = (self.alone, self.conditional)
        return torch.stack([head(f).mean((1, 2, 3)) for head, f in zip(heads, features, strict=False)], 1)


def _patch_gan(inputs: int, width: int) -> nn.Sequential:
    a, b, c = scaled(64, width), scaled(128, width), scaled(256, width)
    return nn.Sequential(strided((inputs, a, b, c), 4), nn.Conv2d(c, 1, 4, padding=1))
