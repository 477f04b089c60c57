"""Synthetic pictures with the 1/f spectrum of photographs, and the ways a rendering goes wrong."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def fields(count: int, channels: int, side: int, generator: torch.Generator) -> Tensor:
    """Gaussian fields of amplitude 1/f, mean 0, deviation 1, float64 [count, channels, side, side]."""
    white = torch.randn(count, channels, side, side, generator=generator, dtype=torch.float64)
    rows = torch.fft.fftfreq(side, dtype=torch.float64)[:, None]
    columns = torch.fft.rfftfreq(side, dtype=torch.float64)[None]
    radius = (rows**2 + columns**2).sqrt()
    radius[0, 0] = math.inf
    field = torch.fft.irfft2(torch.fft.rfft2(white) / radius, s=(side, side))
    return field / field.std((2, 3), keepdim=True)


def natural(count: int, side: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pictures [count, 3, side, side] in [0.01, 0.99]: 1/f luma, weaker 1/f chroma, a cast of its own each."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator, dtype=torch.float64)

    luma = uniform(0.4, 0.55) + uniform(0.1, 0.16) * fields(count, 1, side, generator)
    cast = 0.02 * torch.randn(count, 2, 1, 1, generator=generator, dtype=torch.float64)
    chroma = cast + 0.03 * fields(count, 2, side, generator)
    rgb = torch.cat([luma + chroma[:, :1], luma - 0.5 * chroma.sum(1, keepdim=True), luma + chroma[:, 1:]], 1)
    return rgb.clamp(0.01, 0.99).to(dtype)


def with_edges(count: int, side: int, seed: int) -> Tensor:
    """`natural` with four straight edges across each picture."""
    rgb = natural(count, side, seed)
    generator = torch.Generator().manual_seed(seed + 7)
    place = torch.arange(side) / side - 0.5
    for _ in range(4):
        angle = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
        offset = 0.7 * (torch.rand(count, 1, 1, generator=generator) - 0.5)
        height = 0.3 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
        distance = angle.cos() * place[None, None] + angle.sin() * place[None, :, None] - offset
        rgb = rgb + height * torch.sigmoid(distance * side / 0.7)[:, None]
    return rgb.clamp(0.01, 0.99)


def coarse(rgb: Tensor) -> Tensor:
    """What a reference rendering knows of a picture: half the resolution, interpolated."""
    return F.interpolate(F.avg_pool2d(rgb, 2), scale_factor=2, mode="bilinear", align_corners=False)


def checker(rgb: Tensor, amplitude: float) -> Tensor:
    """Add a checkerboard of one-pixel fields."""
    index = torch.arange(rgb.shape[-1])
    board = 1 - 2 * ((index[:, None] + index[None]) % 2)
    return rgb + amplitude * board.to(rgb)


def gain(rgb: Tensor, channel: int, factor: float) -> Tensor:
    """Scale one channel."""
    scaled = rgb.clone()
    scaled[:, channel] *= factor
    return scaled


def blur(rgb: Tensor, share: float = 1.0) -> Tensor:
    """Blend with the picture under a 5x5 binomial filter."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=rgb.dtype) / 16
    kernel = torch.outer(taps, taps)[None, None].repeat(3, 1, 1, 1)
    return rgb + share * (F.conv2d(F.pad(rgb, (2, 2, 2, 2), mode="reflect"), kernel, groups=3) - rgb)


def sharpen(rgb: Tensor, amount: float) -> Tensor:
    """Unsharp masking, which rings."""
    return blur(rgb, -amount)


def shift(rgb: Tensor, pixels: int) -> Tensor:
    """Move to the right, round the edge."""
    return torch.roll(rgb, pixels, -1)


def shuffle_blocks(rgb: Tensor, side: int, seed: int = 0) -> Tensor:
    """Permute the aligned blocks of `side` pixels."""
    b, c, h, w = rgb.shape
    blocks = rgb.reshape(b, c, h // side, side, w // side, side).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    blocks = blocks[:, torch.randperm(blocks.shape[1], generator=torch.Generator().manual_seed(seed))]
    return blocks.reshape(b, h // side, w // side, c, side, side).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
