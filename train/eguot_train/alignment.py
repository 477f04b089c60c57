"""Fits the reference rendering's colours to the target photos, without any pair.

`fit_alignment` knows three things that plain moments do not. Pictures of two folders differ by content: how much is
told by drawing the folders anew, picture by picture, and what still differs after the best fit tells how much of it the
two folders share. Cameras are alike: tone and chroma of real ones vary little around the values in `PRIOR` (fitted to
pairs of raw and camera JPEG by `benchmarks/alignment/run.py prior`). And a few pictures may have nothing to do with
the rest: unbalanced optimal transport in colour space discounts what one side alone shows. The fit is the most probable
alignment given all three. `fit_plain_alignment` is the baseline: quantiles and moments as they are (METHOD.md 1.5).

All colours are gamma-space RGB in [0, 1]. Samples come picture by picture, [n, 3] each, in random order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .cost import LUMA
from .reference import KNOTS, Alignment

Array = NDArray[np.float64]

SAMPLES = 3000
"""Colours a side in the transport problem."""
RELAXATION, ENTROPY = 0.3, 2e-3
ROUNDS, SINKHORN_STEPS, DAMPING = 4, 40, 0.5
SAFE, HELD = 1e-25, 25.0
"""Least kernel sum that float32 still resolves, and how far potentials move before the kernel is made anew."""
MIN_SLOPE = 0.05
CHROMA_LIMITS = (0.1, 10.0)

PRIOR = np.array([1.0, 0.68, 0.03, 0.37, -0.02])
"""Lift, contrast, log gain, log saturation and hue (radians) of cameras, over a plain 1/2.2 curve."""
PRIOR_SPREAD = np.array([0.57, 0.18, 0.037, 0.15, 0.075])
"""Standard deviations, two to three times those of the pairs: they were few and of one maker."""
LOWEST = np.array([-0.5, -0.5, -0.7, math.log(CHROMA_LIMITS[0]), -1.0])
HIGHEST = np.array([3.0, 1.5, 0.7, math.log(CHROMA_LIMITS[1]), 1.0])
LEVELS = np.linspace(0.03, 0.97, 16)
"""Quantiles of luma that are compared."""
BINS = 256
DRAWS = 60
RIDGE, FINE_RIDGE = 1e-2, 1e-4
"""Variance added to every compared number: the curve family is not exact. The fine one is for judging the misfit."""
ENOUGH = 21
"""Pictures a side beyond which the variance added falls as content noise does: large folders are believed."""
LEAST_SHARE = 0.02
"""Least share of the content noise that folders of the same scenes are taken to have."""
FREE = 3.0
"""Factor on the prior's width in the fit whose misfit is judged."""
PAIR_VARIANCE, PAIR_COUNT = 0.05**2, 20.0
"""Of a mapped colour against the truth; and how many independent colours a pair counts for: neighbours are alike."""
STEP = 1e-4


@dataclass(frozen=True, slots=True)
class _Side:
    """Weighted sums by picture: luma histograms [P, BINS], uu uv vv of chroma [P, 3], weights [P]."""

    luma: Array
    chroma: Array
    weight: Array

    def __len__(self) -> int:
        return len(self.weight)

    def mean(self, index: NDArray[np.intp] | None = None) -> tuple[Array, Array]:
        """Luma at LEVELS and the mean chroma moments [3], of the pictures of `index` (all of them by default)."""
        rows = np.arange(len(self)) if index is None else index
        cumulative = np.cumsum(self.luma[rows].sum(0))
        quantiles = np.interp(LEVELS, cumulative / cumulative[-1], (np.arange(BINS) + 1) / BINS)
        return quantiles, self.chroma[rows].sum(0) / self.weight[rows].sum() + 1e-6 * np.array([1.0, 0.0, 1.0])


