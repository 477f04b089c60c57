"""Networks that render before they learn: a bilinear demosaic, against a slow one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eguot_sdk.ingest import pack
from eguot_train.isps.base import IspNet
from eguot_train.isps.efficientisp import EfficientIsp
from eguot_train.isps.qisp import SHAPES, Qisp
from eguot_train.isps.robustisp import RobustIsp


def bilinear_demosaic(mosaic: np.ndarray) -> np.ndarray:
    """Slow reference for an RGGB mosaic [H, W]: at each pixel the mean of the nearest sites of each colour."""
    height, width = mosaic.shape
    color = np.array([["R", "G"], ["G", "B"]])
    rgb = np.zeros((height, width, 3))
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            for channel, letter in enumerate("RGB"):
                own = color[y % 2, x % 2] == letter
                cross = [(0, 1), (0, -1), (1, 0), (-1, 0)]
                corners = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
                for offsets in ([(0, 0)] if own else cross, corners):
                    sites = [(dy, dx) for dy, dx in offsets if color[(y + dy) % 2, (x + dx) % 2] == letter]
                    if sites:
                        rgb[y, x, channel] = np.mean([mosaic[y + dy, x + dx] for dy, dx in sites])
                        break
    return rgb


def rendered(net: IspNet, mosaic: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return net.eval()(torch.from_numpy(pack(mosaic)).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


@pytest.fixture
def noise() -> np.ndarray:
    """Shows every tap."""
    torch.manual_seed(0)
    return np.random.default_rng(0).random((36, 44)).astype(np.float32)


INSIDE = np.s_[4:-4, 4:-4]
"""Without a margin of one block."""


@pytest.mark.parametrize("size", SHAPES)
def test_qisp_starts_as_a_bilinear_demosaic(size: str, noise: np.ndarray) -> None:
    net = Qisp(size)  # type: ignore[arg-type]
    np.testing.assert_allclose(rendered(net, noise)[INSIDE], bilinear_demosaic(noise)[INSIDE], atol=1e-6)


@pytest.mark.parametrize("kind", [EfficientIsp, RobustIsp])
def test_small_networks_start_as_one_of_what_their_tanh_leaves(kind: type[IspNet], noise: np.ndarray) -> None:
    """The tanh bends each sample before they are interpolated."""
    expected = bilinear_demosaic(np.tanh(noise))
    np.testing.assert_allclose(rendered(kind(), noise)[INSIDE], expected[INSIDE], atol=1e-6)
