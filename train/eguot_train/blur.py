"""Separable Gaussian and box filters as matrix products, on a CPU several times faster than depthwise convolutions."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Border = Literal["reflect", "crop"]


@lru_cache(maxsize=64)
def _matrix(size: int, sigma: float, radius: int, border: Border, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Filter along one axis as a matrix: [size, size] with reflection-101, [size - 2 radius, size] without borders."""
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    taps = taps / taps.sum()
    rows = size if border == "reflect" else size - 2 * radius
    matrix = torch.zeros(rows, size, dtype=torch.float64)
    for row in range(rows):
        for tap in range(2 * radius + 1):
            column = row + tap - (radius if border == "reflect" else 0)
            column = abs(column)
            column = 2 * (size - 1) - column if column >= size else column
            matrix[row, column] += taps[tap]
    return matrix.to(dtype=dtype, device=device)


def gaussian(image: Tensor, sigma: float, radius: int, border: Border = "reflect") -> Tensor:
    """Filter [B, C, H, W]; `reflect` keeps the size (needs radius < H, W), `crop` loses `radius` on each side."""
    rows = _matrix(image.shape[-2], sigma, radius, border, image.dtype, image.device)
    columns = _matrix(image.shape[-1], sigma, radius, border, image.dtype, image.device)
    return rows @ image @ columns.T


@lru_cache(maxsize=64)
def _box_matrix(size: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Mean over the part of a centred window that lies inside, as a matrix [size, size]."""
    index = torch.arange(size)
    inside = (index[:, None] - index[None, :]).abs() <= window // 2
    matrix = inside.to(torch.float64)
    return (matrix / matrix.sum(1, keepdim=True)).to(dtype=dtype, device=device)


def box(image: Tensor, window: int) -> Tensor:
    """Local mean of [B, C, H, W] over odd `window` squares; at the borders over the part inside."""
    rows = _box_matrix(image.shape[-2], window, image.dtype, image.device)
    columns = _box_matrix(image.shape[-1], window, image.dtype, image.device)
    return rows @ image @ columns.T