def fit_alignment(
    source: Sequence[Tensor],
    target: Sequence[Tensor],
    *,
    target_weights: Sequence[float] | None = None,
    pairs: Sequence[tuple[Tensor, Tensor]] = (),
) -> Alignment:
    """The alignment of R(raws), sampled as `source`, to the photos sampled as `target`.

    `target_weights`: how much each photo counts, such as its mean w(y); 1 by default. `pairs`: colours [n, 3] of R and
    of the truth at the same places, where some are known. Depends on nothing else.
    """
    known = [(x.double().numpy(), y.double().numpy()) for x, y in pairs]
    photos = [1.0] * len(target) if target_weights is None else list(target_weights)
    sides = [[x[: max(1, SAMPLES // len(side))] for x in side] for side in (source, target)]
    joined = [torch.cat(side) for side in sides]
    a = torch.full((len(joined[0]),), 1 / len(joined[0]))
    b = torch.cat([torch.full((len(x),), float(w)) for x, w in zip(sides[1], photos, strict=True)])
    b = b / b.sum()
    weights, potentials = [a, b], None
    rng = np.random.default_rng(0)
    draws = [
        (rng.integers(len(source), size=len(source)), rng.integers(len(target), size=len(target))) for _ in range(DRAWS)
    ]
    values = PRIOR
    for _ in range(ROUNDS):
        moved = camera_alignment(values).apply(joined[0].T[None, :, :, None])[0, :, :, 0].T
        distance = torch.cdist(_features(moved), _features(joined[1])).square()
        plan_a, plan_b, potentials = unbalanced_marginals(distance, a, b, potentials)
        for i, plan in enumerate((plan_a, plan_b)):
            weights[i] = (1 - DAMPING) * weights[i] + DAMPING * plan / plan.sum()
        values = _most_probable(_side(sides[0], weights[0]), _side(sides[1], weights[1]), draws, known, values)
    return camera_alignment(values)


def fit_plain_alignment(source: Sequence[Tensor], target: Sequence[Tensor]) -> Alignment:
    """The baseline: a cubic tone curve through luma quantiles, and the Monge-Kantorovich map of chroma moments."""
    a, b = torch.cat(list(source)), torch.cat(list(target))
    return _fit(a, b, torch.full((len(a),), 1 / len(a)), torch.full((len(b),), 1 / len(b)))


def fit_to_pairs(pairs: Sequence[tuple[Tensor, Tensor]]) -> Array:
    """The camera's values from colours [n, 3] of R(x) and of the truth at the same places, with next to no prior."""
    known = [(x.double().numpy(), y.double().numpy()) for x, y in pairs]
    return _solve(None, np.diag((10 * PRIOR_SPREAD) ** -2.0), known)


def camera_tone(values: Array) -> Array:
    """Luma at the knots of an Alignment, made strictly rising: gain * ((1 - contrast) lifted + contrast smoothstep).

    lifted(e) = (1 + lift) e / (1 + lift e), smoothstep(e) = e^2 (3 - 2 e).
    """
    lift, contrast, gain = float(values[0]), float(values[1]), math.exp(values[2])
    e = np.linspace(0, 1, KNOTS)
    curve = gain * ((1 - contrast) * (1 + lift) * e / (1 + lift * e) + contrast * e * e * (3 - 2 * e))
    steps = np.maximum(np.diff(curve), MIN_SLOPE / (KNOTS - 1))
    return np.concatenate([[0.0], np.cumsum(steps)])


def camera_alignment(values: Array) -> Alignment:
    """The alignment of lift, contrast, log gain, log saturation and hue."""
    (a, b), (c, d) = _turn(values)
    return Alignment(tuple(float(t) for t in camera_tone(values)), ((a, b), (c, d)))


def _turn(values: Array) -> list[list[float]]:
    """Saturation and hue as a 2x2 on (R - Y, B - Y)."""
    scale, hue = math.exp(values[3]), float(values[4])
    c, s = scale * math.cos(hue), scale * math.sin(hue)
    return [[c, -s], [s, c]]


def _side(pictures: Sequence[Tensor], weights: Tensor) -> _Side:
    sizes = [len(x) for x in pictures]
    luma, chroma, total = [], [], []
    for colours, share in zip(pictures, weights.split(sizes), strict=True):
        rgb, w = colours.double().numpy(), share.double().numpy()
        y = rgb @ np.array(LUMA)
        u, v = rgb[:, 0] - y, rgb[:, 2] - y
        luma.append(np.histogram(y.clip(0, 1), BINS, (0, 1), weights=w)[0])
        chroma.append([(w * u * u).sum(), (w * u * v).sum(), (w * v * v).sum()])
        total.append(w.sum())
    return _Side(np.array(luma), np.array(chroma), np.array(total))


def _most_probable(
    source: _Side,
    target: _Side,
    draws: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    known: Sequence[tuple[Array, Array]],
    start: Array,
) -> Array:
    """Values that maximise prior times likelihood of what differs, with Gaussian content noise."""
    values = start
    whole = (source.mean(), target.mean())
    drawn = [(source.mean(i), target.mean(j)) for i, j in draws]
    precision = np.diag(PRIOR_SPREAD**-2.0)
    # One picture says nothing of its kind's spread: as if each side had one more, a tenth of the range away.
    few = 0.01 * (len(source) ** -2.0 + len(target) ** -2.0)
    added = RIDGE * min(1.0, ENOUGH * (1 / len(source) + 1 / len(target)) / 2)
    for _ in range(2):
        noise = np.cov(np.array([_misfit(values, *pair) for pair in drawn]).T) + few * np.eye(len(LEVELS) + 3)
        ridge = np.eye(len(noise))
        inverse = np.linalg.inv(noise + added * ridge)
        free = _solve((lambda v: _misfit(v, *whole), inverse), precision / FREE**2, known)
        left = _misfit(free, *whole)
        share = float(left @ np.linalg.solve(noise + FINE_RIDGE * ridge, left)) / (len(left) - len(values))
        share = min(max(share, LEAST_SHARE), 1.0)
        values = _solve((lambda v: _misfit(v, *whole), inverse / share), precision, known)
    return values


def _solve(
    content: tuple[Callable[[Array], Array], Array] | None, precision: Array, known: Sequence[tuple[Array, Array]]
) -> Array:
    """Gauss-Newton from the prior's mean. `content`: the misfit [n] of values, and its inverse covariance."""
    terms: list[tuple[Callable[[Array], Array], Array | float]] = [(lambda v: v - PRIOR, precision)]
    terms += [] if content is None else [content]
    for colours, truth in known:
        terms.append((partial(_colour_errors, colours, truth), PAIR_COUNT / truth.size / PAIR_VARIANCE))

    def height(values: Array) -> float:
        return sum(
            float(left @ (weight @ left if isinstance(weight, np.ndarray) else weight * left))
            for left, weight in ((f(values), w) for f, w in terms)
        )

    values, least = PRIOR, height(PRIOR)
    for _ in range(25):
        curvature, slope = np.zeros((len(PRIOR),) * 2), np.zeros(len(PRIOR))
        for function, weight in terms:
            left, slopes = _with_slopes(function, values)
            weighted = weight @ slopes if isinstance(weight, np.ndarray) else weight * slopes
            curvature += slopes.T @ weighted
            slope += weighted.T @ left
        step = np.linalg.solve(curvature, slope)
        tried = [(values - share * step).clip(LOWEST, HIGHEST) for share in (1.0, 0.5, 0.25, 0.1, 0.02)]
        better = next((v for v in tried if height(v) < least), None)
        if better is None:
            break
        values, least = better, height(better)
    return values


def _with_slopes(function: Callable[[Array], Array], values: Array) -> tuple[Array, Array]:
    """A function's numbers [n] and their derivatives [n, 5]."""
    left = function(values)
    slopes = np.empty((len(left), len(values)))
    for i in range(len(values)):
        nudged = values.copy()
        nudged[i] += STEP
        slopes[:, i] = (function(nudged) - left) / STEP
    return left, slopes


def _colour_errors(rgb: Array, truth: Array, values: Array) -> Array:
    """[3n]: what `camera_alignment(values)` makes of colours [n, 3], clipped as R(x) is, minus the truth."""
    y = rgb @ np.array(LUMA)
    chroma = np.stack([rgb[:, 0] - y, rgb[:, 2] - y], 1) @ np.array(_turn(values)).T
    toned = np.interp(y, np.linspace(0, 1, KNOTS), camera_tone(values))
    red, blue = toned + chroma[:, 0], toned + chroma[:, 1]
    green = (toned - LUMA[0] * red - LUMA[2] * blue) / LUMA[1]
    return np.asarray((np.stack([red, green, blue], 1).clip(0, 1) - truth).ravel())


def _misfit(values: Array, source: tuple[Array, Array], target: tuple[Array, Array]) -> Array:
    """What still differs: luma at LEVELS; half the log ratio of chroma energy; its two anisotropies."""
    tone = np.interp(source[0], np.linspace(0, 1, KNOTS), camera_tone(values)) - target[0]
    turn = np.array(_turn(values))
    (uu, uv, vv), (tuu, tuv, tvv) = source[1], target[1]
    moved = turn @ np.array([[uu, uv], [uv, vv]]) @ turn.T
    energy, wanted = moved[0, 0] + moved[1, 1], tuu + tvv
    chroma = [
        0.5 * math.log(energy / wanted),
        (moved[0, 0] - moved[1, 1]) / energy - (tuu - tvv) / wanted,
        2 * moved[0, 1] / energy - 2 * tuv / wanted,
    ]
    return np.concatenate([tone, chroma])


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
    """Quantiles and moments, with weights a [N] and b [M]."""
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
