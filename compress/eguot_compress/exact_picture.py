"""The picture a quantised network stands for, to the step: what its files are held against.

Sums in float32 tip one value in ten thousand to another step, and every layer after it more of them: a deep network
then differs from its own file in several percent of the picture, and no fault of the file can be told from that. So
the graph is computed in float64, where whole numbers of steps are exact. Runtimes with integer kernels round what they
sum once more, each in its own way, before they round it to a step; `kernels` says whose way.

`xnnpack` (LiteRT): sums and products times one float32; sums of two values by whole numbers of 20 bits, halves up.
`onnxruntime`: the same, but sums of two values in float32, which is taken for exact here.
None: no integer kernels, as Core ML's graph of float ops says.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from .fake_quant import ADDS, MULTIPLIES, SUBTRACTS, FakeQuant, QuantBody, QuantIsp, kind_of, quantiser_after, source_of

Kernels = Literal["xnnpack", "onnxruntime"]
SUM_BITS = 20
SMALLEST, LARGEST = 2.0**-10, 2.0**8
"""What XNNPACK's sums take: the scale of a value over that of the sum."""


def exact_picture(body: QuantBody, shuffle: int, planes: Tensor, *, kernels: Kernels | None = "xnnpack") -> Tensor:
    """What `body` makes of [N, 4, h, w], one picture at a time -> float32 [N, 3, 2h, 2w]."""
    twin = QuantIsp(copy.deepcopy(body), shuffle)
    if kernels is not None and body.bits == 8:
        for conv in twin.body.convolutions().values():
            conv.as_kernels = True
        _put_kernels(twin.body.graph_module, kernels)
    for parameter in twin.parameters():
        parameter.data = parameter.data.double()
    entry = body.quantisers().get("q_input")
    if kernels == "onnxruntime" and entry is not None:  # its files take floats, and round them by a float32 quotient
        planes = torch.round(planes / entry.scale).double() * entry.scale.double()
    with torch.no_grad():
        return torch.cat([twin(p[None].double()).float() for p in planes])


def _put_kernels(graph_module: fx.GraphModule, kernels: Kernels) -> None:
    """Integer arithmetic in the place of every sum, difference and product of two quantised values."""
    modules = dict(graph_module.named_modules())
    for node in list(graph_module.graph.nodes):
        kind = kind_of(node, modules)
        sum_sign = 1 if kind in ADDS else -1 if kind in SUBTRACTS else 0
        if (not sum_sign and kind not in MULTIPLIES) or (sum_sign and kernels == "onnxruntime"):
            continue
        exit_ = quantiser_after(graph_module, node, modules)
        entries = [_entry(graph_module, argument, modules) for argument in node.args[:2]]
        if exit_ is None or None in entries:
            continue
        name = f"integer_{node.name}"
        kernel = _Sum(entries, exit_, sum_sign) if sum_sign else _Product(entries, exit_)
        graph_module.add_module(name, kernel)
        with graph_module.graph.inserting_after(node):
            placed = graph_module.graph.call_module(name, tuple(node.args[:2]))
        node.replace_all_uses_with(placed)
        graph_module.graph.erase_node(node)
    graph_module.recompile()


def _entry(graph_module: fx.GraphModule, argument: Any, modules: dict[str, nn.Module]) -> FakeQuant | None:
    """The quantiser of an operand; of a number one that puts it on the end of its range, as the converter does."""
    if isinstance(argument, fx.Node):
        source = source_of(argument, modules)
        found = graph_module.get_submodule(str(source.target)) if source.op == "call_module" else None
        return found if isinstance(found, FakeQuant) else None
    value = float(argument)
    scale = float(np.float32(abs(value) / 255))
    return FakeQuant(8, (scale, -128 if value > 0 else 127)) if scale > 0 else None


class _Kernel(nn.Module):
    def __init__(self, entries: list[Any], exit_: FakeQuant) -> None:
        super().__init__()
        self.ends = (*entries, exit_)  # a tuple: they are modules of the graph, not of this one

    def steps(self, a: Any, b: Any) -> list[Tensor]:
        """The operands as whole numbers of steps from zero, float64."""
        values = [torch.as_tensor(v, dtype=torch.float64) for v in (a, b)]
        return [torch.round(v / q.scale.double()) for v, q in zip(values, self.ends, strict=False)]


class _Product(_Kernel):
    def forward(self, a: Any, b: Any) -> Tensor:
        (x, y), (q, r, out) = self.steps(a, b), self.ends
        return ((x * y).float() * (q.scale * r.scale / out.scale)).double() * out.scale.double()


class _Sum(_Kernel):
    def __init__(self, entries: list[Any], exit_: FakeQuant, sign: int) -> None:
        super().__init__(entries, exit_)
        self.sign = sign

    def forward(self, a: Any, b: Any) -> Tensor:
        (x, y), (q, r, out) = self.steps(a, b), self.ends
        ratios = [float(q.scale / out.scale), float(r.scale / out.scale)]
        if min(ratios) < SMALLEST or max(ratios) >= LARGEST:  # left to other kernels
            return x * q.scale.double() + self.sign * y * r.scale.double()
        shift = 2.0 ** (SUM_BITS + 1 - math.frexp(max(ratios))[1])
        left, right = (round(ratio * shift) for ratio in ratios)
        return torch.floor((x * left + self.sign * y * right) / shift + 0.5) * out.scale.double()
