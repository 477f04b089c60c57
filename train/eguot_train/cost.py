"""Transport cost c(x, y) = d(R(x), y) between a reference rendering and a candidate picture (METHOD.md 1.6).

One `Cost` object serves the potential step and the map step, so both see the same numbers. Terms are means
over pixels, so the cost does not depend on the crop size; each is divided by its median between unrelated
pictures (`scales`, from `calibrate`), so that `strength` is the cost of unrelated content in units of Psi.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from eguot_sdk.metrics import LUMA

from .blur import box, gaussian

BLUR_SIGMA = 4.34
"""Effective sigma in pixels of the 21x21 low-pass of C1."""
BLUR_RADIUS = 10
STRUCTURE_SCALES = (2, 4, 8)
STRUCTURE_WINDOW = 15
TEXTURE_SCALES = (2, 4)
"""R is blurred below: full-size detail is not compared."""
TEXTURE_POOL = 4
TEXTURE_FLOOR = 0.01

Five = tuple[float, float, float, float, float]
WEIGHTS: Five = (0.0, 0.25, 0.10, 0.65, 0.0)
"""Shares of the terms, in the order of `cost_terms`."""


def luma(rgb: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W], gamma-space luma."""
    return rgb[:, 0:1] * LUMA[0] + rgb[:, 1:2] * LUMA[1] + rgb[:, 2:3] * LUMA[2]


def low_pass(rgb: Tensor) -> Tensor:
    """Gaussian low-pass, 21x21, sigma 4.34 px, reflected borders, any channels."""
    return gaussian(rgb, BLUR_SIGMA, min(BLUR_RADIUS, min(rgb.shape[-2:]) - 1))


def normalised_luma(rgb: Tensor, scale: int) -> Tensor:
    """Luma reduced by `scale`, minus its local mean, over its local deviation (15x15): blind to tone and colour."""
    y = F.avg_pool2d(luma(rgb), scale)
    mean, square = box(y, STRUCTURE_WINDOW), box(y * y, STRUCTURE_WINDOW)
    deviation = (square - mean * mean).clamp(min=1e-8).sqrt()
    return (y - mean) / (deviation + 0.02)


def texture_energy(rgb: Tensor, scale: int) -> Tensor:
    """[B, 3, h, w] log mean moduli of Haar details of luma reduced by `scale`, over 4x4 of them: how much of which."""
    y = F.avg_pool2d(luma(rgb), scale)
    y = y[..., : y.shape[-2] // 2 * 2, : y.shape[-1] // 2 * 2]
    a, b, c, d = y[..., ::2, ::2], y[..., ::2, 1::2], y[..., 1::2, ::2], y[..., 1::2, 1::2]
    bands = torch.cat([a + b - c - d, a - b + c - d, a - b - c + d], 1) / 2
    return (F.avg_pool2d((bands.square() + 1e-6).sqrt(), TEXTURE_POOL) + TEXTURE_FLOOR).log()


def cost_terms(reference: Tensor, rgb: Tensor, *, texture: bool = True) -> Tensor:
    """[B, 5] unscaled terms between pictures [B, 3, H, W].

    Pixels (C0), low-pass without DC (C1), DC, structure (C2), texture (C3; 0 where it is not asked for).
    """
    difference = rgb - reference
    pixels = difference.square().mean((1, 2, 3))
    mean = difference.mean((2, 3), keepdim=True)
    coarse = (low_pass(difference) - mean).square().mean((1, 2, 3))
    dc = mean.square().mean((1, 2, 3))
    structure = torch.stack(
        [
            (normalised_luma(reference, s) - normalised_luma(rgb, s)).square().mean((1, 2, 3))
            for s in STRUCTURE_SCALES
            if min(rgb.shape[-2:]) // s >= 5
        ]
    ).mean(0)
    energy = torch.zeros_like(dc)
    if texture:
        energy = torch.stack(
            [
                (texture_energy(reference, s) - texture_energy(rgb, s)).square().mean((1, 2, 3))
                for s in TEXTURE_SCALES
                if min(rgb.shape[-2:]) // (2 * s) >= TEXTURE_POOL
            ]
            or [energy]
        ).mean(0)
    return torch.stack([pixels, coarse, dc, structure, energy], 1)


@dataclass(frozen=True, slots=True)
class Cost:
    """c(R(x), y) = strength * sum_i weights[i] * term_i / scales[i]; terms as in `cost_terms`."""

    strength: float = 1.0
    weights: Five = WEIGHTS
    scales: Five = (1.0, 1.0, 1.0, 1.0, 1.0)

    def __call__(self, reference: Tensor, rgb: Tensor) -> Tensor:
        """[B] cost of each picture against its reference rendering, both [B, 3, H, W]."""
        factors = [self.strength * w / s for w, s in zip(self.weights, self.scales, strict=True)]
        terms = cost_terms(reference, rgb, texture=self.weights[-1] > 0)
        return terms @ torch.tensor(factors, dtype=rgb.dtype, device=rgb.device)

    def calibrate(self, references: Tensor, pictures: Tensor) -> Cost:
        """The same cost with `scales` set to each term's median between references and unrelated pictures."""
        with torch.no_grad():
            medians = cost_terms(references, pictures).median(0).values.clamp(min=1e-6)
        a, b, c, d, e = (float(m) for m in medians)
        return replace(self, scales=(a, b, c, d, e))
