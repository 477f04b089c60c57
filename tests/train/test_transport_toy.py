"""The objective on problems with known answers: METHOD.md T2 to T6. Full sizes and networks are marked slow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_transport import (
    Discrete,
    Floats,
    dual_value,
    gaussian_sampler,
    learn_2d,
    outlier_problem,
    solve_discrete,
    squared,
    uniform,
)

from eguot_train.psi import Family, Psi

TABLE = {
    "kl": [0.05000, 0.03094, 0.01899, 0.00707, 0.00261, 0.00035],
    "softplus": [0.05000, 0.03833, 0.02782, 0.01277, 0.00519, 0.00074],
    "softplus both": [0.05000, 0.03828, 0.02767, 0.01257, 0.00507, 0.00072],
    "chi2": [0.05000, 0.03812, 0.02625, 0.00250, 0, 0],
    "linear": [0.05] * 6,
}
"""Outlier shares of METHOD.md 1.3 for costs 0, .5, 1, 2, 3, 5 and 5% outliers."""
LINEAR = Psi("linear")


@pytest.mark.parametrize(
    ("source", "target", "row"),
    [
        ("linear", "kl", "kl"),
        ("kl", "kl", "kl"),
        ("linear", "softplus", "softplus"),
        ("softplus", "softplus", "softplus both"),
        ("linear", "chi2", "chi2"),
        ("linear", "linear", "linear"),
    ],
)
def test_two_atoms(source: Family, target: Family, row: str) -> None:
    """T2: one source atom, an inlier at no cost and an outlier of weight .05 at cost c."""
    for cost, share in zip((0, 0.5, 1, 2, 3, 5), TABLE[row], strict=True):
        solved = solve_discrete(
            np.array([[0.0, cost]]), np.ones(1), np.array([0.95, 0.05]), Psi(source), Psi(target), eps=1e-4
        )
        assert solved.share(np.array([False, True])) == pytest.approx(share, abs=2e-4)
        if target == "kl":  # closed form
            assert solved.share(np.array([False, True])) == pytest.approx(
                0.05 * np.exp(-cost) / (0.95 + 0.05 * np.exp(-cost)), abs=1e-4
            )


def grid(mean: float, deviation: float, n: int = 61) -> tuple[Floats, Floats]:
    """A Gaussian on a grid: points [n, 1] and weights [n]."""
    points = np.linspace(mean - 4 * deviation, mean + 4 * deviation, n)
    weights = np.exp(-0.5 * ((points - mean) / deviation) ** 2)
    return points[:, None], weights / weights.sum()


def test_balanced_gaussians_on_a_grid() -> None:
    """T3 in 1-D: W2^2 = (m1 - m2)^2 + (s1 - s2)^2, and T moves quantiles."""
    (x, a), (y, b) = grid(0, 0.5), grid(1, 1.2)
    solved = solve_discrete(squared(x, y, 1.0), a, b, LINEAR, LINEAR, eps=2e-3)
    assert solved.dual() <= solved.primal()
    assert solved.primal() == pytest.approx(1 + 0.7**2, rel=0.01)
    assert solved.dual() == pytest.approx(1 + 0.7**2, rel=0.01)
    moved = (solved.plan @ y)[:, 0] / solved.plan.sum(1)
    inner = np.abs(x[:, 0]) < 1
    np.testing.assert_allclose(moved[inner], 1 + 2.4 * x[inner, 0], atol=0.05)


def gaussian_answer(tau: float, m1: float, s1: float, m2: float, s2: float) -> tuple[float, float, float]:
    """METHOD.md 1.4 for one axis: mean and deviation of T(x), and the optimal value; linear source, KL target."""
    a = 2 * tau + 1 / s2**2
    mean = (2 * tau * s2**2 * m1 + m2) / (1 + 2 * tau * s2**2)
    deviation = (tau * s1 + np.sqrt(tau**2 * s1**2 + a)) / a
    transport = tau * ((m1 - mean) ** 2 + (s1 - deviation) ** 2)
    kl = np.log(s2 / deviation) + (deviation**2 + (mean - m2) ** 2) / (2 * s2**2) - 0.5
    return mean, deviation, transport + kl


@pytest.mark.parametrize("tau", [0.1, 0.5])
@pytest.mark.parametrize("axis", [0, 1])
def test_semi_relaxed_gaussians_on_a_grid(tau: float, axis: int) -> None:
    """T4, axis by axis: the pull-back towards the reference is the one that METHOD.md budgets."""
    s1, m2, s2 = ((0.5, 2.0, 1.0), (1.0, -1.0, 0.5))[axis]
    mean, deviation, value = gaussian_answer(tau, 0, s1, m2, s2)
    (x, a), (y, b) = grid(0, s1), grid(m2, s2)
    solved = solve_discrete(squared(x, y, tau), a, b, LINEAR, Psi("kl"), eps=1e-3)
    landed = solved.plan.sum(0)
    found = landed @ y[:, 0]
    assert found == pytest.approx(mean, abs=0.01)
    assert np.sqrt(landed @ (y[:, 0] - found) ** 2) == pytest.approx(deviation, rel=0.01)
    assert solved.primal() == pytest.approx(value, rel=0.02)
    assert solved.dual() <= solved.primal()


def test_the_formulas_give_the_figures_of_the_method() -> None:
    for tau, means, deviations, value in (
        (0.1, (1.667, -0.952), (0.955, 0.512), 0.4757),
        (0.5, (1.0, -0.8), (0.843, 0.558), 1.5956),
    ):
        axes = [gaussian_answer(tau, 0, 0.5, 2, 1), gaussian_answer(tau, 0, 1, -1, 0.5)]
        np.testing.assert_allclose([a[0] for a in axes], means, atol=1e-3)
        np.testing.assert_allclose([a[1] for a in axes], deviations, atol=1e-3)
        assert sum(a[2] for a in axes) == pytest.approx(value, abs=1e-4)


def solve_outliers(n: int, tau: float, source: Psi, target: Psi, eps: float = 1e-3) -> tuple[Discrete, float, Floats]:
    """The T5 problem solved; also the outliers' share and the mean of T."""
    x, y, far = outlier_problem(n)
    solved = solve_discrete(squared(x, y, tau), uniform(n), uniform(n), source, target, eps=eps)
    return solved, solved.share(far), solved.mean_map(y)


