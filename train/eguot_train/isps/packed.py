"""Layers described at output resolution, computed at packed resolution: same numbers, no shuffle inside the graph.

A 3x3 convolution after a depth-to-space, a strided one on the mosaic and a stride-2 transposed one are each a 3x3
convolution between packed maps whose weights are those of the layer, put in other places, and zeros elsewhere. Maps of
C channels at output resolution are [B, 4 C, h, w] here, in channel order of `pixel_shuffle`. `written_out` turns these
layers into plain convolutions, the form that converters take.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Net = TypeVar("Net", bound=nn.Module)
Layer = nn.Conv2d | nn.ConvTranspose2d


class PackedConv2d(nn.Module):
    """`layer` as a 3x3 convolution between packed maps. Its parameters are the layer's; see the makers below."""

    index: Tensor

    def __init__(self, layer: Layer, index: Tensor) -> None:
        """`index`: int64 [out, in, 3, 3], place in the layer's flattened weight, or -1 for zero."""
        super().__init__()
        self.layer = layer
        self.repeats = index.shape[0] // layer.out_channels
        self.register_buffer("index", torch.where(index < 0, layer.weight.numel(), index), persistent=False)

    @property
    def weight(self) -> Tensor:
        """[out, in, 3, 3] between packed maps."""
        flat = self.layer.weight.flatten()
        return torch.cat([flat, flat.new_zeros(1)])[self.index]

    @property
    def bias(self) -> Tensor | None:
        """[out], one value for all phases of a channel."""
        bias = self.layer.bias
        return None if bias is None else bias.repeat_interleave(self.repeats)

    def forward(self, maps: Tensor) -> Tensor:
        return F.conv2d(maps, self.weight, self.bias, padding=1)

    def written_out(self) -> nn.Conv2d:
        """The same numbers as one plain convolution."""
        weight, bias = self.weight.detach(), self.bias
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=bias is not None)
        conv.to(weight.device)
        with torch.no_grad():
            conv.weight.copy_(weight)
            if bias is not None and conv.bias is not None:
                conv.bias.copy_(bias)
        return conv


def full_resolution_conv(channels: int, out: int) -> PackedConv2d:
    """nn.Conv2d(channels, out, 3, padding=1) at output resolution: [B, 4 channels, h, w] -> [B, 4 out, h, w]."""
    layer = nn.Conv2d(channels, out, 3, padding=1)
    places = _places(layer)  # [out, channels, 3, 3]
    index = torch.full((out, 4, channels, 4, 3, 3), -1)
    for a, b in _PHASES:
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                (y, from_a), (x, from_b) = divmod(a + dy, 2), divmod(b + dx, 2)
                index[:, 2 * a + b, :, 2 * from_a + from_b, 1 + y, 1 + x] = places[:, :, 1 + dy, 1 + dx]
    return PackedConv2d(layer, index.reshape(4 * out, 4 * channels, 3, 3))


def mosaic_conv(out: int) -> PackedConv2d:
    """nn.Conv2d(1, out, 4, stride=2, padding=1) on the mosaic: planes [B, 4, h, w] -> [B, out, h, w]."""
    layer = nn.Conv2d(1, out, 4, stride=2, padding=1)
    places = _places(layer)  # [out, 1, 4, 4]
    index = torch.full((out, 4, 3, 3), -1)
    for row in range(4):
        for col in range(4):
            (y, a), (x, b) = divmod(row - 1, 2), divmod(col - 1, 2)
            index[:, 2 * a + b, 1 + y, 1 + x] = places[:, 0, row, col]
    return PackedConv2d(layer, index)


def doubling_conv(channels: int, out: int) -> PackedConv2d:
    """3x3 stride-2 transposed convolution without bias to output resolution: [B, channels, h, w] -> [B, 4 out, h, w].

    The layer is nn.ConvTranspose2d(channels, out, 3, stride=2, padding=1, output_padding=1, bias=False).
    """
    layer = nn.ConvTranspose2d(channels, out, 3, stride=2, padding=1, output_padding=1, bias=False)
    places = _places(layer)  # [channels, out, 3, 3]
    index = torch.full((out, 4, channels, 3, 3), -1)
    taps = ({0: 1}, {0: 2, 1: 0})  # phase -> offset in packed pixels -> row or column of the kernel
    for a, b in _PHASES:
        for y, row in taps[a].items():
            for x, col in taps[b].items():
                index[:, 2 * a + b, :, 1 + y, 1 + x] = places[:, :, row, col].T
    return PackedConv2d(layer, index.reshape(4 * out, channels, 3, 3))


def written_out(net: Net) -> Net:
    """The network in the form that converters take: a copy, or itself where nothing needs to change.

    Plain convolutions stand for all PackedConv2d; transposed convolutions with output padding, which converters refuse,
    get an even kernel instead. Both hold zeros too, so the copy has more parameters; its numbers are the same.
    """
    inside = {part for whole in net.modules() if isinstance(whole, PackedConv2d) for part in whole.children()}
    changes = {path: _plain(module) for path, module in net.named_modules() if module not in inside}
    if not any(changes.values()):
        return net
    twin = copy.deepcopy(net)
    for path, module in changes.items():
        if module is not None:
            twin.set_submodule(path, module)
    return twin


def _plain(module: nn.Module) -> nn.Module | None:
    """What stands for a module in the written-out network; None: itself."""
    if isinstance(module, PackedConv2d):
        return module.written_out()
    if isinstance(module, nn.ConvTranspose2d) and (module.output_padding, module.padding) == ((1, 1), (1, 1)):
        return _even_kernel(module)
    return None


def _even_kernel(layer: nn.ConvTranspose2d) -> nn.ConvTranspose2d:
    """The layer without output padding: one more row and column of zeros in the kernel gives the same size."""
    weight, bias = layer.weight.detach(), layer.bias
    (rows, columns), (down, right) = weight.shape[2:], layer.stride
    twin = nn.ConvTranspose2d(
        layer.in_channels, layer.out_channels, (rows + 1, columns + 1), stride=(down, right), padding=1,
        groups=layer.groups, bias=bias is not None, device=weight.device,
    )  # fmt: skip
    with torch.no_grad():
        twin.weight.copy_(F.pad(weight, (0, 1, 0, 1)))
        if bias is not None and twin.bias is not None:
            twin.bias.copy_(bias)
    return twin


_PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))


def _places(layer: Layer) -> Tensor:
    return torch.arange(layer.weight.numel()).reshape(layer.weight.shape)
