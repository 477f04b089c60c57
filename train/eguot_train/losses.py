"""Losses between a rendering and a truth of the same scene; both float [B, 3, H, W], sRGB in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .blur import gaussian

C1, C2 = 0.01**2, 0.03**2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of MS-SSIM's five scales, finest first."""
SSIM_WINDOW = 11


def charbonnier(a: Tensor, b: Tensor, epsilon: float = 1e-3) -> Tensor:
    """[B] mean of sqrt((a - b)^2 + epsilon^2)."""
    return ((a - b).square() + epsilon**2).sqrt().mean((1, 2, 3))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """[B] SSIM with Gaussian 11x11 windows, sigma 1.5, per channel, range 1, no padding."""
    luminance, contrast = _ssim_maps(a, b)
    return (luminance * contrast).mean((1, 2, 3))


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """[B] multi-scale SSIM of five scales; of as many as leave an 11x11 window, weights rescaled, on small crops."""
    scales = 1
    while scales < len(SCALE_WEIGHTS) and min(a.shape[-2:]) >> scales >= SSIM_WINDOW:
        scales += 1
    weights = SCALE_WEIGHTS[:scales]
    score = torch.ones((), dtype=a.dtype, device=a.device)
    for scale, weight in enumerate(weights):
        if scale:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        luminance, contrast = _ssim_maps(a, b)
        kept = luminance * contrast if scale == scales - 1 else contrast
        score = score * kept.mean((2, 3)).clamp(min=1e-6) ** (weight / sum(weights))
    return score.mean(1)


def _ssim_maps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure maps, whose product is SSIM."""

    def blur(image: Tensor) -> Tensor:
        return gaussian(image, 1.5, SSIM_WINDOW // 2, "crop")

    mean_a, mean_b = blur(a), blur(b)
    both, product = mean_a.square() + mean_b.square(), mean_a * mean_b
    variances = blur(a.square() + b.square()) - both  # only their sum is needed: one filter less
    covariance = blur(a * b) - product
    return (2 * product + C1) / (both + C1), (2 * covariance + C2) / (variances + C2)


def pair_loss(rendered: Tensor, truth: Tensor) -> Tensor:
    """[B] Charbonnier + 0.4 (1 - SSIM) + 20 MSE + 0.5 Charbonnier of the differences R - G and B - G.

    SSIM teaches structure, the square brings tone near, and colour differences, small beside luma, would come last.
    METHOD.md 2.1; `train/LOG.md` has the comparison with others.
    """
    error = rendered - truth
    chroma = charbonnier(error[:, ::2], error[:, 1:2])
    square = error.square().mean((1, 2, 3))
    return charbonnier(rendered, truth) + 0.4 * (1 - ssim(rendered, truth)) + 20 * square + 0.5 * chroma


def supervised_loss(rendered: Tensor, truth: Tensor) -> Tensor:
    """[B] L1 + 0.15 (1 - SSIM), the plain baseline."""
    return (rendered - truth).abs().mean((1, 2, 3)) + 0.15 * (1 - ssim(rendered, truth))
