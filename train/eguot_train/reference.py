"""Reference rendering R(x): a fixed, parameter-free picture of a raw, aligned to the unpaired targets.

R takes ingested planes (white-balanced, camera matrix applied, companded), averages the greens of each cell and
scales up by two. The alignment on top is fitted once between colour samples of the raws and of the target photos,
without any pair: luma by a monotone cubic tone curve through quantiles, chroma (R - Y, B - Y) by the
Monge-Kantorovich map of its uncentred second moments, so greys stay grey. Samples are weighted by unbalanced
optimal transport in colour space, which discounts content that only one side shows (METHOD.md 1.5).
The alignment is invertible: `data/pseudo.py` sends target photos back through it.
All colours here are gamma-space RGB in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from eguot_sdk.errors import UsageError

from .cost import LUMA

KNOTS = 65
MIN_SLOPE = 0.05
CHROMA_LIMITS = (0.1, 10.0)
SAMPLES = 1500
RELAXATION, ENTROPY = 0.1, 2e-3
ROUNDS, SINKHORN_STEPS, DAMPING = 12, 40, 0.5
SAFE, HELD = 1e-25, 25.0
"""Least kernel sum that float32 still resolves, and how far potentials move before the kernel is made anew."""


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


@dataclass(frozen=True, slots=True)
class Reference:
    """R(x) with an alignment: packed planes [B, 4, h, w] -> [B, 3, 2h, 2w] in [0, 1]."""

    alignment: Alignment = Alignment()

    def __call__(self, planes: Tensor) -> Tensor:
        """Render; call under no_grad, gradients are never wanted."""
        half = torch.stack([planes[:, 0], (planes[:, 1] + planes[:, 2]) / 2, planes[:, 3]], 1)
        aligned = self.alignment.apply(half).clamp(0, 1)
        return F.interpolate(aligned, scale_factor=2, mode="bilinear", align_corners=False)


def fit_alignment(
    source: Tensor, target: Tensor, *, weighted: bool = True, target_weights: Tensor | None = None
) -> Alignment:
    """Alignment from colour samples [N, 3] of R(raws) to samples [M, 3] of target photos, both gamma space.

    `weighted`: refine with unbalanced-transport weights. `target_weights` [M]: prior weights, e.g. w(y).
    """
    generator = torch.Generator().manual_seed(0)
    source = source[torch.randperm(len(source), generator=generator)[: SAMPLES if weighted else None]]
    order = torch.randperm(len(target), generator=generator)[: SAMPLES if weighted else None]
    target = target[order]
    a = torch.full((len(source),), 1 / len(source))
    b = torch.full((len(target),), 1 / len(target)) if target_weights is None else target_weights[order]
    b = b / b.sum()
    alignment = _fit(source, target, a, b)
    if not weighted:
        return alignment
    potentials = (torch.zeros(len(source)), torch.zeros(len(target)))
    a_weights, b_weights = a, b
    for _ in range(ROUNDS):
        moved = alignment.apply(source.T[None, :, :, None])[0, :, :, 0].T
        distance = torch.cdist(_features(moved), _features(target)).square()
        plan_a, plan_b, potentials = unbalanced_marginals(distance, a, b, potentials)
        a_weights = (1 - DAMPING) * a_weights + DAMPING * plan_a / plan_a.sum()
        b_weights = (1 - DAMPING) * b_weights + DAMPING * plan_b / plan_b.sum()
        alignment = _fit(source, target, a_weights, b_weights)
    return alignment


def unbalanced_marginals(
    distance: Tensor,
    a: Tensor,
    b: Tensor,
    potentials: tuple[Tensor, Tensor] | None = None,
    *,
    relaxation: float = RELAXATION,
    entropy: float = ENTROPY,
    steps: int = SINKHORN_STEPS,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Marginals of the entropic unbalanced plan between histograms a [N], b [M] under cost [N, M].

    Minimises <P, C> + entropy KL(P | a b^T) + relaxation (KL(P1 | a) + KL(P^T1 | b)) by Sinkhorn steps
    (Chizat et al. 2018). Returns both marginals and the potentials, which warm-start the next call.
    """
    f, g = potentials if potentials is not None else (torch.zeros_like(a), torch.zeros_like(b))
    log_a, log_b = a.clamp(min=1e-30).log(), b.clamp(min=1e-30).log()
    pull = relaxation / (relaxation + entropy)
    # Products with a kernel that holds the potentials so far are many times faster than sums of logarithms, which are
    # left for kernels with a row or column of zeros. u, v: how far f, g have moved since, in units of the entropy.
    held_f, held_g, kernel = f, g, _kernel(distance, f, g, entropy)
    u, v = torch.zeros_like(f), torch.zeros_like(g)
    for _ in range(steps):
        seen = kernel @ (v + log_b).exp()
        if seen.min() > SAFE:
            f = pull * (held_f - entropy * seen.log())
        else:
            f = -pull * entropy * torch.logsumexp((g - distance) / entropy + log_b, 1)
        u = (f - held_f) / entropy
        if u.abs().max() > HELD:
            held_f, held_g, kernel = f, g, _kernel(distance, f, g, entropy)
            u, v = torch.zeros_like(f), torch.zeros_like(g)
        seen = (u + log_a).exp() @ kernel
        if seen.min() > SAFE:
            g = pull * (held_g - entropy * seen.log())
        else:
            g = -pull * entropy * torch.logsumexp((f[:, None] - distance) / entropy + log_a[:, None], 0)
        v = (g - held_g) / entropy
        if v.abs().max() > HELD:
            held_f, held_g, kernel = f, g, _kernel(distance, f, g, entropy)
            u, v = torch.zeros_like(f), torch.zeros_like(g)
    left, right = (u + log_a).exp(), (v + log_b).exp()
    return left * (kernel @ right), (left @ kernel) * right, (f, g)


