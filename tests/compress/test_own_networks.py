"""Networks of one's own that do what no network of the zoo does: other paddings, other multiples, no plain layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional as F

from eguot_compress.cli import convert as command
from eguot_compress.convert import convert
from eguot_compress.convert.formats import FORMATS, as_stored, from_stored
from eguot_compress.convert.formats import INT8 as INT8_PORT
from eguot_compress.distill import distill
from eguot_compress.exact_picture import exact_picture
from eguot_compress.fake_quant import Bits, QuantConv, calibrate, quantise_body
from eguot_compress.integer_form import folded
from eguot_compress.lint import INT8, lint_network
from eguot_compress.parity import Difference, render
from eguot_compress.ptq import _input_statistics, half_weights, post_train
from eguot_compress.qat import qat
from eguot_compress.quant_run import FILE
from eguot_sdk.errors import EguotError, GateError
from eguot_sdk.spec import IspSpec
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


class Linear(Own):
    """Squeeze and excitation, as torch writes it."""

    name, halo, global_context = "linear", 0, True

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)

    def body(self, planes: Tensor) -> Tensor:
        maps = torch.relu(self.first(planes))
        means = torch.flatten(F.adaptive_avg_pool2d(maps, 1), 1)
        share = torch.sigmoid(self.up(torch.relu(self.down(means))))
        return self.tail(torch.relu(self.second(maps * share[:, :, None, None])))  # type: ignore[no-any-return]


class Pointwise(Linear):
    """The same in 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def body(self, planes: Tensor) -> Tensor:
        maps = torch.relu(self.first(planes))
        share = torch.sigmoid(self.up(torch.relu(self.down(F.adaptive_avg_pool2d(maps, 1)))))
        return self.tail(torch.relu(self.second(maps * share)))  # type: ignore[no-any-return]


class Sixths(Own):
    """A sixth of the resolution inside."""

    name, halo, multiple = "sixths", 12, 6

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 8, 6, stride=6)

    def body(self, planes: Tensor) -> Tensor:
        maps = torch.relu(self.first(planes))
        return self.tail(torch.relu(maps + self.up(F.max_pool2d(maps, 6))))  # type: ignore[no-any-return]


class Coarse(Own):
    """A pooling over 64 packed pixels."""

    name, halo, multiple = "coarse", 128, 64

    def body(self, planes: Tensor) -> Tensor:
        maps = torch.relu(self.first(planes))
        return self.tail(maps + F.interpolate(F.avg_pool2d(maps, 64), scale_factor=64.0))  # type: ignore[no-any-return]


