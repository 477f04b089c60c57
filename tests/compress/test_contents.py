"""Scales read back from files, and the check that holds them against the network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eguot_compress.convert.contents import Contents, compare_scales
from eguot_compress.convert.formats import FORMATS, Format, as_stored, from_stored
from eguot_compress.exact_picture import exact_picture
from eguot_compress.fake_quant import QuantIsp, QuantState, quantise_body
from eguot_compress.integer_form import float_form, integer_form
from eguot_compress.parity import Difference
from eguot_compress.ptq import post_train
from eguot_sdk.errors import EguotError
from eguot_sdk.spec import IspSpec, Precision, TensorSpec
from eguot_train.isps.base import IspNet

STATE = QuantState(bits=8, activations={"q_input": (1 / 255, -128), "q_relu": (0.25, 3)},
                   weights={"a": (0.1, 0.2), "b": (0.5,)}, float_layers=("b",))  # fmt: skip


def held(activations: set[tuple[float, int]], *weights: tuple[float, ...], half: bool = False) -> Contents:
    kind = np.float16 if half else np.float32
    return Contents(
        ops={},
        activations=frozenset((float(np.float32(s)), z) for s, z in activations),
        weights=frozenset(tuple(float(kind(s)) for s in scales) for scales in weights),
        half_scales=half,
    )


@pytest.mark.parametrize(
    ("contents", "differing"),
    [
        (held({(1 / 255, -128), (0.25, 3)}, (0.2, 0.1)), 0),
        (held({(1 / 255, -128), (0.25, 3)}, (0.2, 0.1), half=True), 0),
        (held({(1 / 255, -128), (0.25, 4)}, (0.1, 0.2)), 2),  # one of each side
        (held({(1 / 255, -128)}, (0.1, 0.2)), 1),
        (held({(1 / 255, -128), (0.25, 3)}, (0.1, 0.2), (0.5,)), 1),  # the layer that should be float
        (held({(1 / 255, -128), (0.25, 3)}, (0.1, 0.2000001)), 4),
        (held({(1 / 255, -128), (0.25, 3)}), 2),
    ],
)
def test_differences_count_on_both_sides(contents: Contents, differing: int) -> None:
    check = compare_scales(contents, STATE)
    assert check.total == 4
    assert check.differing == differing


@pytest.mark.parametrize("format_", ["tflite", "onnx", "coreml"])
@pytest.mark.parametrize("precision", ["w8", "w8a8", "w8a16"])
def test_every_scale_of_a_real_file(
    tiny: IspNet, pictures: Tensor, tmp_path: Path, format_: Format, precision: Precision
) -> None:
    pytest.importorskip({"onnx": "onnxscript", "coreml": "coremltools", "tflite": "litert_torch"}[format_])
    kind = FORMATS[format_]
    if precision not in kind.precisions:
        pytest.skip(f"{format_} holds no {precision}")
    net, state = post_train(tiny, pictures, bits={"w8": None, "w8a8": 8, "w8a16": 16}[precision])  # type: ignore[arg-type]
    path = tmp_path / f"t.{kind.suffix}"
    kind.write(net, precision, path, side=16, state=state)
    check = compare_scales(kind.read(path), state)
    assert check.differing == 0
    assert check.total == len(state.activations) + 3 * 8 + 12
    scales = state.weights["first"]
    odd = dataclasses.replace(state, weights={**state.weights, "first": (scales[0] * 1.01, *scales[1:])})
    assert compare_scales(kind.read(path), odd).differing == 16


class _Squashed(IspNet):
    """Ends in numbers of its own, as LAN, PUNET and MicroISP do."""

    name, shuffle, halo, multiple = "squashed", 2, 1, 1

    def __init__(self) -> None:
        super().__init__()
        self.tail = nn.Conv2d(4, 12, 3, padding=1)

    def body(self, planes: Tensor) -> Tensor:
        return torch.tanh(self.tail(planes)) * 0.58 + 0.5


def test_numbers_in_a_formula_are_no_weights(pictures: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    torch.manual_seed(0)
    net, state = post_train(_Squashed().eval(), pictures, bits=8)
    path = tmp_path / "t.tflite"
    FORMATS["tflite"].write(net, "w8a8", path, side=16, state=state)
    check = compare_scales(FORMATS["tflite"].read(path), state)
    assert check.total == len(state.activations) + 12
    assert check.differing == 0
    body = quantise_body(net, bits=8)
    body.load_state(state)
    unit = TensorSpec(dtype="int8", scale=1 / 255, zero_point=-128)
    spec = IspSpec(name="t", architecture="t", parameters=1, halo=1, input=unit, output=unit)
    got = from_stored(FORMATS["tflite"].run(path, as_stored(pictures, spec)), spec)
    assert Difference.between(got, QuantIsp(body, 2)(pictures).detach()).over_2_lsb <= 0.002


class _Upwards(IspNet):
    name, shuffle, halo, multiple = "upwards", 2, 4, 2

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.up: nn.ConvTranspose2d = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.tail = nn.Conv2d(6, 12, 3, padding=1)

    def body(self, planes: Tensor) -> Tensor:
        return self.tail(torch.relu(self.up(torch.relu(self.down(planes)))))  # type: ignore[no-any-return]

    @classmethod
    def lively(cls) -> _Upwards:
        """With weights that give a picture."""
        torch.manual_seed(0)
        net = cls().eval()
        with torch.no_grad():
            net.tail.weight.mul_(4)
            net.tail.bias.fill_(0.4)  # type: ignore[union-attr]
        return net


@pytest.mark.parametrize("precision", ["w8", "w8a8", "w8a16"])
def test_a_transposed_convolution_is_held_in_integers(pictures: Tensor, tmp_path: Path, precision: Precision) -> None:
    plain = _Upwards.lively()
    bits = {"w8": None, "w8a8": 8, "w8a16": 16}[precision]
    net, state = post_train(float_form(plain), pictures, bits=bits)  # type: ignore[arg-type]
    wider = tuple(1.3 * s for s in state.weights["up.conv"])  # as after training, when no weight lies on the last step
    state = dataclasses.replace(state, weights={**state.weights, "up.conv": wider})
    kind, path = FORMATS["tflite"], tmp_path / "t.tflite"
    kind.write(net, precision, path, side=32, state=state)
    contents = kind.read(path)
    assert compare_scales(contents, state).differing == 0
    assert contents.ops["DEPTH_TO_SPACE"] == 2
    assert not {"TRANSPOSE_CONV", "RESHAPE", "TRANSPOSE"} & set(contents.ops)
    assert "RELU" not in contents.ops  # part of the convolution
    assert ("QUANTIZE" in contents.ops) == (precision == "w8a16")  # no shuffle of int16
    body = quantise_body(net, bits=state.bits)
    body.load_state(state)
    twin = exact_picture(body, net.shuffle, pictures)
    found = Difference.between(_through_file(path, precision, pictures), twin)
    assert found.max_lsb <= 1.001
    assert found.over_1_lsb == 0
    assert float(twin.std()) > 0.05
    larger = torch.nn.functional.interpolate(pictures[:1], size=(48, 36))
    found = Difference.between(_through_file(path, precision, larger), exact_picture(body, net.shuffle, larger))
    assert found.max_lsb <= 1.001


class _Twice(_Upwards):
    """One transposed convolution by two names, called twice, with a skip's size; channels in groups."""

    name, multiple, halo = "twice", 4, 16

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 6, 3, stride=4, padding=1)
        self.up = self.again = nn.ConvTranspose2d(6, 6, 4, stride=2, padding=1, groups=3)

    def body(self, planes: Tensor) -> Tensor:
        half = torch.relu(input=self.up(torch.relu(self.down(planes))))
        return self.tail(self.again(half, output_size=planes.shape[2:]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_a_layer_in_groups_called_twice(pictures: Tensor, tmp_path: Path, precision: Precision) -> None:
    plain = _Twice.lively()
    expected = plain(pictures).detach()
    net, state, path = float_form(plain), None, tmp_path / "t.tflite"
    torch.testing.assert_close(net(pictures), expected)
    if precision == "w8a8":
        net, state = post_train(net, pictures, bits=8)
    FORMATS["tflite"].write(net, precision, path, side=32, state=state)
    got = _through_file(path, precision, pictures)
    assert Difference.between(got, expected).psnr_db > (40 if state else 100)
    assert float(expected.clamp(0, 1).std()) > 0.05


class _Doubled(nn.ConvTranspose2d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(input, output_size) * 2


def test_a_layer_with_a_forward_of_its_own_is_left_alone(pictures: Tensor) -> None:
    net = _Upwards().eval()
    net.up = _Doubled(8, 6, 2, stride=2)
    assert float_form(net) is net
    with pytest.raises(EguotError, match="conv_transpose2d has no int8 form"):
        quantise_body(net)


def _through_file(path: Path, precision: Precision, pictures: Tensor) -> Tensor:
    kind = FORMATS["tflite"]
    entry, exit_ = kind.inputs.get(precision, TensorSpec()), kind.outputs.get(precision, TensorSpec())
    spec = IspSpec(name="t", architecture="t", parameters=1, halo=4, input=entry, output=exit_)
    return from_stored(kind.run(path, as_stored(pictures, spec)), spec)


class _Deep(IspNet):
    """Leaky ReLUs between many convolutions, a sum with a parameter and one with a number."""

    name, shuffle, halo, multiple = "deep", 2, 8, 1

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.chain = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(6))
        self.offset = nn.Parameter(torch.linspace(-0.4, 0.3, 8)[:, None, None])
        self.tail = nn.Conv2d(16, 12, 3, padding=1)

    def body(self, planes: Tensor) -> Tensor:
        features = first = nn.functional.leaky_relu(self.first(planes), 0.2)
        for conv in self.chain:
            features = nn.functional.leaky_relu(conv(features), 0.1)
        return self.tail(torch.cat([features + self.offset, first * 0.7], 1))  # type: ignore[no-any-return]


def test_a_deep_network_with_leaky_relus_and_constants_is_its_file(pictures: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = _Deep().eval()
    with torch.no_grad():
        for layer in (net.first, *net.chain):
            layer.weight.mul_(2.5)  # type: ignore[operator, union-attr]
        net.tail.bias.fill_(0.5)  # type: ignore[union-attr]
    made, state = post_train(net, pictures, bits=8)
    path = tmp_path / "t.tflite"
    FORMATS["tflite"].write(made, "w8a8", path, side=32, state=state)
    contents = FORMATS["tflite"].read(path)
    assert compare_scales(contents, state).differing == 0
    other = dataclasses.replace(state, activations={**state.activations, "q_net_offset": (0.01, 0)})
    assert compare_scales(contents, other).differing == 2
    body = quantise_body(made)
    body.load_state(state)
    twin = exact_picture(body, 2, pictures)
    found = Difference.between(_through_file(path, "w8a8", pictures), twin)
    assert found.max_lsb < 0.001
    assert float(twin.std()) > 0.05


class _Dying(IspNet):
    """A leaky ReLU of a convolution that gives nothing, beside values a million times larger."""

    name, shuffle, halo, multiple = "dying", 2, 3, 1

    def __init__(self) -> None:
        super().__init__()
        self.dead, self.alive = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.tail = nn.Conv2d(12, 12, 3, padding=1)

    def body(self, planes: Tensor) -> Tensor:
        both = [nn.functional.leaky_relu(conv(planes), 0.2) for conv in (self.dead, self.alive)]
        return self.tail(torch.cat(both, 1))  # type: ignore[no-any-return]


def test_a_layer_that_died_keeps_its_op_and_its_scales(pictures: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = _Dying().eval()
    with torch.no_grad():
        net.dead.weight.mul_(1e-7)
        net.dead.bias.zero_()  # type: ignore[union-attr]
    made, state = post_train(net, pictures, bits=8)
    path = tmp_path / "t.tflite"
    FORMATS["tflite"].write(made, "w8a8", path, side=32, state=state)
    contents = FORMATS["tflite"].read(path)
    assert contents.ops["LEAKY_RELU"] == 2
    assert compare_scales(contents, state).differing == 0
    body = quantise_body(made)
    body.load_state(state)
    twin = exact_picture(body, 2, pictures)
    assert Difference.between(_through_file(path, "w8a8", pictures), twin).max_lsb < 0.001


class _Sloped(IspNet):
    name, shuffle, halo, multiple = "sloped", 2, 3, 1

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.each, self.one = nn.PReLU(6), nn.PReLU()
        self.tail = nn.Conv2d(6, 12, 3, padding=1)
        with torch.no_grad():
            self.each.weight.copy_(torch.linspace(-0.3, 1.2, 6))
            self.one.weight.fill_(0.2)

    def body(self, planes: Tensor) -> Tensor:
        return self.tail(self.one(self.b(self.each(self.a(planes)))))  # type: ignore[no-any-return]


def test_prelu_written_out_computes_the_same(pictures: Tensor) -> None:
    torch.manual_seed(0)
    net = _Sloped().eval()
    twin = integer_form(net)
    assert twin is not net
    assert not any(isinstance(m, nn.PReLU) for m in twin.modules())
    torch.testing.assert_close(twin(pictures), net(pictures))
    plain = integer_form(twin)
    assert plain is twin


def test_prelu_reaches_an_int8_file(pictures: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = integer_form(_Sloped().eval())
    with torch.no_grad():
        net.tail.bias.add_(0.5)  # type: ignore[operator, union-attr]
    made, state = post_train(net, pictures, bits=8)
    path = tmp_path / "t.tflite"
    FORMATS["tflite"].write(made, "w8a8", path, side=32, state=state)
    contents = FORMATS["tflite"].read(path)
    assert compare_scales(contents, state).differing == 0
    assert contents.ops["DEPTHWISE_CONV_2D"] == 2
    body = quantise_body(made)
    body.load_state(state)
    got = _through_file(path, "w8a8", pictures)
    assert Difference.between(got, QuantIsp(body, 2)(pictures).detach()).over_2_lsb <= 0.002
    assert Difference.between(got, net(pictures).detach()).psnr_db > 35
