"""Layers described at output resolution, computed at packed resolution: same numbers, no shuffle inside the graph.

A 3x3 convolution after a depth-to-space, a strided one on the mosaic and a stride-2 transposed one are each a 3x3
convolution between packed maps whose weights are those of the layer, put in other places, and zeros elsewhere. Maps of
C channels at output resolution are [B, 4 C, h, w] here, in channel order of `pixel_shuffle`. `written_out` turns these
layers into plain convolutions, the form that converters take, and every other transposed convolution into one and a
shuffle.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

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


@fx.wrap
def shuffled(maps: Tensor, block: int) -> Tensor:
    """`pixel_shuffle` under a name of its own: one that every format holds, for its convolution stands before it."""
    return F.pixel_shuffle(maps, block)


@fx.wrap
def grown(maps: Tensor, margins: tuple[int, int, int, int]) -> Tensor:
    """Zeros around maps: `margins` columns left and right, rows above and below."""
    return F.pad(maps, margins)


class ShuffledConv2d(nn.Module):
    """A transposed convolution of stride s as a plain one to s * s times the channels, and a shuffle: same numbers.

    Phase a of a row sums the places a + padding, less multiples of s, of the kernel. Converters write the size of what
    a transposed convolution makes into the file; this form takes any, and has integer kernels in every runtime.
    """

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        """`layer`: one that `fits`."""
        super().__init__()
        self.block = layer.stride[0]
        rows, columns = (_taps(k, self.block, p) for k, p in zip(layer.kernel_size, layer.padding, strict=True))  # type: ignore[arg-type]
        spans = [[offset for taps in axis for offset in taps] for axis in (rows, columns)]
        (top, bottom), (left, right) = ((max(0, -min(span)), max(0, *span)) for span in spans)
        even = top == bottom == left == right
        self.margins = (0, 0, 0, 0) if even else (left, right, top, bottom)
        bias = layer.bias
        self.conv = nn.Conv2d(
            layer.in_channels, layer.out_channels * self.block**2, (top + bottom + 1, left + right + 1),
            padding=top if even else 0, groups=layer.groups, bias=bias is not None, device=layer.weight.device,
        )  # fmt: skip
        kernel = layer.weight.detach().unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
        with torch.no_grad():
            phases = self.conv.weight.zero_().unflatten(0, (-1, self.block, self.block))
            for a, down in enumerate(rows):
                for b, across in enumerate(columns):
                    for y, row in down.items():
                        for x, column in across.items():
                            phases[:, a, b, :, top + y, left + x] = kernel[:, :, row, column]
            if bias is not None and self.conv.bias is not None:
                self.conv.bias.copy_(bias.repeat_interleave(self.block**2))

    @staticmethod
    def fits(layer: nn.ConvTranspose2d) -> bool:
        """Whether it is torch's own layer and makes its input exactly `stride` times as large, alike along both axes.

        Not one with hooks or a `forward` of its own: they would be lost.
        """
        kind = type(layer).__bases__[0] if is_parametrized(layer) else type(layer)
        if kind is not nn.ConvTranspose2d or layer._forward_hooks or layer._forward_pre_hooks:
            return False
        sizes = zip(layer.kernel_size, layer.padding, layer.output_padding, layer.stride, strict=True)
        exact = all(k - 2 * p + more == s for k, p, more, s in sizes)  # type: ignore[operator]
        return exact and layer.stride[0] == layer.stride[1] and layer.dilation == (1, 1)

    def forward(self, input: Tensor, output_size: object = None) -> Tensor:
        """`output_size`, which U-Nets like to give, can only be that of the skip: see `fits`."""
        return shuffled(self.conv(grown(input, self.margins) if any(self.margins) else input), self.block)


def _taps(kernel: int, stride: int, padding: int) -> list[dict[int, int]]:
    """Per phase along one axis: offset in input pixels -> place in the kernel."""
    offsets = [{(phase + padding - place) / stride: place for place in range(kernel)} for phase in range(stride)]
    return [{int(offset): place for offset, place in found.items() if offset.is_integer()} for found in offsets]


def written_out(net: Net) -> Net:
    """The network in the form that converters take: a copy, or itself where nothing needs to change.

    Plain convolutions stand for all PackedConv2d, and ShuffledConv2d for the transposed ones that fit one. They hold
    zeros too, so the copy has more parameters; its numbers are the same.
    """
    inside = {part for whole in net.modules() if isinstance(whole, PackedConv2d) for part in whole.children()}
    changes = {module: _plain(module) for module in net.modules() if module not in inside}
    if not any(changes.values()):
        return net
    twin = copy.deepcopy(net)
    for path, module in net.named_modules(remove_duplicate=False):  # a layer may go by two names
        if (plain := changes.get(module)) is not None:
            twin.set_submodule(path, plain)
    return twin


def _plain(module: nn.Module) -> nn.Module | None:
    """What stands for a module in the written-out network; None: itself."""
    if isinstance(module, PackedConv2d):
        return module.written_out()
    if isinstance(module, nn.ConvTranspose2d) and ShuffledConv2d.fits(module):
        return ShuffledConv2d(module)
    return None


_PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))


def _places(layer: Layer) -> Tensor:
    return torch.arange(layer.weight.numel()).reshape(layer.weight.shape)