class Unplain(Own):
    """No layer that every format can keep in float: groups, or no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.tail = nn.Identity()
        self.last = nn.Conv2d(8, 12, 3, padding=1, bias=False)

    def body(self, planes: Tensor) -> Tensor:
        return self.last(super().body(planes))  # type: ignore[no-any-return]


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
    assert Difference.between(rounded, exact).max_lsb < 8  # zeros instead of a reflection: 150
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
        assert found.parity.network.psnr_db > 50


def test_a_form_that_pads_otherwise_is_found_out(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_zeros(self: QuantConv, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, padding=1)

    monkeypatch.setattr(QuantConv, "_convolved", with_zeros)
    run = run_of(make_run, tmp_path / "run", Reflected)
    with pytest.raises(EguotError, match="computes another picture"):
        convert(run, tmp_path / "out", precisions=["w8"])


# A drop that cannot be held.


@pytest.mark.parametrize("precision", ["w8", "w8a8"])
def test_a_network_without_plain_layers_keeps_the_first_problem(
    make_run: MakeRun, tmp_path: Path, precision: str
) -> None:
    run = run_of(make_run, tmp_path / "run", Unplain)
    arguments = [str(run), "--precision", precision, "--out", str(tmp_path / "out"), "--max-drop-db", "1e-9"]
    result = CliRunner().invoke(command, arguments)
    assert isinstance(result.exception, GateError)
    assert f"tflite {precision}: loses" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_int8_weights_that_lose_too_much_are_tried_with_a_layer_in_float(make_run: MakeRun, tmp_path: Path) -> None:
    run = run_of(make_run, tmp_path / "run", Own)
    with pytest.raises(GateError, match=r"tflite w8: loses .*; worst layer is \w+, with it in float: loses"):
        convert(run, tmp_path / "out", precisions=["w8"], max_drop_db=1e-9)
    (found,) = convert(run, tmp_path / "out", precisions=["w8"])
    allowed = 0.9 * found.parity.drop_db
    (mended,) = convert(run, tmp_path / "out", precisions=["w8"], max_drop_db=allowed)
    assert len(mended.float_layers) == 1
    assert mended.parity.drop_db <= allowed
    assert mended.parity.twin.psnr_db > 80


# Linear layers.


def test_linear_is_refused_in_int8_and_lint_says_what_to_use(
    pictures: Tensor, relive: Callable[[IspNet, int], IspNet]
) -> None:
    net = relive(Linear(), 0)
    words = "down: Linear has no int8 form here: use a 1x1 convolution"
    assert words in [f.what[: len(words)] for f in lint_network(net) if f.where == INT8]
    for bits in (None, 8):
        with pytest.raises(EguotError, match=words):
            post_train(net, pictures, bits=bits)
    held = half_weights(net, pictures)
    assert Difference.between(render(held, pictures), render(net, pictures)).psnr_db > 60


def test_the_convolution_in_its_place_is_the_same_and_is_taken(
    pictures: Tensor, relive: Callable[[IspNet, int], IspNet], tmp_path: Path
) -> None:
    net, other = relive(Linear(), 0), Pointwise()
    weights = net.state_dict()
    for name in ("down", "up"):
        weights[f"{name}.weight"] = weights[f"{name}.weight"][:, :, None, None]
    other.load_state_dict(weights)
    exact = render(net, pictures)
    torch.testing.assert_close(render(other.eval(), pictures), exact)
    kind = FORMATS["tflite"]
    rounded, state = post_train(other, pictures, bits=8)
    path = tmp_path / "isp.tflite"
    kind.write(rounded, "w8a8", path, side=32, state=state)
    spec = IspSpec(name="t", architecture="t", parameters=1, halo=0, input=INT8_PORT, output=INT8_PORT)
    got = from_stored(kind.run(path, as_stored(pictures, spec)), spec)
    assert Difference.between(got, exact).psnr_db > 45


class Grouped(Own):
    """Ends in a convolution of three groups."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(8, 12, 3, padding=1)
        self.tail = nn.Conv2d(12, 12, 3, padding=1, groups=3)


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_a_last_convolution_in_groups_keeps_its_channels(make_run: MakeRun, tmp_path: Path, precision: str) -> None:
    (found,) = convert(run_of(make_run, tmp_path / "run", Grouped), tmp_path / "out", precisions=[precision])
    assert found.problem is None


