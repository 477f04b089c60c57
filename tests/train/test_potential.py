"""The potential: a number per picture that depends on that picture alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eguot_train.potential import LIMIT, Potential, gradient_penalty


def awake(width: int = 8, reduce: int = 1) -> Potential:
    """A potential whose last layer is not zero, in float64."""
    torch.manual_seed(0)
    net = Potential(width, reduce).double()
    nn.init.normal_(net.head.weight)
    nn.init.normal_(net.head.bias)
    return net


def pictures(count: int, side: int = 64) -> Tensor:
    return torch.rand(count, 3, side, side, dtype=torch.float64, generator=torch.manual_seed(1))


def test_starts_as_the_constant_zero() -> None:
    assert (Potential(8)(pictures(3).float()) == 0).all()


@pytest.mark.parametrize("reduce", [1, 2])
def test_each_picture_is_judged_alone(reduce: int) -> None:
    net, batch = awake(reduce=reduce), pictures(4)
    together = net(batch)
    assert together.shape == (4,)
    for i in range(4):
        torch.testing.assert_close(net(batch[i : i + 1]), together[i : i + 1])
    torch.testing.assert_close(net(batch.flip(0)), together.flip(0))
    assert together.std() > 0


def test_size_of_the_network() -> None:
    """Counted layer by layer for METHOD.md's width of 64."""
    widths = [64, 64, 128, 256, 256, 256]
    count = 3 * 9 * 64 + 64
    for a, b in pairwise(widths):
        count += (9 * a * b + b) + (9 * b * b + b) + a * b
    count += 256 + 1
    assert sum(p.numel() for p in Potential(64).parameters()) == count


def test_scale_does_not_depend_on_the_crop() -> None:
    """A tiled texture has the same score at any size of the crop, to within what the borders do."""
    net = awake()
    tile = pictures(1, 64)
    with torch.no_grad():
        small, large = float(net(tile.tile(1, 1, 2, 2))), float(net(tile.tile(1, 1, 6, 6)))
    assert abs(small) > 0.5
    assert large == pytest.approx(small, rel=0.1)


def test_gradient_penalty_is_the_mean_squared_norm() -> None:
    net, batch = awake(4), pictures(2, 32)
    penalty = float(gradient_penalty(net, batch).detach())
    norms = []
    for picture in batch:
        slopes = []
        h = 1e-6
        for axis in np.random.default_rng(0).choice(3 * 32 * 32, 300, replace=False):
            step = torch.zeros(3 * 32 * 32, dtype=torch.float64)
            step[axis] = h
            step = step.reshape(1, 3, 32, 32)
            with torch.no_grad():
                slopes.append(float(net(picture + step) - net(picture - step)) / (2 * h))
        norms.append(np.mean(np.square(slopes)) * 3 * 32 * 32)
    assert penalty == pytest.approx(np.mean(norms), rel=0.35)  # 300 of 3072 axes
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 1), nn.Flatten(0))
    expected = float(linear[1].weight.detach().double().square().sum())
    assert float(gradient_penalty(linear, torch.rand(5, 3, 4, 4)).detach()) == pytest.approx(expected, rel=1e-5)


def test_gradient_penalty_trains_the_potential() -> None:
    net, batch = awake(4), pictures(2, 32)
    gradient_penalty(net, batch).backward()
    assert all(p.grad is not None for name, p in net.named_parameters() if "bias" not in name)
    assert net.head.weight.grad is not None
    assert float(net.head.weight.grad.abs().sum()) > 0


def test_v_is_bounded_and_nearly_linear_around_zero() -> None:
    potential = Potential(4)
    torch.nn.init.normal_(potential.head.weight, std=0.01, generator=torch.manual_seed(0))
    pictures = torch.rand(4, 3, 64, 64, generator=torch.manual_seed(1))
    small = potential(pictures).detach()
    assert 0 < small.abs().max() < 1
    with torch.no_grad():
        potential.head.weight *= 1.1
    torch.testing.assert_close(potential(pictures).detach(), 1.1 * small, rtol=5e-3, atol=1e-4)
    with torch.no_grad():
        potential.head.weight *= 1e6
    assert potential(pictures).abs().max() <= LIMIT