def test_outliers_small() -> None:
    """T5 with n = 100: balanced transport sends 5% to the outliers, the unbalanced ones next to nothing."""
    _, share, mean = solve_outliers(100, 0.1, LINEAR, LINEAR)
    assert share == pytest.approx(0.05, abs=0.002)
    assert mean[1] > 0.3
    solved, share, mean = solve_outliers(100, 0.1, LINEAR, Psi("chi2"))
    assert share <= 1e-4
    assert solved.weights[-5:].max() <= 2e-4
    x, y, far = outlier_problem(100)
    # Without outliers the mean is pulled back by 2 tau s^2 / (k + 2 tau s^2) of the shift.
    assert mean == pytest.approx(y[~far].mean(0) - 0.05 / 2.05 * (y[~far].mean(0) - x.mean(0)), abs=0.02)


@pytest.mark.parametrize(("family", "share"), [("kl", 0.0177), ("softplus", 0.0260), ("chi2", 0.0240)])
def test_weak_costs_discount_less(family: Family, share: float) -> None:
    """T5, scale sweep at tau = .01 with n = 100."""
    assert solve_outliers(100, 0.01, LINEAR, Psi(family))[1] == pytest.approx(share, rel=0.1)


def test_weak_duality_and_certificate() -> None:
    """T6 (i): no v beats the value; the solved pair closes the gap to 1%. `primal` knows no conjugates."""
    rng = np.random.default_rng(1)
    for source, target in ((LINEAR, Psi("softplus")), (Psi("kl"), Psi("kl")), (Psi("softplus", 2.0), Psi("chi2", 0.5))):
        x, y, _ = outlier_problem(60)
        cost, a = squared(x, y, 0.1), uniform(60)
        solved = solve_discrete(cost, a, a, source, target, eps=1e-3)
        assert solved.dual() <= solved.primal() + 1e-9
        assert solved.primal() - solved.dual() <= 0.01 * solved.primal()
        for scale in (0.01, 0.1, 1.0, 5.0):
            v = solved.v + scale * rng.standard_normal(60)
            assert dual_value(v, cost, a, a, source, target) <= solved.primal() + 1e-9


