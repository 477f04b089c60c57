"""Toy transport problems solved with the product's divergences: discrete ones exactly, 2-D ones with small networks.

Discrete: n sources (weights a), m targets (weights b), cost [n, m]; the semi-dual J(v) is maximised by L-BFGS over v
in R^m with the inner minimum softened by `eps`. `primal` and `dual` bound the true value from above and below, in
NumPy and with the divergences' own formulas (not their conjugates), so every solution carries a certificate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

from eguot_train.psi import Psi

Floats = NDArray[np.float64]


def divergence(family: str, s: Floats) -> Floats:
    """Psi(s) of METHOD.md 1.3, elementwise, alpha = 1; inf where it is not finite."""
    s = np.asarray(s, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        xlogx = np.where(s > 0, s * np.log(s), np.where(s == 0, 0.0, np.inf))
        other = np.where(s < 2, (2 - s) * np.log(2 - s), np.where(s == 2, 0.0, np.inf))
    if family == "linear":
        return np.where(np.abs(s - 1) < 1e-3, 0.0, np.inf)  # as close as the solver stops
    if family == "kl":
        return xlogx - s + 1
    if family == "chi2":
        return np.where(s >= 0, (s - 1) ** 2, np.inf)
    assert family == "softplus"
    return np.asarray(xlogx + other)


@dataclass(frozen=True)
class Discrete:
    """A solved problem. `plan` [n, m] has masses; `history` holds -J_eps after every iteration at the last eps."""

    cost: Floats
    a: Floats
    b: Floats
    psi_source: Psi
    psi_target: Psi
    v: Floats
    plan: Floats
    history: list[float]

    @property
    def weights(self) -> Floats:
        """w(y) = Psi2*'(-v(y)), [m]."""
        return self.psi_target.dstar(torch.from_numpy(-self.v)).numpy()

    def share(self, targets: NDArray[np.bool_]) -> float:
        """Part of the plan's mass that goes to the marked targets."""
        return float(self.plan[:, targets].sum() / self.plan.sum())

    def mean_map(self, y: Floats) -> Floats:
        """Mean of T over the sources as drawn, with T(x) the barycentre of x's row of the plan."""
        return np.asarray(self.a @ (self.plan @ y / self.plan.sum(1, keepdims=True)))

    def divergences(self) -> tuple[float, float]:
        """D_Psi1 and D_Psi2 of the plan's marginals, times their alphas."""
        return (
            self.psi_source.alpha * float(self.a @ divergence(self.psi_source.family, self.plan.sum(1) / self.a)),
            self.psi_target.alpha * float(self.b @ divergence(self.psi_target.family, self.plan.sum(0) / self.b)),
        )

    def primal(self) -> float:
        """<C, P> + divergences: an upper bound of the value where balanced marginals are met."""
        return float((self.cost * self.plan).sum()) + sum(self.divergences())

    def dual(self) -> float:
        """J(v) with the exact minimum: a lower bound of the value."""
        return dual_value(self.v, self.cost, self.a, self.b, self.psi_source, self.psi_target)


def dual_value(v: Floats, cost: Floats, a: Floats, b: Floats, psi_source: Psi, psi_target: Psi) -> float:
    """J(v) = -E_a Psi1*(-v^c) - E_b Psi2*(-v) with the exact c-transform."""
    transform = (cost - v[None, :]).min(1)
    source = a @ psi_source.star(torch.from_numpy(-transform)).numpy()
    return -float(source) - float(b @ psi_target.star(torch.from_numpy(-v)).numpy())


def solve_discrete(
    cost: Floats, a: Floats, b: Floats, psi_source: Psi, psi_target: Psi,
    *, eps: float = 1e-3, steps: int = 1000, tolerance: float = 1e-8,
) -> Discrete:  # fmt: skip
    """Maximise the semi-dual, from a large softening down to `eps`."""
    c, wa, wb = torch.from_numpy(cost), torch.from_numpy(a), torch.from_numpy(b)

    def transform(v: Tensor, softness: float) -> Tensor:
        return -softness * torch.logsumexp((v[None, :] - c) / softness + wb.log()[None, :], 1)

    # In z = v sqrt(b) the curvature is even, however light an atom is.
    scale = np.sqrt(b)

    def loss(z: Floats, softness: float) -> tuple[float, Floats]:
        v = torch.from_numpy(z / scale).requires_grad_(True)
        value = (wa * psi_source.star(-transform(v, softness))).sum() + (wb * psi_target.star(-v)).sum()
        (gradient,) = torch.autograd.grad(value, v)
        return float(value.detach()), gradient.numpy() / scale

    # A line search that leaps where exp(-v) is nothing would stay there; no potential is larger than the costs.
    limit = (float(cost.max()) + 1) * scale
    z, softness = np.zeros(len(b)), max(eps, float(cost.max()) / 10)
    while True:
        history: list[float] = []
        last = softness <= eps
        z = minimize(
            loss, z, (softness,), "L-BFGS-B", jac=True, bounds=np.stack([-limit, limit], 1),
            callback=lambda x, s=softness, h=history: h.append(loss(x, s)[0]),
            options={
                "maxiter": steps if last else 60, "maxfun": 2 * steps, "ftol": 1e-15, "gtol": tolerance, "maxcor": 30,
            },
        ).x  # fmt: skip
        if last:
            break
        softness = max(eps, softness / 4)
    v = z / scale
    with torch.no_grad():
        best = torch.from_numpy(v)
        mass = wa * psi_source.dstar(-transform(best, eps))
        plan = mass[:, None] * torch.softmax((best[None, :] - c) / eps + wb.log()[None, :], 1)
    return Discrete(cost, a, b, psi_source, psi_target, v, plan.numpy(), history)


