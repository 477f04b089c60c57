"""A network body with the rounding of an integer file put into it, in a form that files keep exactly.

Owns where quantisers sit and what they do; leaves out calibration data (`calibration`), training and file formats.
Weights are int8 per output channel, symmetric; activations are int8 per tensor with a zero point, or int16 symmetric.
A convolution or sum followed by ReLU is one unit: the quantiser sits after the ReLU, as runtimes fuse it. Input and
output ranges are fixed to [0, 1] (scale 1/255, zero point -128 for int8), so the stored output clamps by itself.
The scales around a leaky ReLU are tied so that the kernel of phones computes it without a rounding of its own.
When `exporting` is on, the same scales leave as `quantized_decomposed` ops, the form the converters read.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from eguot_sdk.errors import CheckpointError, EguotError
from eguot_train.isps.microisp import at_least
from eguot_train.isps.packed import ShuffledConv2d, grown, shuffled

Bits = Literal[8, 16]
PERCENTILE = 99.99
LEAKY_STEPS = 256
"""Steps of 1 in which XNNPACK's leaky ReLU keeps its two factors."""
LEAST_STEPS = 64
"""At most as many are asked for before a leaky ReLU whose values are small beside those it is concatenated with."""
TRIFLE = 4e-6
"""More than float32 loses, too little to reach the next 1/256 of a step."""
SAMPLES_PER_CALL = 1 << 14


