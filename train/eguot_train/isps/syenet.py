"""SYENet: products of two convolutional paths; 108,715 parameters in training, 5,640 when deployed.

METHOD.md 4.7: quadratic units 0.1 * f(x) * g(x) + b, twice, a gate from the frame's mean, shuffle, 3x3 convolution on
three channels. In training each spatial convolution is ten branches (5x5, 1x1, 3x3, 3x1, 1x3, each with and without
batch norm), or eight where it is 3x3 itself; `deploy` merges them into one. How branches join and how wide they are is
not described. Chosen so that the count comes out: concatenated and joined by a 1x1 convolution, 56 channels each (9 in
the last one), without bias where batch norm follows; 1x1 convolutions are left as they are; PReLU and b per channel.
Chosen without a trace in the count: b starts at 0.5. The loss is not described, so the default stands in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import IspNet, Recipe
from .packed import full_resolution_conv

WIDTH = 12
BRANCH_WIDTH = 56
TAIL_BRANCH_WIDTH = 9

Maker = Callable[[int, int, int], nn.Module]


class SyeNet(IspNet):
    """`deployed`: one convolution in the place of each set of branches."""

    name = "syenet"
    halo = 0
    global_context = True
    mobile_safe = False  # PReLU
    recipe = Recipe(lr=5e-4, batch=32, betas=(0.9, 0.999))

    def __init__(self, *, deployed: bool = False) -> None:
        super().__init__()
        conv: Maker = _plain if deployed else _branched
        self.deployed = deployed
        self.shuffle = 2 if deployed else 1
        self.head = Quadratic(
            nn.Sequential(conv(4, WIDTH, 5), nn.PReLU(WIDTH), conv(WIDTH, WIDTH, 3)), conv(4, WIDTH, 5)
        )
        self.middle = Quadratic(conv(WIDTH, WIDTH, 3), nn.Conv2d(WIDTH, WIDTH, 1))
        if deployed:  # of four axes, or converters turn the maps to the layout of the bias and back
            for quadratic in (self.head, self.middle):
                quadratic.bias = nn.Parameter(quadratic.bias.detach()[None])
                quadratic.scaled = True
        self.gate = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 1), nn.PReLU(WIDTH), nn.Conv2d(WIDTH, WIDTH, 1), nn.Sigmoid()
        )  # fmt: skip
        self.tail = full_resolution_conv(3, 3) if deployed else RepConv(3, 3, 3, TAIL_BRANCH_WIDTH)

    def body(self, planes: Tensor) -> Tensor:
        features = self.middle(self.head(planes))
        features = features * self.gate(features.mean((2, 3), keepdim=True))
        return self.tail(features if self.deployed else F.pixel_shuffle(features, 2))

    def deploy(self) -> SyeNet:
        if self.deployed:
            return self
        kept = self.state_dict()
        for path, module in self.named_modules():
            if isinstance(module, RepConv):
                kept = {key: value for key, value in kept.items() if not key.startswith(f"{path}.")}
                layer = "tail.layer" if path == "tail" else path
                kept[f"{layer}.weight"], kept[f"{layer}.bias"] = module.merged()
        for key in ("head.bias", "middle.bias"):
            kept[key] = kept[key][None]
        for key in ("head.f.2.weight", "head.f.2.bias", "middle.f.weight", "middle.f.bias"):
            kept[key] = 0.1 * kept[key]
        with torch.device(kept["head.bias"].device):
            twin = SyeNet(deployed=True)
        twin.load_state_dict(kept)
        return twin.train(self.training)


class Quadratic(nn.Module):
    """0.1 * f(x) * g(x) + b. `scaled`: f has the 0.1 in its weights."""

    scaled = False

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g
        self.bias = nn.Parameter(torch.full((WIDTH, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        product = self.f(x) * self.g(x) if self.scaled else 0.1 * self.f(x) * self.g(x)
        return product + self.bias


class RepConv(nn.Module):
    """Parallel convolutions of several shapes, half of them with batch norm, joined by a 1x1 convolution."""

    def __init__(self, channels: int, out: int, kernel: int, width: int) -> None:
        super().__init__()
        self.kernel = kernel
        shapes = [(kernel, kernel), (1, 1), *([(3, 3)] if kernel > 3 else []), (3, 1), (1, 3)]
        self.plain = nn.ModuleList(_same(channels, width, shape, bias=True) for shape in shapes)
        self.normed = nn.ModuleList(_same(channels, width, shape, bias=False) for shape in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in shapes)
        self.join = nn.Conv2d(2 * len(shapes) * width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [conv(x) for conv in self.plain]
        branches += [norm(conv(x)) for conv, norm in zip(self.normed, self.norms, strict=True)]
        return self.join(torch.cat(branches, 1))

    @torch.no_grad()
    def merged(self) -> tuple[Tensor, Tensor]:
        """Weight [out, in, k, k] and bias [out] of the one convolution that equals this in eval mode."""
        parts: list[tuple[Tensor, Tensor]] = []
        for conv in self.plain:
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            parts.append((conv.weight.double(), conv.bias.double()))
        for conv, norm in zip(self.normed, self.norms, strict=True):
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            bias = norm.bias.double() - norm.running_mean.double() * gain
            parts.append((conv.weight.double() * gain[:, None, None, None], bias))
        weights = torch.cat([_padded(weight, self.kernel) for weight, _ in parts])
        biases = torch.cat([bias for _, bias in parts])
        assert self.join.bias is not None
        join = self.join.weight[:, :, 0, 0].double()
        weight = torch.einsum("om,micd->oicd", join, weights)
        return weight.float(), (join @ biases + self.join.bias.double()).float()


def _plain(channels: int, out: int, kernel: int) -> nn.Module:
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2)


def _branched(channels: int, out: int, kernel: int) -> nn.Module:
    return RepConv(channels, out, kernel, BRANCH_WIDTH)


def _same(channels: int, out: int, shape: tuple[int, int], *, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(channels, out, shape, padding=(shape[0] // 2, shape[1] // 2), bias=bias)


def _padded(weight: Tensor, kernel: int) -> Tensor:
    """The kernel with zeros around it, up to kernel x kernel."""
    rows, cols = (kernel - weight.shape[2]) // 2, (kernel - weight.shape[3]) // 2
    return F.pad(weight, (cols, cols, rows, rows))
