"""Divergences: normalisation, convexity, conjugates against a numeric supremum, the balanced limit (METHOD.md T1)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from toy_transport import divergence

from eguot_sdk.errors import UsageError
from eguot_train.psi import FAMILIES, Family, Psi

CURVATURE: dict[Family, float] = {"kl": 1.0, "chi2": 2.0, "softplus": 2.0}
"""Psi''(1), METHOD.md 1.3; that of the linear family is infinite."""
GRID = torch.linspace(-6, 6, 2001, dtype=torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("alpha", [0.5, 1.0, 7.0])
def test_normalised_monotone_and_convex(family: Family, alpha: float) -> None:
    psi = Psi(family, alpha)
    zero = torch.zeros((), dtype=torch.float64)
    assert float(psi.star(zero)) == pytest.approx(0, abs=1e-12)
    assert float(psi.dstar(zero)) == pytest.approx(1, abs=1e-6)
    value, weight = psi.star(GRID), psi.dstar(GRID)
    assert (value.diff() >= 0).all()
    assert (weight >= 0).all()
    assert (weight.diff() >= -1e-12).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_dstar_is_the_derivative_of_star(family: Family, alpha: float) -> None:
    """By autograd and by central differences; far out too, where the exponential is clamped."""
    psi = Psi(family, alpha)
    t = torch.cat([GRID, torch.tensor([-40.0, 9.9, 10.1, 12.0, 40.0], dtype=torch.float64) * alpha]).requires_grad_(
        True
    )
    (gradient,) = torch.autograd.grad(psi.star(t).sum(), t)
    torch.testing.assert_close(gradient, psi.dstar(t).detach(), rtol=1e-9, atol=1e-9)
    h = 1e-5
    central = (psi.star(GRID + h) - psi.star(GRID - h)) / (2 * h)
    torch.testing.assert_close(central, psi.dstar(GRID), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "top"), [("kl", 40.0), ("chi2", 8.0), ("softplus", 2.0)])
def test_star_is_the_conjugate_of_the_divergence(family: Family, top: float) -> None:
    """sup_s (t s - Psi(s)) over a fine grid that reaches every maximiser for |t| <= 3."""
    s = np.linspace(0, top, 400_001)
    psi = divergence(family, s)
    for t in np.linspace(-3, 3, 25):
        numeric = (t * s - psi).max()
        assert float(Psi(family).star(torch.tensor(t))) == pytest.approx(numeric, abs=1e-5)


@pytest.mark.parametrize("family", ["kl", "chi2", "softplus"])
def test_curvature_is_the_second_derivative_at_one(family: Family) -> None:
    h = 1e-4
    psi = divergence(family, np.array([1 - h, 1.0, 1 + h]))
    assert (psi[0] - 2 * psi[1] + psi[2]) / h**2 == pytest.approx(CURVATURE[family], rel=1e-4)
    # The conjugate bends the other way round: Psi*''(0) = 1 / Psi''(1).
    t = torch.tensor([-h, 0, h], dtype=torch.float64)
    slope = Psi(family).dstar(t)
    assert float((slope[2] - slope[0]) / (2 * h)) == pytest.approx(1 / CURVATURE[family], rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("alpha", [10.0, 100.0])
def test_strong_divergences_are_nearly_balanced(family: Family, alpha: float) -> None:
    t = torch.linspace(-2, 2, 401, dtype=torch.float64)
    assert (Psi(family, alpha).star(t) - t).abs().max() <= (t.square() / alpha).max()
    assert ((Psi(family, alpha).star(t) - t).abs() <= t.square() / alpha + 1e-12).all()


def test_weights_reject_outliers_as_the_families_promise() -> None:
    """chi2 exactly from v = 2 on; softplus within (0, 2); linear never."""
    v = torch.tensor([-30.0, 0.0, 1.0, 1.999, 2.0, 3.0, 30.0], dtype=torch.float64)
    assert (Psi("chi2").dstar(-v)[4:] == 0).all()
    assert (Psi("chi2").dstar(-v)[:4] > 0).all()
    assert (Psi("softplus").dstar(-v) < 2).all()
    assert (Psi("softplus").dstar(-v) > 0).all()
    assert (Psi("linear").dstar(-v) == 1).all()
    assert float(Psi("kl").dstar(torch.tensor(-2.0))) == pytest.approx(math.exp(-2))


def test_nothing_overflows_in_float32() -> None:
    t = torch.tensor([-1e4, -100.0, 100.0, 1e4], requires_grad=True)
    for family in FAMILIES:
        value = Psi(family).star(t)
        (gradient,) = torch.autograd.grad(value.sum(), t)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()


def test_what_is_no_divergence_is_refused() -> None:
    with pytest.raises(UsageError, match="must be one of linear, kl, chi2, softplus"):
        Psi("hinge")  # type: ignore[arg-type]
    for alpha in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="alpha must be positive"):
            Psi("kl", alpha)
