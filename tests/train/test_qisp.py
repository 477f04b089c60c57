"""QISP, our own family: keeps its halo, costs what is counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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
    net = Qisp(size)
    weights = 36 * 4 * width + depth * 9 * width * width + 9 * width * 48
    assert net.parameter_count() == weights + width * (1 + depth) + 48
    # Every weight is used once per block of 4x4 output pixels.
    assert macs_per_pixel(net) == weights / 16
    assert {"xs": (19_104, 1_188), "s": (46_256, 2_880), "m": (110_880, 6_912), "l": (332_400, 20_736)}[size] == (
        net.parameter_count(), round(macs_per_pixel(net)),
    )  # fmt: skip


def test_only_the_first_sixteen_channels_speak_at_the_start() -> None:
    """The others start with weights, so that they can learn, and without a say."""
    torch.manual_seed(0)
    net = Qisp("s")
    assert (net.tail.weight[:, 16:] == 0).all()
    assert net.stem.weight[16:].abs().sum() > 0
    net(torch.rand(1, 4, 16, 16)).square().sum().backward()
    assert net.tail.weight.grad is not None
    assert net.tail.weight.grad[:, 16:].abs().sum() > 0