def test_ascent_is_monotone() -> None:
    """T6 (ii): the softened dual never falls along the line search."""
    solved, _, _ = solve_outliers(60, 0.1, LINEAR, Psi("softplus"))
    assert len(solved.history) > 10
    assert np.diff(solved.history).max() <= 1e-12


def test_bounds_between_balanced_and_unbalanced() -> None:
    """T6 (iii), (iv) with n = 60: the value rises with alpha up to balanced OT, divergences stay below the OT cost."""
    ot = pytest.importorskip("ot")
    x, y, _ = outlier_problem(60)
    balanced = float(ot.emd2(uniform(60), uniform(60), squared(x, y, 0.1)))
    previous = 0.0
    for alpha in (0.5, 2, 10, 100):
        solved, _, _ = solve_outliers(60, 0.1, Psi("softplus", alpha), Psi("softplus", alpha))
        assert previous <= solved.primal()
        assert solved.dual() <= balanced
        assert sum(solved.divergences()) <= balanced
        previous = solved.dual()
    assert previous == pytest.approx(balanced, rel=0.05)


@pytest.mark.slow
def test_outliers_at_full_size() -> None:
    """T5 and T6 with n = 400 on the very points METHOD.md's figures come from."""
    ot = pytest.importorskip("ot")
    x, y, _ = outlier_problem(400)
    exact = float(ot.emd2(uniform(400), uniform(400), squared(x, y, 0.1)))
    assert exact == pytest.approx(0.6519, abs=2e-4)

    solved, share, mean = solve_outliers(400, 0.1, LINEAR, LINEAR)
    assert share == pytest.approx(0.05, abs=0.002)
    assert mean == pytest.approx([1.36, 0.39], abs=0.01)
    assert solved.primal() == pytest.approx(exact, rel=0.01)
    assert solved.dual() == pytest.approx(exact, rel=0.01)
    for source, target, centre in (
        ("linear", "softplus", (0.987, -0.009)),
        ("kl", "kl", (0.921, -0.005)),
        ("softplus", "softplus", (0.962, -0.008)),
        ("linear", "chi2", None),
    ):
        solved, share, mean = solve_outliers(400, 0.1, Psi(source), Psi(target))
        assert share <= 1e-4
        assert solved.weights[-20:].max() <= 2e-4
        if centre is not None:
            assert mean == pytest.approx(centre, abs=0.005)


@pytest.mark.slow
def test_scale_and_strength_sweeps() -> None:
    """T5 and T6 (iii) with n = 400: robustness and bias trade off as METHOD.md says."""
    for family, share in (("kl", 0.0177), ("softplus", 0.0260), ("chi2", 0.0240)):
        assert solve_outliers(400, 0.01, LINEAR, Psi(family))[1] == pytest.approx(share, rel=0.1)
    for family, centre in (("kl", (0.675, 0.008)), ("softplus", (0.846, 0.001))):
        _, share, mean = solve_outliers(400, 1.0, LINEAR, Psi(family))
        assert share <= 1e-4
        assert mean == pytest.approx(centre, abs=0.01)
    previous = 0.0
    alphas = (0.5, 1, 2, 5, 20, 100)
    values, shares = (0.1408, 0.1789, 0.2506, 0.4035, 0.5771, 0.6353), (0, 0, 0.0007, 0.0115, 0.0371, 0.0474)
    for alpha, value, share in zip(alphas, values, shares, strict=True):
        solved, found, _ = solve_outliers(400, 0.1, LINEAR, Psi("softplus", alpha))
        assert solved.dual() == pytest.approx(value, rel=0.02)
        assert found == pytest.approx(share, abs=3e-4)
        assert previous <= solved.primal()
        previous = solved.dual()
    assert previous <= 0.6519


