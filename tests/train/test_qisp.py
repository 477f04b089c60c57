"""QISP, our own family: keeps its halo, costs what is counted by hand, deploys to what it was in training."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eguot_train.isps.base import macs_per_pixel
from eguot_train.isps.qisp import SHAPES, Qisp, Size

SIZES: tuple[Size, ...] = ("xs", "s", "m", "l")


@pytest.mark.parametrize("size", SIZES)
def test_nothing_beyond_the_halo_matters(size: Size) -> None:
    """A tile with its halo gives the whole picture's pixels, whatever lies beyond; with two pixels less it does not."""
    torch.manual_seed(0)
    net = Qisp(size).eval()
    for parameter in net.parameters():  # awake: the starting weights see too little
        nn.init.normal_(parameter, 0, 2 / max(parameter[0].numel(), 8) ** 0.5)
    halo, side = net.halo, 8
    planes = torch.rand(1, 4, 2 * halo + side, 2 * halo + side)
    beyond = torch.rand(1, 4, 2 * halo + side + 12, 2 * halo + side + 12)
    beyond[:, :, 6:-6, 6:-6] = planes
    with torch.no_grad():
        tile = net(planes)[:, :, 2 * halo : -2 * halo, 2 * halo : -2 * halo]
        whole = net(beyond)[:, :, 2 * halo + 12 : -2 * halo - 12, 2 * halo + 12 : -2 * halo - 12]
        short = net(planes[:, :, 2:-2, 2:-2])[:, :, 2 * halo - 4 : 4 - 2 * halo, 2 * halo - 4 : 4 - 2 * halo]
    assert tile.shape == (1, 3, 2 * side, 2 * side)
    torch.testing.assert_close(tile, whole, rtol=1e-5, atol=1e-5)
    assert (short - tile).abs().max() > 1e-3
    assert halo % net.multiple == 0


@pytest.mark.parametrize("size", SIZES)
def test_parameters_and_work_against_a_hand_count(size: Size) -> None:
    width, depth = SHAPES[size]
    net = Qisp(size).deploy()
    weights = 36 * 4 * width + depth * 9 * width * width + 9 * width * 48
    assert net.parameter_count() == weights + width * (1 + depth) + 48
    # Every weight is used once per block of 4x4 output pixels.
    assert macs_per_pixel(net) == weights / 16
    assert {"xs": (19_104, 1_188), "s": (46_256, 2_880), "m": (69_312, 4_320), "l": (332_400, 20_736)}[size] == (
        net.parameter_count(), round(macs_per_pixel(net)),
    )  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_layers_of_its_own_and_those_at_packed_resolution_add_up(size: Size) -> None:
    """Without its own layers a network is a chain of 3x3 convolutions at packed resolution; deployed, it is both."""
    torch.manual_seed(0)
    net = Qisp(size).double().eval()
    shared = [net.stem, *net.chain, net.tail]
    for layer in shared:
        nn.init.normal_(layer.at_places.layer.weight, 0, 0.2)
        nn.init.normal_(layer.at_places.layer.bias, 0, 0.2)
    planes = torch.rand(2, 4, 16, 20, dtype=torch.float64)
    with torch.no_grad():
        features = planes
        for layer in shared[:-1]:
            features = torch.relu(layer.at_places.layer(features))
        expected = F.pixel_shuffle(shared[-1].at_places.layer(features), 2)
        torch.testing.assert_close(net(planes), expected)
        for layer in shared:
            nn.init.normal_(layer.own.weight, 0, 0.05)
            nn.init.normal_(layer.own.bias, 0, 0.05)
        assert (net(planes) - expected).abs().max() > 0.01
        torch.testing.assert_close(net.deploy().double()(planes), net(planes), rtol=1e-5, atol=1e-4)


def test_all_weights_learn_from_the_first_step_but_those_without_a_say() -> None:
    """Channels that carry no sample have weights, so that they can learn; the tail gives them a say."""
    torch.manual_seed(0)
    net = Qisp("s")
    net(torch.rand(1, 4, 16, 16)).square().sum().backward()
    tail = net.tail.at_places.layer.weight
    assert (tail[:, 4:] == 0).all()
    assert tail.grad[:, 4:].abs().sum() > 0
    assert net.tail.own.weight.grad[:, 16:].abs().sum() > 0
