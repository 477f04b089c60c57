"""The moving average of a network: what runs are scored by and what ships."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, step: int, decay: float) -> None:
    """Move `average` towards `net` after step `step`, from 0; shorter memory at first, so that the start is forgotten.

    Buffers, the statistics of batch norm, are averages already and are copied.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for kept, now in zip(average.parameters(), net.parameters(), strict=True):
        kept.lerp_(now, 1 - decay)
    for statistic, current in zip(average.buffers(), net.buffers(), strict=True):
        statistic.copy_(current)