def squared(x: Floats, y: Floats, tau: float) -> Floats:
    """tau |x - y|^2, [n, m]."""
    return np.asarray(tau * ((x[:, None, :] - y[None, :, :]) ** 2).sum(-1))


def uniform(n: int) -> Floats:
    """n equal weights of sum 1."""
    return np.full(n, 1 / n)


def outlier_problem(n: int, seed: int = 0) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """T5 of METHOD.md: x ~ N(0, .25 I); y ~ 95% N((1, 0), .25 I) and 5% N((8, 8), .01 I). Returns x, y, outliers.

    n = 400 and seed 0 are the points that METHOD.md's figures were measured on.
    """
    rng = np.random.default_rng(seed)
    far = round(0.05 * n)
    x = 0.5 * rng.standard_normal((n, 2))
    near = 0.5 * rng.standard_normal((n - far, 2)) + [1, 0]
    return x, np.concatenate([near, 0.1 * rng.standard_normal((far, 2)) + 8]), np.arange(n) >= n - far


class _Mlp(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, 64),
            nn.SiLU(),
            nn.Linear(64, 64),
            nn.SiLU(),
            nn.Linear(64, 64),
            nn.SiLU(),
            nn.Linear(64, outputs),
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@dataclass(frozen=True)
class Learned:
    """A trained 2-D pair: `move` is the EMA of T, `values` the estimates of J along the way."""

    move: Callable[[Tensor], Tensor]
    potential: nn.Module
    values: list[float]


def learn_2d(
    source: Callable[[int], Tensor], target: Callable[[int], Tensor], tau: float, psi_source: Psi, psi_target: Psi,
    *, r1: float = 0.0, steps: int = 3000, inner: int = 4, batch: int = 512, seed: int = 0,
) -> Learned:  # fmt: skip
    """Alternate v and T as METHOD.md 1.2 says, cost tau |x - y|^2: one step of v, `inner` steps of T."""
    torch.manual_seed(seed)
    shift, v = _Mlp(2), _Mlp(1)
    ema = copy.deepcopy(shift)
    opt_t = torch.optim.Adam(shift.parameters(), 1e-3, betas=(0.5, 0.9), fused=True)
    opt_v = torch.optim.Adam(v.parameters(), 1e-3, betas=(0.5, 0.9), fused=True)
    schedules = [
        torch.optim.lr_scheduler.CosineAnnealingLR(opt_t, steps * inner),
        torch.optim.lr_scheduler.CosineAnnealingLR(opt_v, steps),
    ]
    values = []
    for _ in range(steps):
        for _ in range(inner):
            x = source(batch)
            moved = x + shift(x)
            loss = (tau * (moved - x).square().sum(1) - v(moved)[:, 0]).mean()
            opt_t.zero_grad()
            loss.backward(inputs=list(shift.parameters()))
            opt_t.step()
            schedules[0].step()
        with torch.no_grad():
            for kept, now in zip(ema.parameters(), shift.parameters(), strict=True):
                kept.lerp_(now, 0.01)
            x = source(batch)
            moved = x + shift(x)
            cost = tau * (moved - x).square().sum(1)
        y = target(batch)
        loss = psi_source.star(v(moved)[:, 0] - cost).mean() + psi_target.star(-v(y)[:, 0]).mean()
        values.append(-float(loss.detach()))
        if psi_source.family == psi_target.family == "linear":
            loss = loss + 1e-3 * v(y).mean().square()
        if r1 > 0:
            leaf = y.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(v(leaf).sum(), leaf, create_graph=True)
            loss = loss + r1 / 2 * gradient.square().sum(1).mean()
        opt_v.zero_grad()
        loss.backward()
        opt_v.step()
        schedules[1].step()

    def move(x: Tensor) -> Tensor:
        with torch.no_grad():
            return x + ema(x)

    return Learned(move, v, values)


def gaussian_sampler(mean: list[float], factor: list[list[float]], seed: int) -> Callable[[int], Tensor]:
    """Draws n points of N(mean, factor factor^T), [n, 2]."""
    generator = torch.Generator().manual_seed(seed)
    centre, root = torch.tensor(mean), torch.tensor(factor)
    return lambda n: centre + torch.randn(n, 2, generator=generator) @ root.T