def _kernel(distance: Tensor, f: Tensor, g: Tensor, entropy: float) -> Tensor:
    return ((f[:, None] + g - distance) / entropy).exp_()


def _features(rgb: Tensor) -> Tensor:
    """Luma and twice the chroma, [N, 3]: the space distances are taken in."""
    y = rgb @ torch.tensor(LUMA, dtype=rgb.dtype)
    return torch.stack([y, 2 * (rgb[:, 0] - y), 2 * (rgb[:, 2] - y)], 1)


def _fit(source: Tensor, target: Tensor, a: Tensor, b: Tensor) -> Alignment:
    weights = torch.tensor(LUMA, dtype=source.dtype)
    y_source, y_target = source @ weights, target @ weights
    chroma_source = torch.stack([source[:, 0] - y_source, source[:, 2] - y_source], 1)
    chroma_target = torch.stack([target[:, 0] - y_target, target[:, 2] - y_target], 1)
    tone = _fit_tone(y_source.numpy(), y_target.numpy(), a.numpy(), b.numpy())
    chroma = _monge_kantorovich(_moments(chroma_source, a), _moments(chroma_target, b))
    return Alignment(
        tone=tuple(float(t) for t in tone),
        chroma=((float(chroma[0, 0]), float(chroma[0, 1])), (float(chroma[1, 0]), float(chroma[1, 1]))),
    )


def _moments(chroma: Tensor, weights: Tensor) -> NDArray[np.float64]:
    values = chroma.double().numpy()
    w = weights.double().numpy()
    moments = (values * (w / w.sum())[:, None]).T @ values
    return np.asarray(moments + 1e-6 * np.eye(2))


def _fit_tone(
    y_source: NDArray[np.float32], y_target: NDArray[np.float32], a: NDArray[np.float32], b: NDArray[np.float32]
) -> NDArray[np.float64]:
    """A monotone cubic through matching weighted quantiles, softly tied to black -> black and white -> white."""
    levels = np.linspace(0.01, 0.99, 99)
    xs, ys = _quantiles(y_source, a, levels), _quantiles(y_target, b, levels)
    x = np.concatenate([xs, [0.0, 1.0]])
    y = np.concatenate([ys, [0.0, 1.0]])
    weight = np.concatenate([np.ones(len(xs)), [3.0, 3.0]])
    basis = np.stack([np.ones_like(x), x, x**2, x**3], 1)
    prior = 0.02 * len(xs) * np.diag([0.0, 0.0, 1.0, 1.0]) * 0.05
    coefficients = np.linalg.solve(basis.T @ (weight[:, None] * basis) + prior, basis.T @ (weight * y))
    knots = np.linspace(0, 1, KNOTS)
    curve = np.stack([np.ones_like(knots), knots, knots**2, knots**3], 1) @ coefficients
    steps = np.maximum(np.diff(curve), MIN_SLOPE / (KNOTS - 1))
    return np.concatenate([[curve[0]], curve[0] + np.cumsum(steps)])


def _quantiles(
    values: NDArray[np.float32], weights: NDArray[np.float32], levels: NDArray[np.float64]
) -> NDArray[np.float64]:
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order], dtype=np.float64)
    return np.interp(levels, (cumulative - 0.5 * weights[order]) / cumulative[-1], values[order])


def _monge_kantorovich(s1: NDArray[np.float64], s2: NDArray[np.float64]) -> NDArray[np.float64]:
    """The linear map with A s1 A^T = s2 that moves least: s1^-1/2 (s1^1/2 s2 s1^1/2)^1/2 s1^-1/2.

    Its stretches are kept within CHROMA_LIMITS, so that a folder of black-and-white photos gives a map as well.
    """
    root = _root(s1)
    inverse = np.linalg.inv(root)
    values, vectors = np.linalg.eigh(inverse @ _root(root @ s2 @ root) @ inverse)
    return np.asarray(vectors @ np.diag(values.clip(*CHROMA_LIMITS)) @ vectors.T)


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray(vectors @ np.diag([math.sqrt(max(v, 0.0)) for v in values]) @ vectors.T)
