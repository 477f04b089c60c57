"""Networks of one's own that do what no network of the zoo does: other paddings, other multiples, no plain layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eguot_compress.convert import convert
from eguot_compress.exact_picture import exact_picture
from eguot_compress.fake_quant import Bits, QuantConv, calibrate, quantise_body
from eguot_compress.parity import Difference, render
from eguot_compress.ptq import _input_statistics
from eguot_sdk.errors import EguotError
from eguot_train.isps.base import IspNet

MakeRun = Callable[..., Path]
NUMPY_PAD: dict[str, Any] = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


class Own(IspNet):
    """Three convolutions."""

    name, halo = "own", 3
    mode = "zeros"

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1, padding_mode=self.mode)
        self.second = nn.Conv2d(8, 8, 3, padding=1, padding_mode=self.mode)
        self.tail = nn.Conv2d(8, 12, 3, padding=1, padding_mode=self.mode)

    def body(self, planes: Tensor) -> Tensor:
        return self.tail(torch.relu(self.second(torch.relu(self.first(planes)))))  # type: ignore[no-any-return]


class Reflected(Own):
    mode = "reflect"


class Replicated(Own):
    mode = "replicate"


class Circular(Own):
    mode = "circular"


def run_of(make_run: MakeRun, folder: Path, kind: type[IspNet]) -> Path:
    return make_run(folder, isp=f"{__name__}:{kind.__name__}")


# Paddings other than zeros.


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("kind", [Own, Reflected, Replicated, Circular])
def test_every_padding_is_that_of_the_float_network(
    kind: type[IspNet], bits: Bits | None, pictures: Tensor, relive: Callable[[IspNet, int], IspNet]
) -> None:
    net = relive(kind(), 0)
    exact = render(net, pictures)
    body = quantise_body(net, bits=bits)
    calibrate(body, [pictures])
    rounded = exact_picture(body, net.shuffle, pictures)
    assert Difference.between(rounded, exact).max_lsb < 8  # zeros instead of a reflection: up to 66
    body.enable(False)
    assert torch.equal(body(pictures), net.body(pictures))


@pytest.mark.parametrize("padding", [(1, 2), "same", "valid"])
@pytest.mark.parametrize("mode", list(NUMPY_PAD))
def test_inputs_of_filters_are_those_numpy_pads(mode: str, padding: tuple[int, int] | str, pictures: Tensor) -> None:
    layer = nn.Conv2d(4, 3, (3, 5), padding=padding, padding_mode=mode)
    _, means = _input_statistics(layer, [pictures])
    rows, columns = (0, 0) if padding == "valid" else (1, 2)
    padded = np.pad(pictures.numpy(), [(0, 0), (0, 0), (rows, rows), (columns, columns)], mode=NUMPY_PAD[mode])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 5), axis=(2, 3))
    np.testing.assert_allclose(means[0].numpy(), windows.mean((0, 2, 3)).ravel(), atol=1e-5)


def test_reflected_borders_in_files(make_run: MakeRun, tmp_path: Path) -> None:
    run = run_of(make_run, tmp_path / "run", Reflected)
    results = convert(run, tmp_path / "out", formats=["tflite", "onnx"], precisions=["w8a8"])
    for found in results:
        assert found.problem is None
        assert found.parity.network.psnr_db > 50  # zeros instead of a reflection: 25


def test_a_form_that_pads_otherwise_is_found_out(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_zeros(self: QuantConv, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, padding=1)

    monkeypatch.setattr(QuantConv, "_convolved", with_zeros)
    run = run_of(make_run, tmp_path / "run", Reflected)
    with pytest.raises(EguotError, match="computes another picture"):
        convert(run, tmp_path / "out", precisions=["w8"])