@fx.wrap
def in_file_shuffled(maps: Tensor, block: int) -> Tensor:
    """A reshape that stands for DEPTH_TO_SPACE until `tflite_edits` writes it: of the right size, in any type."""
    batch, channels, height, width = maps.shape
    last = maps.permute(0, 2, 3, 1).reshape(batch, height * block, width * block, channels // block**2)
    return last.permute(0, 3, 1, 2)


_RELU_LIKE: set[Any] = {nn.ReLU, nn.ReLU6, F.relu, F.relu6, torch.relu, "relu", "relu_"}
ADDS: set[Any] = {operator.add, operator.iadd, torch.add, "add", "add_"}
SUBTRACTS: set[Any] = {operator.sub, torch.sub, "sub"}
MULTIPLIES: set[Any] = {operator.mul, torch.mul, "mul", "mul_"}
_ELEMENTWISE: set[Any] = ADDS | SUBTRACTS | MULTIPLIES
UNFIT = (
    "a transposed convolution that does not make maps exactly `stride` times as large, alike both ways and undilated, "
    "or that has hooks or a forward of its own,"
)
_SHUFFLES: set[Any] = {shuffled, in_file_shuffled}
_VALUE: set[Any] = {nn.Conv2d, nn.LeakyReLU, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
                    F.leaky_relu, F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, "mean", *_ELEMENTWISE}  # fmt: skip
_SAME_RANGE: set[Any] = {nn.MaxPool2d, nn.Dropout, F.max_pool2d, F.pad, nn.ZeroPad2d, torch.flatten,
                         at_least, grown, *_SHUFFLES, operator.getitem, "flatten", "view", "reshape", "permute",
                         "contiguous"}  # fmt: skip
_CONCAT: set[Any] = {torch.cat, torch.concat}
_POOLS: set[Any] = {nn.AvgPool2d, F.avg_pool2d}
_FIXED: dict[Any, tuple[float, int]] = {nn.Sigmoid: (1 / 256, -128), torch.sigmoid: (1 / 256, -128),
                                        "sigmoid": (1 / 256, -128), nn.Tanh: (1 / 128, 0),
                                        torch.tanh: (1 / 128, 0), "tanh": (1 / 128, 0)}  # fmt: skip
_POINTWISE: set[Any] = {*_RELU_LIKE, *_ELEMENTWISE, *_FIXED, nn.LeakyReLU, F.leaky_relu, torch.clamp, "clamp"}


class FakeQuant(nn.Module):
    """Rounds a tensor to the steps of its integer type. Float in, float out; gradients pass where nothing clips.

    `observing`: learn the range from what passes. `enabled`: round. `exporting`: leave Q/DQ ops
    with these constants in the graph instead.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: Bits, fixed: tuple[float, int] | None = None) -> None:
        super().__init__()
        self.bits, self.fixed = bits, fixed
        self.qmin, self.qmax = (-128, 127) if bits == 8 else (-32768, 32767)
        self.observing = False
        self.enabled = True
        self.exporting: tuple[float, int] | None = None
        self.samples: list[Tensor] = []
        self.low = self.high = 0.0
        scale, zero_point = fixed if fixed is not None else (1.0, 0)
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        if self.observing and self.fixed is None:
            self._observe(x.detach())
        if self.exporting is not None:
            return self._export(x, *self.exporting)
        if not self.enabled:
            return x
        if x.dtype == torch.float64:  # torch's own op computes these in float32 too
            scale = self.scale.double()
            steps = torch.clamp(torch.round(x / scale) + self.zero_point, self.qmin, self.qmax)
            return (steps - self.zero_point) * scale
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, self.qmin, self.qmax)

    def _observe(self, x: Tensor) -> None:
        flat = x.flatten()
        step = max(1, flat.numel() // SAMPLES_PER_CALL) | 1  # odd: does not fall in step with rows and channels
        self.samples.append(flat[::step].clone())
        self.low = min(self.low, float(flat.min()))
        self.high = max(self.high, float(flat.max()))

    def _export(self, x: Tensor, scale: float, zero_point: int) -> Tensor:
        qd = torch.ops.quantized_decomposed
        kind = torch.int8 if self.bits == 8 else torch.int16
        args = (scale, zero_point, self.qmin, self.qmax, kind)
        stored: Tensor = qd.dequantize_per_tensor(qd.quantize_per_tensor(x, *args), *args)
        return stored

    def settle(self, *, keep: float = 0.0) -> None:
        """Turn what was observed into a scale; `keep` blends the old range in (0: forget it). Clears the samples.

        int8 takes the 99.99 percentile on each side; int16 has steps to spare and takes the extremes.
        """
        if self.fixed is not None or not self.samples:
            return
        if self.bits == 16:
            low, high = self.low, self.high
        else:
            values = torch.cat(self.samples).numpy()
            low, high = (float(v) for v in np.percentile(values, [100 - PERCENTILE, PERCENTILE]))
        self.samples.clear()
        if keep:
            old_low, old_high = self.range()
            low, high = keep * old_low + (1 - keep) * low, keep * old_high + (1 - keep) * high
        self.set_range(low, high)

    def cover(self, low: float, high: float) -> None:
        """Widen the range where it does not reach from `low` to `high`."""
        if self.fixed is None:
            now_low, now_high = self.range()
            self.set_range(min(low, now_low), max(high, now_high))

    def take_range_of(self, constant: Tensor) -> None:
        """Cover the values of a parameter, and learn nothing more."""
        self.set_range(float(constant.detach().min()), float(constant.detach().max()))
        self.fixed = (float(self.scale), int(self.zero_point))

    def range(self) -> tuple[float, float]:
        """Smallest and largest value the integer type can hold at the present scale."""
        scale, zero_point = float(self.scale), int(self.zero_point)
        return (self.qmin - zero_point) * scale, (self.qmax - zero_point) * scale

    def set_range(self, low: float, high: float) -> None:
        """Cover [low, high] and 0 (padding writes exact zeros); the scale is rounded to float32, as files store it."""
        low, high = min(low, 0.0), max(high, 0.0)
        if self.bits == 16:
            scale, zero_point = np.float32(max(-low, high, 1e-6) / 32767), 0
        else:
            scale = np.float32(max(high - low, 1e-6) / 255)
            zero_point = int(np.clip(round(-128 - low / float(scale)), -128, 127))
        self.scale.fill_(float(scale))
        self.zero_point.fill_(zero_point)


class QuantLeaky(nn.Module):
    """A leaky ReLU between two int8 quantisers, in numbers that XNNPACK's kernel computes as torch does.

    That kernel multiplies steps by whole numbers of 1/256, one factor above zero and one below; any other factor is
    rounded to such a number, which moves one value in eight by a step. So the scale before is made k / 256 of the scale
    after and the slope m / k. It rounds halves upwards, torch to even: factors a trifle off k and m leave no halves.
    """

    def __init__(self, slope: float, before: FakeQuant, after: FakeQuant) -> None:
        super().__init__()
        self.slope = slope
        self.ends = (before, after)  # a tuple: they are modules of the graph, not of this one
        self.exporting: float | None = None

    def stored_slope(self) -> float:
        """The slope that the scales of both ends allow, near the network's."""
        before, after = self.ends
        if before.bits != 8:
            return self.slope
        ratio = max(1, round(LEAKY_STEPS * float(before.scale) / float(after.scale)))
        steps = round(self.slope * ratio) or math.copysign(1, self.slope)  # converters write no leaky ReLU of slope 0
        return steps / ratio * (1 - 3 * TRIFLE)

    def tie(self) -> None:
        """Widen the range before it by as little as makes its scale a whole number of 1/256 of the scale after it."""
        before, after = self.ends
        if before.bits != 8 or before.fixed is not None or before is after:
            return
        low, _ = before.range()
        least = min(LEAST_STEPS, math.ceil(2 / max(abs(self.slope), 1e-6)))  # leaves the slope two steps
        ratio = max(least, math.ceil(LEAKY_STEPS * float(before.scale) / float(after.scale) - 0.01))
        scale = float(np.float32(float(after.scale) * ratio / LEAKY_STEPS * (1 + TRIFLE)))
        before.scale.fill_(scale)
        before.zero_point.fill_(int(np.clip(round(-128 - low / scale), -128, 127)))

    def forward(self, x: Tensor) -> Tensor:
        if self.exporting is not None:
            return F.leaky_relu(x, self.exporting)
        return F.leaky_relu(x, self.stored_slope() if self.ends[1].enabled else self.slope)


class QuantConv(nn.Module):
    """A convolution whose weights are rounded to int8 steps, one scale per output channel.

    Scales are `fixed_scale` where set, else largest weight / 127. The bias is rounded to steps of the sum: input
    scale times weight scale. Unrounded it would tip one output in a thousand to another step, and each layer after
    it more of them. Holds the original layer, so its parameters keep their identity and their names in the network.
    """

    export_bias: Tensor | None
    export_scale: Tensor
    export_zero: Tensor
    export_steps: Tensor | None
    fixed_scale: Tensor | None

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.exporting = False
        self.enabled = True
        self.source: tuple[FakeQuant, ...] = ()
        """The quantiser of its input, where there is one; a tuple, for it is a module of the graph and not of this."""
        self.target: tuple[FakeQuant, ...] = ()
        """That of its output."""
        self.as_kernels = False
        channels = len(conv.weight)
        self.register_buffer("fixed_scale", None, persistent=False)
        self.register_buffer("export_steps", None, persistent=False)
        self.register_buffer("export_bias", None, persistent=False)
        self.register_buffer("export_scale", torch.ones(channels), persistent=False)
        self.register_buffer("export_zero", torch.zeros(channels, dtype=torch.int64), persistent=False)

    def scales(self) -> Tensor:
        """float32 [output channels]. A dead channel gets a step that keeps its bias within int32."""
        if self.fixed_scale is not None:
            return self.fixed_scale
        largest = self.conv.weight.detach().abs().flatten(1).amax(1)
        floor = torch.full_like(largest, 1e-7)
        if self.conv.bias is not None:
            step = float(self.source[0].scale) if self.source else 1 / 255
            floor = torch.maximum(floor, self.conv.bias.detach().abs() * max(1e-5, 2.0**-30 / step))
        return torch.maximum(largest / 127, floor)

    def steps(self) -> Tensor:
        """The weights as whole numbers of steps, int8."""
        shape = [-1] + [1] * (self.conv.weight.ndim - 1)
        inverse = (1.0 / self.scales()).reshape(shape)  # as torch rounds: a product, not a quotient
        return torch.clamp(torch.round(self.conv.weight.detach().float() * inverse), -127, 127).to(torch.int8)

    def weight(self) -> Tensor:
        """The weights as the file will hold them, in float."""
        weight = self.conv.weight
        if self.exporting:
            qd = torch.ops.quantized_decomposed
            args = (self.export_scale, self.export_zero, 0, -127, 127, torch.int8)
            steps = self.export_steps if self.export_steps is not None else qd.quantize_per_channel(weight, *args)
            stored: Tensor = qd.dequantize_per_channel(steps, *args)
            return stored
        if not self.enabled:
            return weight
        scale = self.scales()
        if weight.dtype == torch.float64:
            return self.steps() * scale.double().reshape([-1] + [1] * (weight.ndim - 1))
        zero = torch.zeros(scale.shape, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)

    def bias(self) -> Tensor | None:
        """The bias as the file will hold it, in float; None where the layer has none. Gradients pass."""
        bias = self.conv.bias
        if bias is None or not self.source or not self.enabled or not self.source[0].enabled:
            return bias
        if self.exporting:
            return self.export_bias
        step = self.source[0].scale * self.scales()
        held = torch.round(bias.detach().float() / step) * step  # float32 also in float64 networks, as files keep it
        return held + (bias - bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        if self.as_kernels and self.enabled and self.source and self.target:
            return self._integer_forward(x)
        return self._convolved(x, self.weight(), self.bias())

    def _integer_forward(self, x: Tensor) -> Tensor:
        """As the integer kernels of XNNPACK and onnxruntime, for float64 `x`: a whole sum, times one float32.

        What comes out is the product before it is rounded, times the output's scale: dividing by that gives it back.
        """
        entry, exit_, scales = self.source[0].scale, self.target[0].scale, self.scales()
        bias = self.conv.bias
        if bias is not None:
            bias = torch.round(bias.detach().float() / (entry * scales)).double()
        total = self._convolved(torch.round(x / entry.double()), self.steps().double(), bias)
        factor = (entry * scales / exit_).reshape(1, -1, 1, 1)
        return (total.float() * factor).double() * exit_.double()

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv = self.conv
        if conv.padding_mode == "zeros":
            return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        x = F.pad(x, conv._reversed_padding_repeated_twice, conv.padding_mode)
        if self.source and self.source[0].exporting is not None:  # integer convolutions read a quantiser itself
            x = self.source[0](x)
        return F.conv2d(x, weight, bias, conv.stride, 0, conv.dilation, conv.groups)


@dataclass(frozen=True, kw_only=True)
class QuantState:
    """Everything besides the weights that makes a quantised network: JSON-able, kept beside a checkpoint."""

    bits: Bits | None
    """Of activations; None: they stay float."""
    activations: dict[str, tuple[float, int]]
    """Name of the quantiser -> scale, zero point."""
    weights: dict[str, tuple[float, ...]]
    """Name of the convolution -> scale per output channel."""
    float_layers: tuple[str, ...] = ()
    """Convolutions left in float."""

    def reordered(self, orders: Mapping[str, Sequence[int]]) -> QuantState:
        """The state after the output channels of some layers were put in another order."""
        moved = {layer: tuple(self.weights[layer][i] for i in order) for layer, order in orders.items()}
        return dataclasses.replace(self, weights={**self.weights, **moved})


class QuantBody(nn.Module):
    """The body of a network with quantisers in it: packed planes [B, 4, h, w] -> [B, 3 * shuffle**2, ...]."""

    def __init__(self, graph: fx.GraphModule, bits: Bits | None) -> None:
        super().__init__()
        self.graph_module = graph
        self.bits: Bits | None = bits

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.graph_module(x)
        return out

    def quantisers(self) -> dict[str, FakeQuant]:
        """Activation quantisers by name, in the order of the graph."""
        return {n.removeprefix("graph_module."): m for n, m in self.named_modules() if isinstance(m, FakeQuant)}

    def convolutions(self) -> dict[str, QuantConv]:
        """Quantised convolutions by their name in the network, in the order of the graph."""
        found = {n.removeprefix("graph_module.net."): m for n, m in self.named_modules() if isinstance(m, QuantConv)}
        return found

    def state(self) -> QuantState:
        """What `load_state` needs to make an equal network from equal weights."""
        return QuantState(
            bits=self.bits,
            activations={n: (float(q.scale), int(q.zero_point)) for n, q in self.quantisers().items()},
            weights={n: tuple(c.scales().tolist()) for n, c in self.convolutions().items()},
            float_layers=tuple(n for n, c in self.convolutions().items() if not c.enabled),
        )

    def load_state(self, state: QuantState) -> None:
        """Take the scales of `state`. Raises CheckpointError where it belongs to another network."""
        quantisers, convolutions = self.quantisers(), self.convolutions()
        have = {*quantisers, *((n, len(c.scales())) for n, c in convolutions.items())}
        want = {*state.activations, *((n, len(scales)) for n, scales in state.weights.items())}
        if have != want or state.bits != self.bits:
            odd = min((str(name) for name in have ^ want), default=f"{state.bits} bits")
            raise CheckpointError(f"quantisation scales do not fit this network ({odd}): quantise the run again")
        for name, (scale, zero_point) in state.activations.items():
            quantisers[name].scale.fill_(scale)
            quantisers[name].zero_point.fill_(zero_point)
        for name, conv in convolutions.items():
            conv.fixed_scale = torch.tensor(state.weights[name], dtype=torch.float32)
            conv.enabled = name not in state.float_layers

    def leaky(self) -> list[QuantLeaky]:
        """Leaky ReLUs, in the order of the graph."""
        return [m for m in self.modules() if isinstance(m, QuantLeaky)]

    def settle(self, *, keep: float = 0.0, cover: Mapping[str, tuple[float, float]] | None = None) -> None:
        """Turn what quantisers observed into scales (`FakeQuant.settle`) of at least the ranges `cover`, by name."""
        for name, quantiser in self.quantisers().items():
            quantiser.settle(keep=keep)
            if cover is not None:
                quantiser.cover(*cover[name])
        for layer in self.leaky():
            layer.tie()

    def observe(self, on: bool) -> None:
        """Switch the learning of ranges on or off."""
        for quantiser in self.quantisers().values():
            quantiser.observing = on

    def enable(self, on: bool) -> None:
        """Switch all rounding on or off; off is the float network."""
        for quantiser in self.quantisers().values():
            quantiser.enabled = on
        for conv in self.convolutions().values():
            conv.enabled = on

    @contextmanager
    def exporting(self, *, stored: bool = False) -> Iterator[QuantBody]:
        """Within: the graph holds Q/DQ ops with constant scales instead of rounding.

        `stored`: weights are int8 constants with a DQ; otherwise float ones with Q and DQ.
        """
        import torch.ao.quantization.fx._decomposed  # noqa: F401  (registers quantized_decomposed)

        quantisers, convolutions = self.quantisers().values(), self.convolutions().values()
        for conv in convolutions:
            conv.export_scale.copy_(conv.scales())
            bias = conv.bias()
            conv.export_bias = None if bias is None else bias.detach().clone()
            conv.exporting = conv.enabled
            conv.export_steps = conv.steps() if stored else None
        for quantiser in quantisers:
            quantiser.exporting = (float(quantiser.scale), int(quantiser.zero_point))
        for layer in self.leaky():
            layer.exporting = layer.stored_slope()
        try:
            yield self
        finally:
            for layer in self.leaky():
                layer.exporting = None
            for conv in convolutions:
                conv.exporting, conv.export_steps, conv.export_bias = False, None, None
            for quantiser in quantisers:
                quantiser.exporting = None


class QuantIsp(nn.Module):
    """A quantised body with the tail shuffle: planes [B, 4, h, w] -> RGB [B, 3, 2h, 2w] in [0, 1]."""

    def __init__(self, body: QuantBody, shuffle: int) -> None:
        super().__init__()
        self.body, self.shuffle = body, shuffle

    def forward(self, planes: Tensor) -> Tensor:
        return F.pixel_shuffle(self.body(planes), self.shuffle)


def quantise_body(net: nn.Module, *, bits: Bits | None = 8) -> QuantBody:
    """Put quantisers into `net.body`, ranges not yet learned. The weights are shared with `net`, not copied.

    `bits` of activations; None leaves them float and rounds the weights alone.

    `net`: an IspNet. Raises EguotError naming the first op that has no integer form here.
    """
    graph_module = trace_body(net)
    modules = dict(graph_module.named_modules())
    _shuffle_late(graph_module, modules)
    if bits is not None:
        refuse_linear(graph_module)
        if bits == 16:
            _refuse_int16(graph_module, modules)
        _insert_quantisers(graph_module, modules, bits)
    for path, module in modules.items():
        if isinstance(module, nn.ConvTranspose2d):
            raise EguotError(f"{path.removeprefix('net.')}: {UNFIT} has no int8 form")
        if isinstance(module, nn.Conv2d):
            graph_module.set_submodule(path, QuantConv(module))
    for node in graph_module.graph.nodes:
        layer = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, QuantConv):
            layer.source = _quantiser(graph_module, source_of(node.args[0], modules))
            target = quantiser_after(graph_module, node, modules)
            layer.target = () if target is None else (target,)
    graph_module.graph.lint()
    graph_module.recompile()
    return QuantBody(graph_module, bits).train(net.training)


def refuse_linear(body: fx.GraphModule) -> None:
    """Raises EguotError for a Linear: TFLite has scales of its own for it, and does not load it with int8 values."""
    for path, module in body.named_modules():
        if isinstance(module, nn.Linear):
            name = path.removeprefix("net.")
            raise EguotError(f"{name}: Linear has no int8 form here: use a 1x1 convolution of maps [B, C, 1, 1]")


def _refuse_int16(body: fx.GraphModule, modules: dict[str, nn.Module]) -> None:
    """Raises EguotError for what the converter does not write between int16 values."""
    for node in body.graph.nodes:
        kind = kind_of(node, modules)
        number = kind in _ELEMENTWISE and any(isinstance(argument, int | float) for argument in node.args)
        if kind in _CONCAT or number:
            what = "a number beside a tensor" if number else "a concatenation"
            raise EguotError(f"{node.name}: {what} has no form with int16 values here: use w8a8, or w8")


def _shuffle_late(graph_module: fx.GraphModule, modules: dict[str, nn.Module]) -> None:
    """Swap every shuffle with the ReLU after it: same numbers, and the ReLU is part of the convolution before both."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if kind_of(node, modules) not in _RELU_LIKE and _slope(node, modules) is None:
            continue
        shuffle = node.args[0] if node.args else None
        if not isinstance(shuffle, fx.Node) or kind_of(shuffle, modules) not in _SHUFFLES or len(shuffle.users) != 1:
            continue
        maps = shuffle.args[0]
        with graph.inserting_before(shuffle):
            active = graph.node_copy(node, {shuffle: maps}.__getitem__)
            late = graph.node_copy(shuffle, {maps: active}.__getitem__)
        node.replace_all_uses_with(late)
        graph.erase_node(node)
        graph.erase_node(shuffle)


def _quantiser(graph_module: fx.GraphModule, node: fx.Node) -> tuple[FakeQuant, ...]:
    """The quantiser that a node calls, in a tuple; an empty one where it is something else."""
    layer = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return (layer,) if isinstance(layer, FakeQuant) else ()


def quantiser_after(graph_module: fx.GraphModule, node: fx.Node, modules: dict[str, nn.Module]) -> FakeQuant | None:
    """The one reader of what `node` makes, after a ReLU or at once, where that is a quantiser."""
    readers = list(node.users)
    if len(readers) == 1 and kind_of(readers[0], modules) in _RELU_LIKE:
        readers = list(readers[0].users)
    found = _quantiser(graph_module, readers[0]) if len(readers) == 1 else ()
    return found[0] if found else None


def _insert_quantisers(graph_module: fx.GraphModule, modules: dict[str, nn.Module], bits: Bits) -> None:
    fixed = (1 / 255, -128) if bits == 8 else (1 / 32767, 0)
    holders: dict[str, FakeQuant] = {}
    for node, name, special in _activation_sites(graph_module, modules):
        quantiser = holders.get(name)
        if quantiser is None:
            at_edge = special == "edge"
            value = fixed if at_edge else special if isinstance(special, tuple) else None
            if value is not None and not at_edge and bits == 16:
                value = (1 / 32768, 0)
            quantiser = holders[name] = FakeQuant(bits, value)
            if special == "constant":
                quantiser.take_range_of(_parameter(graph_module, node))
            graph_module.add_module(name, quantiser)
        with graph_module.graph.inserting_after(node):
            placed = graph_module.graph.call_module(name, (node,))
        node.replace_all_uses_with(placed, delete_user_cb=lambda user, placed=placed: user is not placed)  # type: ignore[misc]
    _tie_leaky(graph_module, modules)


def _parameter(graph_module: fx.GraphModule, node: fx.Node) -> Tensor:
    path, _, name = str(node.target).rpartition(".")
    value: Tensor = getattr(graph_module.get_submodule(path), name)
    return value


def _tie_leaky(graph_module: fx.GraphModule, modules: dict[str, nn.Module]) -> None:
    """Put a QuantLeaky in the place of every leaky ReLU that nothing else reads the input of."""
    for node in list(graph_module.graph.nodes):
        slope = _slope(node, modules)
        if slope is None:
            continue
        ends = [graph_module.get_submodule(str(n.target)) for n in (node.args[0], *node.users) if n.op == "call_module"]
        if len(ends) != 2 or not all(isinstance(end, FakeQuant) for end in ends) or len(node.args[0].users) != 1:
            continue
        name = f"leaky_{node.name}"
        graph_module.add_module(name, QuantLeaky(slope, *ends))  # type: ignore[arg-type]
        with graph_module.graph.inserting_after(node):
            placed = graph_module.graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(placed)
        graph_module.graph.erase_node(node)


def _slope(node: fx.Node, modules: dict[str, nn.Module]) -> float | None:
    """Of a leaky ReLU; None for another op."""
    if node.op == "call_module" and isinstance(leaky := modules.get(str(node.target)), nn.LeakyReLU):
        return leaky.negative_slope
    if node.target is F.leaky_relu:
        return float(node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01))  # type: ignore[arg-type]
    return None


class _Body(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net.body(x)  # type: ignore[operator]
        return out


def float_body(net: nn.Module) -> nn.Module:
    """`net.body` as a module of its own, for tracing and export. Shares its weights with `net`."""
    return _Body(net)


def trace_body(net: nn.Module) -> fx.GraphModule:
    """The graph of `net.body` without identities; submodules are called `net.<path>`. Shares its weights with `net`."""
    try:
        graph_module = fx.symbolic_trace(_Body(net))
        modules = dict(graph_module.named_modules())
        for node in list(graph_module.graph.nodes):
            for name in ("input", "tensors"):  # what is read comes first, as everything here takes it
                if not node.args and name in node.kwargs:
                    node.args, node.kwargs = (node.kwargs[name],), {k: v for k, v in node.kwargs.items() if k != name}
            if kind_of(node, modules) is nn.Identity:  # nothing, also between a convolution and its ReLU
                node.replace_all_uses_with(node.args[0])
                graph_module.graph.erase_node(node)
        graph_module.graph.eliminate_dead_code()  # sizes that nothing reads
        graph_module.recompile()
        return graph_module
    except Exception as error:  # the tracer raises whatever the traced code raises
        raise EguotError(f"the network's body cannot be traced: {str(error).splitlines()[0]}") from error


def calibrate(body: QuantBody, tiles: Iterable[Tensor]) -> None:
    """Learn every activation range from float forward passes over `tiles` ([B, 4, h, w], companded, [0, 1])."""
    body.enable(False)
    body.observe(True)
    with torch.no_grad():
        for tile in tiles:
            body(tile)
    body.observe(False)
    body.enable(True)
    body.settle()


def last_convolution(net: nn.Module) -> str | None:
    """Path inside `net` of the convolution that the body ends in, but for ops on single values; else None.

    One of several groups counts as none: its outputs cannot change places, each group having inputs of its own.
    """
    graph_module = trace_body(net)
    modules = dict(graph_module.named_modules())
    (output,) = graph_module.graph.find_nodes(op="output")
    last = output.args[0]
    while kind_of(last, modules) in _POINTWISE and not any(isinstance(a, fx.Node) for a in last.args[1:]):
        last = last.args[0]
    layer = modules[str(last.target)] if last.op == "call_module" else None
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        return str(last.target).removeprefix("net.")
    return None


class _Ended(nn.Module):
    """A network followed by a 1x1 convolution that changes nothing: something whose channels can be put in order."""

    def __init__(self, net: nn.Module, channels: int) -> None:
        super().__init__()
        self.inner = net
        self.shuffle = int(net.shuffle)  # type: ignore[arg-type]
        for key in ("name", "halo", "multiple", "global_context", "mobile_safe"):
            setattr(self, key, getattr(net, key))
        self.end = nn.Conv2d(channels, channels, 1)
        with torch.no_grad():
            self.end.weight.copy_(torch.eye(channels)[:, :, None, None])
            nn.init.zeros_(self.end.bias)  # type: ignore[arg-type]

    def body(self, planes: Tensor) -> Tensor:
        out: Tensor = self.end(self.inner.body(planes))  # type: ignore[operator]
        return out

    def forward(self, planes: Tensor) -> Tensor:
        return F.pixel_shuffle(self.body(planes), self.shuffle)


def ending_in_convolution(net: nn.Module) -> nn.Module:
    """`net`, or where its body does not end in a convolution, `net` with one that changes nothing."""
    if last_convolution(net) is not None:
        return net
    return _Ended(net, 3 * int(net.shuffle) ** 2).eval()  # type: ignore[arg-type]


def file_order(block: int, channels: int = 3) -> list[int]:
    """Channel of pixel_shuffle order for each channel of DEPTH_TO_SPACE (DCR) order."""
    return [c * block * block + ij for ij in range(block * block) for c in range(channels)]


def orders(net: nn.Module) -> dict[str, list[int]]:
    """Path of every convolution before a shuffle, the one at the end too -> its channels in `file_order`."""
    path = last_convolution(net)
    assert path is not None, "ending_in_convolution comes first"
    inner = {f"{p}.conv": m for p, m in net.named_modules() if isinstance(m, ShuffledConv2d)}
    found = {p: file_order(m.block, m.conv.out_channels // m.block**2) for p, m in inner.items()}
    return {path: file_order(int(net.shuffle)), **found}  # type: ignore[arg-type]


def has_inner_shuffles(net: nn.Module) -> bool:
    """Whether a shuffle stands inside the body."""
    return any(isinstance(module, ShuffledConv2d) for module in net.modules())


class _InFileOrder(nn.Module):
    """A ShuffledConv2d whose convolution writes DEPTH_TO_SPACE order. Its picture is one in the file only."""

    def __init__(self, layer: ShuffledConv2d) -> None:
        super().__init__()
        self.block, self.conv = layer.block, _whole(layer.conv, layer.margins)

    def forward(self, input: Tensor, output_size: object = None) -> Tensor:
        return in_file_shuffled(self.conv(input), self.block)


def _whole(conv: nn.Conv2d, margins: tuple[int, int, int, int]) -> nn.Conv2d:
    """The same convolution of maps with `margins` around them, with zeros for what it leaves out.

    Without groups, between which channels cannot be put in another order, and with a padding of its own alike on all
    sides, for the converter turns maps around for a pad between integers.
    """
    (left, _, top, _), (rows, columns) = margins, conv.kernel_size
    reach = max(*margins, int(conv.padding[0]))
    whole = nn.Conv2d(conv.in_channels, conv.out_channels, 2 * reach + 1, padding=reach, bias=conv.bias is not None)
    y, x = (reach - top, reach - left) if any(margins) else (0, 0)
    wide, tall = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    with torch.no_grad():
        whole.weight.zero_()
        for g in range(conv.groups):
            out, of = slice(g * tall, (g + 1) * tall), slice(g * wide, (g + 1) * wide)
            whole.weight[out, of, y : y + rows, x : x + columns] = conv.weight[out]
        if conv.bias is not None and whole.bias is not None:
            whole.bias.copy_(conv.bias)
    return whole


def in_file_order(net: nn.Module) -> nn.Module:
    """A copy of `net` whose convolutions before a shuffle write DEPTH_TO_SPACE (DCR) order."""
    twin = copy.deepcopy(net)
    ordered = {module: _InFileOrder(module) for module in twin.modules() if isinstance(module, ShuffledConv2d)}
    for path, module in list(twin.named_modules(remove_duplicate=False)):
        if isinstance(module, ShuffledConv2d):
            twin.set_submodule(path, ordered[module])
    for path, order in orders(net).items():
        conv = twin.get_submodule(path)
        assert isinstance(conv, nn.Conv2d)
        with torch.no_grad():
            conv.weight.copy_(conv.weight[order])
            if conv.bias is not None:
                conv.bias.copy_(conv.bias[order])
    return twin


Site = tuple[fx.Node, str, tuple[float, int] | str | None]


def _activation_sites(graph: fx.GraphModule, modules: dict[str, nn.Module]) -> list[Site]:
    """Nodes to put a quantiser after, its name, and what is special: "edge" (input, output), "constant" (a parameter
    that ops on single values read) or a fixed range."""
    nodes = list(graph.graph.nodes)
    output = nodes[-1]
    last_value = source_of(output.args[0], modules)
    sites: list[Site] = []
    for node in nodes:
        kind = kind_of(node, modules)
        if node.op == "placeholder":
            sites.append((node, "q_input", "edge"))
        elif node is last_value:
            sites.append((node, "q_output", "edge"))
        elif kind is grown:  # again, for integer convolutions of some runtimes want to read a quantiser itself
            source = source_of(node, modules)
            sites += [(node, name, special) for made, name, special in sites if made is source]
        elif kind in _FIXED:
            sites.append((node, f"q_{node.name}", _FIXED[kind]))
        elif kind in _ELEMENTWISE and node.kwargs.get("alpha", 1) != 1:
            raise EguotError(f"{node.name}: a sum with `alpha` has no int8 form here: multiply before the sum")
        elif (kind in _VALUE and not _fused_with_relu(node, modules)) or kind in _RELU_LIKE or kind in _CONCAT:
            sites.append((node, f"q_{node.name}", None))
        elif node.op == "get_attr":
            sites.append((node, f"q_{node.name}", "constant"))
        elif node.op != "output" and kind not in _VALUE and kind not in _SAME_RANGE:
            name = _op_name(node, modules)
            why = (
                "can be part of a convolution only where it alone reads one that is called once"
                if name == "BatchNorm2d"
                else "use conv, ReLU, add, mul, mean or concat"
            )
            raise EguotError(f"{name} has no int8 form here: {why}")
    return _tie_ranges(sites, modules)


def _tie_ranges(sites: list[Site], modules: dict[str, nn.Module]) -> list[Site]:
    """A concatenation and its inputs share one range, and so do the two ends of an average pooling: integer kernels
    copy or average, they do not rescale.
    """
    names = {node: name for node, name, _ in sites}
    pools = {node for node, _, special in sites if kind_of(node, modules) in _POOLS and special is None}
    for node in pools:
        own, of_input = names[node], names[source_of(node.args[0], modules)]
        names = {n: of_input if name == own else name for n, name in names.items()}
    for node in names:
        name = names[node]
        if kind_of(node, modules) in _CONCAT:
            for part in node.args[0]:  # type: ignore[union-attr]
                source = source_of(part, modules)
                old = names[source]
                names = {n: name if v == old else v for n, v in names.items()}
    ranges: dict[str, set[tuple[float, int] | str | None]] = {}
    for node, _, special in sites:
        if kind_of(node, modules) not in _CONCAT and node not in pools:
            ranges.setdefault(names[node], set()).add(special)
    if any(len(found) > 1 for found in ranges.values()):
        raise EguotError(
            "a concatenation of the input, a sigmoid, a tanh or a constant with other values has no int8 form here: "
            "its fixed range would clip the others; put a 1x1 convolution between"
        )
    fixed = {names[node]: special for node, _, special in sites if special is not None}
    return [(node, names[node], fixed.get(names[node])) for node, _, special in sites]


def source_of(node: Any, modules: dict[str, nn.Module]) -> fx.Node:
    """The node that made the values of `node`, through ops that only move them."""
    while kind_of(node, modules) in _SAME_RANGE:
        node = node.args[0]
    assert isinstance(node, fx.Node)
    return node


def _fused_with_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    users = list(node.users)
    return len(users) == 1 and kind_of(users[0], modules) in _RELU_LIKE


def kind_of(node: fx.Node, modules: dict[str, nn.Module]) -> type | Callable[..., Any] | str | None:
    """What a node computes: a module's type, a function or a method's name; None where it computes nothing."""
    if node.op == "call_module":
        return type(modules[str(node.target)]) if node.target in modules else None  # None: a quantiser put in since
    if node.op in ("call_function", "call_method"):
        return node.target
    return None


def _op_name(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    kind = kind_of(node, modules)
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
