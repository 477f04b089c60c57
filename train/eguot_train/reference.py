"""Reference rendering R(x): a fixed, parameter-free picture of a raw, aligned to the unpaired targets.

R takes ingested planes (white-balanced, camera matrix applied, companded), averages the greens of each cell and
scales up by two. The alignment on top, fitted to the target photos by `alignment.py`, maps luma by a rising tone curve
and chroma (R - Y, B - Y) by a 2x2, so greys stay grey (METHOD.md 1.5).
It is invertible: `data/pseudo.py` sends target photos back through it.
All colours here are gamma-space RGB in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from eguot_sdk.errors import UsageError

from .cost import LUMA

KNOTS = 65


@dataclass(frozen=True, slots=True)
class Alignment:
    """Neutral-preserving colour map. `tone`: luma at 65 even knots on [0, 1]; `chroma`: 2x2 on (R - Y, B - Y)."""

    tone: tuple[float, ...] = tuple(i / (KNOTS - 1) for i in range(KNOTS))
    chroma: tuple[tuple[float, float], tuple[float, float]] = ((1.0, 0.0), (0.0, 1.0))

    def __post_init__(self) -> None:
        if len(self.tone) != KNOTS or any(b <= a for a, b in zip(self.tone, self.tone[1:], strict=False)):
            raise UsageError(f"alignment: tone must be {KNOTS} strictly rising numbers")
        if abs(np.linalg.det(np.array(self.chroma))) < 1e-4:
            raise UsageError("alignment: the chroma map is not invertible")

    def apply(self, rgb: Tensor) -> Tensor:
        """Reference colours -> target colours, [B, 3, H, W], not clipped."""
        even = torch.linspace(0, 1, KNOTS, dtype=rgb.dtype, device=rgb.device)
        tone = torch.tensor(self.tone, dtype=rgb.dtype, device=rgb.device)
        return _recolour(rgb, even, tone, np.array(self.chroma))

    def invert(self, rgb: Tensor) -> Tensor:
        """Target colours -> reference colours, [B, 3, H, W], not clipped; the inverse of `apply`."""
        even = torch.linspace(0, 1, KNOTS, dtype=rgb.dtype, device=rgb.device)
        tone = torch.tensor(self.tone, dtype=rgb.dtype, device=rgb.device)
        return _recolour(rgb, tone, even, np.linalg.inv(np.array(self.chroma)))


def _recolour(rgb: Tensor, xs: Tensor, ys: Tensor, chroma: NDArray[np.float64]) -> Tensor:
    y = rgb[:, 0] * LUMA[0] + rgb[:, 1] * LUMA[1] + rgb[:, 2] * LUMA[2]
    u, v = rgb[:, 0] - y, rgb[:, 2] - y
    toned = _interpolate(y, xs, ys)
    red = toned + float(chroma[0, 0]) * u + float(chroma[0, 1]) * v
    blue = toned + float(chroma[1, 0]) * u + float(chroma[1, 1]) * v
    green = (toned - LUMA[0] * red - LUMA[2] * blue) / LUMA[1]
    return torch.stack([red, green, blue], 1)


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear through (xs, ys), straight on beyond the ends."""
    index = torch.searchsorted(xs, x.contiguous()).clamp(1, len(xs) - 1)
    x0, x1, y0, y1 = xs[index - 1], xs[index], ys[index - 1], ys[index]
    return y0 + (x - x0) * (y1 - y0) / (x1 - x0)


def half_size(planes: Tensor) -> Tensor:
    """Packed planes [B, 4, h, w] -> colours at half size [B, 3, h, w]: the greens of each cell averaged."""
    return torch.stack([planes[:, 0], (planes[:, 1] + planes[:, 2]) / 2, planes[:, 3]], 1)


@dataclass(frozen=True, slots=True)
class Reference:
    """R(x) with an alignment: packed planes [B, 4, h, w] -> [B, 3, 2h, 2w] in [0, 1]."""

    alignment: Alignment = Alignment()

    def __call__(self, planes: Tensor) -> Tensor:
        """Render; call under no_grad, gradients are never wanted."""
        aligned = self.alignment.apply(half_size(planes)).clamp(0, 1)
        return F.interpolate(aligned, scale_factor=2, mode="bilinear", align_corners=False)