@pytest.mark.slow
@pytest.mark.parametrize("r1", [0.0, 0.01])
def test_balanced_gaussians_with_networks(r1: float) -> None:
    """T3: the learned map is the Monge-Kantorovich map, the dual value is W2^2 (closed forms)."""
    root = np.array([[1.0, 0.0], [0.6, 0.5]])
    s1, s2 = np.diag([0.25, 1.0]), root @ root.T
    half = np.sqrt(s1)
    cross = matrix_root(half @ s2 @ half)
    best = np.linalg.inv(half) @ cross @ np.linalg.inv(half)
    distance = 2 + np.trace(s1 + s2 - 2 * cross)
    source = gaussian_sampler([0.0, 0.0], half.tolist(), 1)
    learned = learn_2d(source, gaussian_sampler([1.0, -1.0], root.tolist(), 2), 1.0, LINEAR, LINEAR, r1=r1, steps=1500)
    x = source(20_000)
    moved = learned.move(x).numpy()
    expected = x.numpy() @ best.T + [1, -1]
    assert 100 * ((moved - expected) ** 2).sum(1).mean() / np.trace(s2) <= 1
    assert np.mean(learned.values[-200:]) == pytest.approx(distance, rel=0.03)
    assert np.abs(moved.mean(0) - [1, -1]).max() <= 0.05
    assert np.linalg.norm(np.cov(moved.T) - s2) / np.linalg.norm(s2) <= 0.06
    # T6 (ii): past half of the training the moving average of J does not fall.
    smooth = np.convolve(learned.values, np.full(300, 1 / 300), "valid")[600:]
    assert (smooth >= np.maximum.accumulate(smooth) - 0.02 * distance).all()


def matrix_root(matrix: Floats) -> Floats:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray(vectors @ np.diag(np.sqrt(values)) @ vectors.T)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_semi_relaxed_gaussians_with_networks(tau: float) -> None:
    """T4: the learned map lands on the pulled-back Gaussian of METHOD.md 1.4."""
    axes = [gaussian_answer(tau, 0, 0.5, 2, 1), gaussian_answer(tau, 0, 1, -1, 0.5)]
    source = gaussian_sampler([0.0, 0.0], [[0.5, 0.0], [0.0, 1.0]], 1)
    target = gaussian_sampler([2.0, -1.0], [[1.0, 0.0], [0.0, 0.5]], 2)
    learned = learn_2d(source, target, tau, LINEAR, Psi("kl"), steps=1500)
    x = source(20_000)
    moved = learned.move(x).numpy()
    expected = x.numpy() * [axes[0][1] / 0.5, axes[1][1] / 1.0] + [axes[0][0], axes[1][0]]
    assert 100 * ((moved - expected) ** 2).sum(1).mean() / sum(a[1] ** 2 for a in axes) <= 1
    assert np.mean(learned.values[-200:]) == pytest.approx(sum(a[2] for a in axes), rel=0.02)


def contaminated(n: int, generator: torch.Generator) -> Tensor:
    """n targets of T5, [n, 2]: one in twenty is an outlier."""
    far = torch.rand(n, 1, generator=generator) < 0.05
    noise = torch.randn(n, 2, generator=generator)
    return torch.where(far, 0.1 * noise + 8, 0.5 * noise + torch.tensor([1.0, 0.0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target", "centre"),
    [("linear", "softplus", (0.987, -0.009)), ("softplus", "softplus", (0.962, -0.008)), ("kl", "kl", (0.921, -0.005))],
)
def test_outliers_with_networks(source: Family, target: Family, centre: tuple[float, float]) -> None:
    """T5: next to nothing strays to the outliers, and the median of T is the discrete solution's mean."""
    generator = torch.Generator().manual_seed(2)
    raws = gaussian_sampler([0.0, 0.0], [[0.5, 0.0], [0.0, 0.5]], 1)
    learned = learn_2d(raws, lambda n: contaminated(n, generator), 0.1, Psi(source), Psi(target), steps=1500)
    moved = learned.move(raws(20_000))
    stray = ((moved - torch.tensor([1.0, 0.0])).norm(dim=1) > 2.5).double().mean()
    assert float(stray) <= 0.005
    assert np.abs(moved.median(0).values.numpy() - centre).max() <= 0.05
