"""Quantisers against their formulas in NumPy, and the exported form against the one that trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eguot_compress.exact_picture import exact_picture
from eguot_compress.fake_quant import (
    FakeQuant,
    QuantBody,
    QuantConv,
    QuantLeaky,
    QuantState,
    calibrate,
    in_file_order,
    quantise_body,
)
from eguot_sdk.errors import EguotError
from eguot_train.isps.base import IspNet
from eguot_train.isps.packed import written_out


def calibrated(net: IspNet, pictures: Tensor, bits: int = 8) -> QuantBody:
    body = quantise_body(net, bits=bits)  # type: ignore[arg-type]
    calibrate(body, pictures.split(2))
    return body


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (-1.0, 2.0), (-5.0, 0.0), (0.4, 0.9), (0.0, 0.0)])
def test_the_range_holds_zero_and_what_was_asked(low: float, high: float) -> None:
    quantiser = FakeQuant(8)
    quantiser.set_range(low, high)
    smallest, largest = quantiser.range()
    step = float(quantiser.scale)
    assert smallest <= min(low, 0) + step
    assert largest >= max(high, 0) - step
    assert -128 <= int(quantiser.zero_point) <= 127
    assert float(quantiser(torch.zeros(1))) == 0.0


def test_covering_widens_and_never_narrows() -> None:
    quantiser = FakeQuant(8)
    quantiser.set_range(-0.5, 2.0)
    before = (float(quantiser.scale), int(quantiser.zero_point))
    quantiser.cover(-0.1, 1.0)
    quantiser.cover(*quantiser.range())
    assert (float(quantiser.scale), int(quantiser.zero_point)) == before
    quantiser.cover(-0.1, 4.0)
    assert quantiser.range() == pytest.approx((-0.5, 4.0), abs=2 * float(quantiser.scale))


class _Two(IspNet):
    name, shuffle, halo, multiple = "two", 2, 0, 1

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tail = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 12, 1)

    def body(self, planes: Tensor) -> Tensor:
        return self.tail(torch.relu(self.first(planes)))  # type: ignore[no-any-return]


def in_integers(
    values: np.ndarray, conv: QuantConv, entry: FakeQuant, exit_: FakeQuant, *, as_kernels: bool
) -> np.ndarray:
    """Steps of [channels, places] after a 1x1 convolution, written out from the description of the kernels."""
    weight, scales = conv.steps().numpy().astype(np.int64)[:, :, 0, 0], conv.scales().numpy()
    step = np.float32(float(entry.scale)) * scales
    bias = np.rint(conv.conv.bias.detach().numpy() / step)  # type: ignore[union-attr]
    total = weight @ (values - int(entry.zero_point)) + bias.astype(np.int64)[:, None]
    if as_kernels:
        found = total.astype(np.float32) * (step / np.float32(float(exit_.scale)))[:, None]
    else:
        exact = np.float64(float(entry.scale)) * scales.astype(np.float64)
        real = (total - bias[:, None]) * exact[:, None] + (bias.astype(np.float32) * step).astype(np.float64)[:, None]
        found = real / float(exit_.scale)
    return np.clip(np.rint(found) + int(exit_.zero_point), -128, 127).astype(np.int64)


@pytest.mark.parametrize("as_kernels", [True, False])
def test_the_exact_picture_is_integer_arithmetic(as_kernels: bool) -> None:
    torch.manual_seed(0)
    planes = torch.randint(0, 256, (1, 4, 64, 64)) / 255
    body = calibrated(_Two(), planes)
    (first, tail), (entry, middle, exit_) = body.convolutions().values(), body.quantisers().values()
    stored = np.rint(planes[0].numpy().reshape(4, -1) * 255).astype(np.int64) - 128
    hidden = in_integers(stored, first, entry, middle, as_kernels=as_kernels)
    expected = in_integers(hidden, tail, middle, exit_, as_kernels=as_kernels) + 128
    got = exact_picture(body, 2, planes, kernels="xnnpack" if as_kernels else None)
    found = np.rint(F.pixel_unshuffle(got, 2)[0].numpy().reshape(12, -1) * 255)
    np.testing.assert_array_equal(found, expected)
    assert expected.std() > 5


def test_only_the_float64_network_tells_a_value_from_a_tie() -> None:
    quantiser = FakeQuant(8)
    quantiser.set_range(0.0, 2.55)
    scale = float(quantiser.scale)
    nearly = torch.tensor([(40.5 - 1e-9) * scale, (41.5 + 1e-9) * scale], dtype=torch.float64)
    assert torch.round(quantiser(nearly) / scale).tolist() == [40, 42]


def test_rounding_is_the_formula() -> None:
    quantiser = FakeQuant(8)
    quantiser.set_range(-0.7, 2.1)
    x = torch.linspace(-2, 4, 1001)
    scale, zero = float(quantiser.scale), int(quantiser.zero_point)
    expected = (np.clip(np.rint(x.numpy() / np.float32(scale)) + zero, -128, 127) - zero) * scale
    np.testing.assert_allclose(quantiser(x).numpy(), expected, atol=1e-6)


def test_gradients_pass_inside_the_range_only() -> None:
    quantiser = FakeQuant(8)
    quantiser.set_range(0.0, 1.0)
    x = torch.tensor([-0.5, 0.2, 0.8, 1.5], requires_grad=True)
    quantiser(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_outliers_do_not_set_an_int8_range_but_set_an_int16_one() -> None:
    values = torch.rand(1 << 17)
    values[5] = 50.0
    for bits, expected in ((8, 1.0), (16, 50.0)):
        quantiser = FakeQuant(bits)  # type: ignore[arg-type]
        quantiser.observing, quantiser.enabled = True, False
        quantiser(values)
        quantiser.settle()
        assert quantiser.range()[1] == pytest.approx(expected, rel=0.02)


def test_weights_are_rounded_per_output_channel() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3)
    with torch.no_grad():
        conv.weight.mul_(torch.linspace(0.1, 2, 5)[:, None, None, None])
    quant = QuantConv(conv)
    weight = conv.weight.detach().numpy()
    largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
    expected = np.rint(weight / (largest / 127)) * (largest / 127)
    np.testing.assert_allclose(quant.weight().detach().numpy(), expected, atol=1e-6)
    x = torch.rand(1, 3, 8, 8)
    quant.enabled = False
    torch.testing.assert_close(quant(x), conv(x))


def test_a_dead_channel_keeps_its_bias_within_int32() -> None:
    conv = nn.Conv2d(2, 2, 1)
    with torch.no_grad():
        conv.weight[0] = 0
        conv.bias.fill_(3.0)  # type: ignore[union-attr]
    assert 3.0 / (float(QuantConv(conv).scales()[0]) / 255) < 2**31


def test_quantisers_sit_after_the_relu_and_at_both_ends(tiny: IspNet, pictures: Tensor) -> None:
    body = calibrated(tiny, pictures)
    # input, stem+ReLU, first+ReLU, second (into the sum), sum+ReLU, output
    assert len(body.quantisers()) == 6
    assert list(body.convolutions()) == ["stem", "first", "second", "tail"]
    ends = [body.quantisers()[n] for n in ("q_input", "q_output")]
    assert all(q.fixed == (1 / 255, -128) for q in ends)
    assert {n: int(q.zero_point) for n, q in body.quantisers().items() if "relu" in n} == {
        "q_relu": -128, "q_relu_1": -128, "q_relu_2": -128,
    }  # fmt: skip


def test_off_is_the_float_network_and_on_is_close(tiny: IspNet, pictures: Tensor) -> None:
    body = calibrated(tiny, pictures)
    with torch.no_grad():
        exact, rounded = tiny.body(pictures), body(pictures)
        body.enable(False)
        torch.testing.assert_close(body(pictures), exact)
    assert 0 < float((rounded - exact.clamp(0, 1)).abs().mean()) < 2 / 255


def test_sixteen_bits_are_closer_than_eight(tiny: IspNet, pictures: Tensor) -> None:
    exact = tiny.body(pictures).detach()
    errors = []
    for bits in (8, 16):
        body = calibrated(tiny, pictures, bits)
        for conv in body.convolutions().values():
            conv.enabled = False
        errors.append(float((body(pictures).detach() - exact).abs().mean()))
    assert errors[1] < errors[0] / 25


def test_the_exported_graph_computes_the_same(tiny: IspNet, pictures: Tensor) -> None:
    body = calibrated(tiny, pictures)
    with torch.no_grad():
        trained = body(pictures)
        with body.exporting():
            exported = body(pictures)
    step = 1 / 255
    assert float(((exported - trained).abs() > 1.5 * step).float().mean()) == 0.0
    assert float(((exported - trained).abs() > 0.5 * step).float().mean()) < 1e-3  # ties of float rounding


def test_state_goes_from_one_network_to_an_equal_one(tiny: IspNet, pictures: Tensor) -> None:
    body = calibrated(tiny, pictures)
    other = quantise_body(tiny)
    other.load_state(body.state())
    torch.testing.assert_close(other(pictures), body(pictures), rtol=0, atol=0)


def test_state_of_another_network_is_refused(tiny: IspNet) -> None:
    with pytest.raises(EguotError, match="do not fit"):
        quantise_body(tiny).load_state(QuantState(bits=8, activations={"q_input": (1 / 255, -128)}, weights={}))


class _Doubled(IspNet):
    name, shuffle, halo, multiple = "doubled", 2, 4, 2

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(4, 8, 3, 2, 1), nn.ConvTranspose2d(8, 5, 3, 2, 1, output_padding=1)
        self.tail = nn.Conv2d(5, 12, 1)

    def body(self, planes: Tensor) -> Tensor:
        return self.tail(F.leaky_relu(self.up(self.down(planes)), 0.2))  # type: ignore[no-any-return]


def depth_to_space(maps: Tensor) -> np.ndarray:
    """As TensorFlow's specification has it: phases outermost among channels."""
    n, c, h, w = maps.shape
    cut = maps.detach().numpy().reshape(n, 2, 2, c // 4, h, w)
    return cut.transpose(0, 3, 4, 1, 5, 2).reshape(n, c // 4, 2 * h, 2 * w)


def test_convolutions_before_a_shuffle_come_in_depth_to_space_order(pictures: Tensor) -> None:
    torch.manual_seed(0)
    net = written_out(_Doubled().eval())
    ordered = in_file_order(net)
    x = torch.randn(1, 8, 6, 7)
    inner: Tensor = ordered.up.conv(x)  # type: ignore[operator, union-attr]
    np.testing.assert_allclose(depth_to_space(inner), net.up(x).detach().numpy(), atol=1e-6)
    tail: Tensor = ordered.tail(x[:, :5])  # type: ignore[operator]
    np.testing.assert_allclose(depth_to_space(tail), F.pixel_shuffle(net.tail(x[:, :5]), 2).detach().numpy(), atol=1e-6)


def test_a_shuffle_goes_behind_its_relu(pictures: Tensor) -> None:
    torch.manual_seed(0)
    net = _Doubled().eval()
    body = quantise_body(written_out(net))
    body.enable(False)
    torch.testing.assert_close(body(pictures), net.body(pictures))
    assert len(body.leaky()) == 1  # tied to its neighbours, as it is without a shuffle
    calls = [str(node.target) for node in body.graph_module.graph.nodes]
    assert calls.index("leaky_leaky_relu_1") < next(i for i, call in enumerate(calls) if "shuffled" in call)


class _WithSilu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.conv(F.silu(x))


class _WithConcat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.tail = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(6, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.tail(torch.cat([F.relu(self.left(x)), self.right(x)], dim=1))


def test_an_op_without_integer_form_is_named() -> None:
    with pytest.raises(EguotError, match="silu"):
        quantise_body(_WithSilu())


def test_parts_of_a_concatenation_share_one_range(pictures: Tensor) -> None:
    torch.manual_seed(0)
    body = quantise_body(_WithConcat())
    calibrate(body, [pictures])
    assert len(body.quantisers()) == 3  # input, the shared one, output


class _MixedConcat(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.left, self.right, self.tail = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 12, 1)
        self.constant = nn.Parameter(torch.rand(1, 4, 32, 32))

    def body(self, x: Tensor) -> Tensor:
        first = {
            "input": x, "sigmoid": torch.sigmoid(self.left(x)), "tanh": torch.tanh(self.left(x)),
            "constant": self.constant, "convolution": self.left(torch.sigmoid(x)),
        }[self.kind]  # fmt: skip
        return self.tail(torch.cat([first, self.right(x) + 3], dim=1))


@pytest.mark.parametrize("kind", ["input", "sigmoid", "tanh", "constant", "convolution"])
def test_a_fixed_range_never_clips_what_it_is_concatenated_with(kind: str, pictures: Tensor) -> None:
    """The other part lies around 3, far outside of [0, 1] and of [-1, 1]."""
    torch.manual_seed(0)
    net = _MixedConcat(kind)
    if kind != "convolution":
        with pytest.raises(EguotError, match="would clip the others"):
            quantise_body(net)
        return
    body = quantise_body(net)
    calibrate(body, [pictures])
    exact, found = net.body(pictures).clamp(0, 1), body(pictures)
    assert float((exact - found).detach().abs().mean()) < 0.02


def test_leaky_relu_is_the_integer_formula_of_the_kernel() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        before, after = FakeQuant(8), FakeQuant(8)
        before.set_range(*(rng.uniform(0.05, 4, 2) * (-1, 1)))
        after.set_range(*(rng.uniform(0.05, 4, 2) * (-1, 1)))
        slope = float(rng.uniform(0.01, 0.5))
        wide = before.range()
        layer = QuantLeaky(slope, before, after)
        layer.tie()
        covered = before.range()
        assert covered[1] - covered[0] >= (wide[1] - wide[0]) * 0.999
        ratio = float(before.scale) / float(after.scale)
        above, below = round(256 * ratio), round(256 * ratio * layer.stored_slope())
        steps = np.arange(-128, 128)
        x = steps - int(before.zero_point)
        wanted = ((x * np.where(x >= 0, above, below) + 128) >> 8) + int(after.zero_point)
        real = torch.from_numpy(x).double() * before.scale.double()
        got = after(layer(real)) / after.scale.double() + after.zero_point
        np.testing.assert_array_equal(got.round().numpy(), np.clip(wanted, -128, 127))


def test_a_bias_lies_on_the_steps_of_the_sum(tiny: IspNet, pictures: Tensor) -> None:
    body = quantise_body(tiny)
    calibrate(body, [pictures])
    for name, conv in body.convolutions().items():
        (source,) = conv.source
        bias, exact = conv.bias(), conv.conv.bias
        assert bias is not None
        assert exact is not None
        steps = (bias / (source.scale * conv.scales())).detach().double()
        torch.testing.assert_close(steps, steps.round(), atol=1e-2, rtol=1e-6, msg=name)
        assert bool(((bias - exact).abs() <= 0.51 * source.scale * conv.scales()).all())
    bias.sum().backward()
    assert exact.grad is not None
    assert bool((exact.grad == 1).all())