class Normed(Own):
    """Batch norms, one after a convolution without bias, as most people's networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        for norm in self.norms:
            nn.init.uniform_(norm.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]

    def body(self, planes: Tensor) -> Tensor:
        maps = torch.relu(self.norms[0](self.first(planes)))
        return self.tail(torch.relu(self.norms[1](self.second(maps))))  # type: ignore[no-any-return]


class Averaged(Own):
    """An average of neighbours at full size: of the same range as what it averages."""

    def body(self, planes: Tensor) -> Tensor:
        return self.tail(F.avg_pool2d(torch.relu(self.first(planes)), 3, 1, 1))  # type: ignore[no-any-return]


class Named(Own):
    """Calls by the names of arguments, and an identity between a convolution and its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Identity()
        self.tail = nn.Conv2d(16, 12, 3, padding=1)

    def body(self, planes: Tensor) -> Tensor:
        maps = torch.relu(input=self.nothing(self.first(input=planes)))
        return self.tail(torch.cat(tensors=[maps, F.max_pool2d(input=maps, kernel_size=3, stride=1, padding=1)], dim=1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("format_", ["tflite", "onnx"])
@pytest.mark.parametrize("kind", [Normed, Averaged, Named])
def test_int8_files_of_common_layers_are_their_twins_to_the_step(
    make_run: MakeRun, tmp_path: Path, kind: type[IspNet], format_: str
) -> None:
    (found,) = convert(
        run_of(make_run, tmp_path / "run", kind), tmp_path / "out", formats=[format_], precisions=["w8a8"]
    )
    assert found.parity.twin.max_lsb == 0
    assert found.parity.network.psnr_db > 40


def test_a_folded_norm_is_the_same_picture(pictures: Tensor) -> None:
    torch.manual_seed(0)
    net = Normed().eval()
    form = folded(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in form.modules())
    torch.testing.assert_close(render(form, pictures), render(net, pictures), rtol=1e-4, atol=1e-5)


def test_a_norm_after_a_convolution_that_others_read_stays(pictures: Tensor) -> None:
    class Read(Normed):
        def body(self, planes: Tensor) -> Tensor:
            maps = self.first(planes)
            return self.tail(torch.relu(self.norms[0](maps)) + maps)  # type: ignore[no-any-return]

    net = Read().eval()
    torch.testing.assert_close(render(folded(net), pictures), render(net, pictures))


class Resized(Own):
    name, halo, multiple = "resized", 12, 2

    def body(self, planes: Tensor) -> Tensor:
        maps = F.max_pool2d(torch.relu(self.first(planes)), 2)
        return self.tail(F.interpolate(maps, scale_factor=2.0))  # type: ignore[no-any-return]


class Scaled(Own):
    def body(self, planes: Tensor) -> Tensor:
        return self.tail(torch.relu(self.first(planes)) * 0.3)  # type: ignore[no-any-return]


class Weighted(Own):
    def body(self, planes: Tensor) -> Tensor:
        maps = torch.relu(self.first(planes))
        return self.tail(torch.add(maps, self.second(maps), alpha=0.5))  # type: ignore[no-any-return]

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(8, 8, 3, padding=1)


@pytest.mark.parametrize(
    ("kind", "precision", "words"),
    [
        (Resized, "fp32", "a resize ties a file to one tile"),
        (Named, "w8a16", "a concatenation has no form with int16 values here: use w8a8"),
        (Scaled, "w8a16", "a number beside a tensor has no form with int16 values here"),
        (Weighted, "w8a8", "a sum with `alpha` has no int8 form here"),
    ],
)
def test_what_no_file_holds_is_refused_by_name(
    make_run: MakeRun, tmp_path: Path, kind: type[IspNet], precision: str, words: str
) -> None:
    with pytest.raises(EguotError, match=words):
        convert(run_of(make_run, tmp_path / "run", kind), tmp_path / "out", precisions=[precision])
    assert not (tmp_path / "out").exists()


# Multiples that no network of the zoo has.


@pytest.mark.parametrize(
    ("kind", "format_", "precision", "golden"),
    [(Sixths, "tflite", "w8a8", 36), (Sixths, "onnx", "fp32", 36), (Coarse, "onnx", "fp32", 64)],
)
def test_any_multiple_converts(
    make_run: MakeRun, tmp_path: Path, kind: type[IspNet], format_: str, precision: str, golden: int
) -> None:
    run = run_of(make_run, tmp_path / "run", kind)
    (found,) = convert(run, tmp_path / "out", formats=[format_], precisions=[precision])
    assert found.problem is None
    assert found.path is not None
    (pair,) = tmp_path.glob("out/*.golden.npz")
    with np.load(pair) as stored:
        assert golden in stored["input"].shape
        assert 2 * golden in stored["output"].shape


def test_any_multiple_can_be_trained_with_rounding(make_run: MakeRun, tmp_path: Path) -> None:
    run = run_of(make_run, tmp_path / "run", Sixths)
    qat(run, tmp_path / "int8", steps=1)
    distill(run, tmp_path / "small", isp="robustisp", steps=1)
    assert (tmp_path / "int8" / FILE).is_file()
