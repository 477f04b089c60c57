"""The forms a network takes before it is converted: with layers that converters take, then that have integer kernels.

The numbers stay the same. In the first, layers are written out, batch norms are part of the convolutions before them,
and the body ends in a convolution, whose channels files put in an order of their own. In the second, PReLU with a slope
per channel is relu(x) (1 - a) + x a: two depthwise convolutions and a sum. Their weights are one per channel, so int8
holds them exactly. With one slope it is leaky ReLU.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from eguot_compress.fake_quant import ending_in_convolution, kind_of, trace_body
from eguot_train.isps.base import IspNet
from eguot_train.isps.packed import written_out


class SlopedRelu(nn.Module):
    """PReLU with a slope per channel, in ops that runtimes have in int8."""

    def __init__(self, prelu: nn.PReLU) -> None:
        super().__init__()
        channels = prelu.num_parameters
        self.above = nn.Conv2d(channels, channels, 1, groups=channels)
        self.below = nn.Conv2d(channels, channels, 1, groups=channels)
        slopes = prelu.weight.detach()[:, None, None, None]
        with torch.no_grad():
            self.above.weight.copy_(1 - slopes)
            self.below.weight.copy_(slopes)
            for conv in (self.above, self.below):
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.above(torch.relu(x)) + self.below(x)
        return total


def float_form(net: IspNet) -> IspNet:
    """`net` as deployed and as float files hold it; `net` itself where nothing has to change."""
    return cast("IspNet", ending_in_convolution(folded(written_out(net.deploy()).eval())))


def folded(net: IspNet) -> IspNet:
    """A copy in which a batch norm that alone reads a convolution is part of it; `net` where there is none."""
    graph_module = trace_body(net)
    modules = dict(graph_module.named_modules())
    calls = [str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"]
    found = []
    for node in graph_module.graph.nodes:
        before = node.args[0] if node.args else None
        if kind_of(node, modules) is not nn.BatchNorm2d or not isinstance(before, fx.Node):
            continue
        alone = len(before.users) == 1 and calls.count(str(before.target)) == calls.count(str(node.target)) == 1
        if kind_of(before, modules) is nn.Conv2d and alone and modules[str(node.target)].track_running_stats:
            found.append([str(n.target).removeprefix("net.") for n in (before, node)])
    if not found:
        return net
    twin = copy.deepcopy(net)
    for conv, norm in found:
        layers = twin.get_submodule(conv), twin.get_submodule(norm)
        twin.set_submodule(conv, fuse_conv_bn_eval(*layers))  # type: ignore[type-var, arg-type]
        twin.set_submodule(norm, nn.Identity())
    return twin.eval()


def integer_form(net: IspNet) -> IspNet:
    """A copy of a `float_form` that can be quantised, or it itself where nothing has to change."""
    found = {name: module for name, module in net.named_modules() if isinstance(module, nn.PReLU)}
    if not found:
        return net
    twin = copy.deepcopy(net)
    for name, prelu in found.items():
        if prelu.num_parameters == 1:
            twin.set_submodule(name, nn.LeakyReLU(float(prelu.weight.detach())))
        else:
            twin.set_submodule(name, SlopedRelu(prelu))
    return twin.eval()
