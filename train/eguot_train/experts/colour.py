"""The colour expert: casts, wrong white balance, desaturation, twisted hues (METHOD.md 3.1).

Pictures are averaged over 4x4 blocks first, so no texture finer than that is seen. Two views: how often each
chromaticity occurs, wherever it is (log-chroma histograms, blind to exposure and to place), and which colour is
where (a Lab thumbnail).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eguot_sdk.metrics import D65, SRGB_TO_XYZ

from .base import Expert, Features, scaled, strided

BLOCK = 4
BINS, RANGE, KERNEL = 32, 1.5, 0.08
"""Bins per axis of the histogram, its half range and its kernel width, both in log chroma."""
BLACK = 0.02
"""Added before the logarithm: noise near black has no colour."""
THUMBNAIL = 16
LINEAR_SRGB_TO_XYZ_D65 = (SRGB_TO_XYZ / D65[:, None]).tolist()
"""Rows over the white point, so white is (1, 1, 1)."""


def chroma_histogram(rgb: Tensor) -> Tensor:
    """[B, 3, h, w] in [0, 1] -> [B, 3, 32, 32]: square roots of histograms that sum to 1.

    Plane c counts (log c/a, log c/b), a and b the two other channels, each pixel weighted by its length. Exact
    under any permutation of pixels; distances between two are Hellinger distances.
    """
    pixels = rgb.flatten(2)
    logs = (pixels + BLACK).log()
    weight = (pixels.square().sum(1) + 1e-8).sqrt()
    centres = torch.linspace(-RANGE, RANGE, BINS, dtype=rgb.dtype, device=rgb.device)
    planes = []
    for channel, others in ((0, (1, 2)), (1, (0, 2)), (2, (0, 1))):
        u, v = (_kernel(logs[:, channel] - logs[:, other], centres) for other in others)
        planes.append((u * weight[:, :, None]).transpose(1, 2) @ v)
    counts = torch.stack(planes, 1)
    return (counts / counts.sum((2, 3), keepdim=True)).sqrt()


def _kernel(values: Tensor, centres: Tensor) -> Tensor:
    return 1 / (1 + ((values[:, :, None] - centres) / KERNEL).square())


def lab(rgb: Tensor) -> Tensor:
    """sRGB [B, 3, h, w] in [0, 1] -> CIE Lab (D65): L in 0..100."""
    curve = ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, curve)
    matrix = torch.tensor(LINEAR_SRGB_TO_XYZ_D65, dtype=rgb.dtype, device=rgb.device)
    xyz = torch.einsum("ij,bjhw->bihw", matrix, linear)
    low = 216 / 24389
    f = torch.where(xyz <= low, xyz * (24389 / 27 / 116) + 16 / 116, xyz.clamp(min=low) ** (1 / 3))
    return torch.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


class ColourExpert(Expert):
    """Chroma histogram and Lab thumbnail, each with its convolutions; one logit, their sum."""

    name = "colour"

    def __init__(self, width: int = 64, *, thumbnail: bool = True) -> None:
        super().__init__()
        a, b, c = scaled(32, width), scaled(64, width), scaled(128, width)
        self.histogram = nn.Sequential(strided((3, a, b, c), 3), nn.Flatten(), nn.Linear(c * (BINS // 8) ** 2, 1))
        self.thumbnail = (
            nn.Sequential(strided((3, a, b, b), 3), nn.Flatten(), nn.Linear(b * (THUMBNAIL // 8) ** 2, 1))
            if thumbnail
            else None
        )

    def transform(self, rgb: Tensor, reference: Tensor | None = None) -> Features:
        blocks = F.avg_pool2d(rgb, BLOCK).clamp(0, 1)
        # The root has length 1 over its 32 x 32 bins; times 64, bins vary by about 1 between photos.
        histogram = 2 * BINS * chroma_histogram(blocks)
        if self.thumbnail is None:
            return (histogram,)
        colours = lab(F.adaptive_avg_pool2d(blocks, THUMBNAIL))
        centre = colours.new_tensor([50.0, 0.0, 0.0])[:, None, None]
        spread = colours.new_tensor([25.0, 15.0, 15.0])[:, None, None]
        return histogram, (colours - centre) / spread

    def judge(self, features: Features) -> Tensor:
        logit: Tensor = self.histogram(features[0]).squeeze(1)
        return logit if self.thumbnail is None else logit + self.thumbnail(features[1]).squeeze(1)
