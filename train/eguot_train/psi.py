"""Divergences of unbalanced optimal transport through their convex conjugates (METHOD.md 1.3).

Every family is normalised: Psi*(0) = 0 and Psi*'(0) = 1. Strength alpha: Psi*_alpha(t) = alpha * Psi*(t / alpha),
so alpha -> infinity is the balanced limit. The derivative is the weight a sample keeps in the transport plan:
`dstar(-v(y))` is the weight of target y, below 1 where y is an outlier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from eguot_sdk.errors import UsageError

Family = Literal["linear", "kl", "chi2", "softplus"]
FAMILIES: tuple[Family, ...] = get_args(Family)
KL_CLAMP = 10.0


@dataclass(frozen=True, slots=True)
class Psi:
    """One divergence: its family and strength alpha (> 0)."""

    family: Family
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UsageError(f"divergence must be one of {', '.join(FAMILIES)}, not {self.family!r}")
        if not self.alpha > 0:
            raise UsageError(f"alpha must be positive, not {self.alpha}")

    def star(self, t: Tensor) -> Tensor:
        """Convex conjugate alpha * Psi*(t / alpha), any shape."""
        return self.alpha * _star(self.family, t / self.alpha)

    def dstar(self, t: Tensor) -> Tensor:
        """Its derivative, the marginal weight: 1 at t = 0, never negative."""
        return _dstar(self.family, t / self.alpha)


def _star(family: Family, t: Tensor) -> Tensor:
    if family == "linear":
        return t
    if family == "kl":
        # Above the clamp the tangent goes on, so the gradient never dies and never overflows.
        inner = t.clamp(max=KL_CLAMP)
        return torch.expm1(inner) + (t - inner) * math.exp(KL_CLAMP)
    if family == "chi2":
        inner = t.clamp(min=-2.0)
        return inner + inner.square() / 4
    return 2 * F.softplus(t) - 2 * math.log(2.0)


def _dstar(family: Family, t: Tensor) -> Tensor:
    if family == "linear":
        return torch.ones_like(t)
    if family == "kl":
        return torch.exp(t.clamp(max=KL_CLAMP))
    if family == "chi2":
        return (1 + t / 2).clamp(min=0.0)
    return 2 * torch.sigmoid(t)
