"""What every ISP network is to the rest of the project, and how a class of your own becomes one.

Input: packed planes R, Gr, Gb, B as the SDK's ingest makes them, float [B, 4, h, w], companded, in [0, 1].
Output: sRGB, float [B, 3, 2h, 2w], not clipped. Everything up to the last depth-to-space is `body`, which is
what gets converted; the shuffle itself is appended by the converter as one DEPTH_TO_SPACE. A network that must work
at output resolution to its end has `shuffle` 1: its body is the whole network and no shuffle follows.

Contract of `--isp package.module:Class`: a subclass of IspNet that is built without arguments, sets `name` and
`halo` (and what else differs from the defaults below) and implements `body`. `checked` tests it.
Architectures whose originals took linear raw or a mosaic get the same companded planes here, so that all compare.
"""

from __future__ import annotations

import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eguot_sdk.errors import UsageError

from ..losses import supervised_loss
from .packed import PackedConv2d


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an architecture was trained by its authors; supervised runs use it (see `recipes.for_machine`)."""

    optimizer: Literal["adam", "radam"] = "adam"
    lr: float = 1e-3
    batch: int = 32
    betas: tuple[float, float] = (0.5, 0.99)


class IspNet(nn.Module):
    """Base class: set the attributes, implement `body`."""

    name: str
    """Name on the command line and in the spec."""
    shuffle: int = 2
    """Depth-to-space block of the tail: 2 for a body at packed resolution, 4 for one at half of it, 1 for none."""
    halo: int
    """Receptive-field margin in packed pixels, a multiple of `multiple`; 0 with `global_context`, which runs whole."""
    multiple: int = 1
    """Height and width of the input must be multiples of this."""
    global_context: bool = False
    """True where one output pixel depends on the whole frame."""
    mobile_safe: bool = True
    """True where every op stays on the fast path of the mobile runtimes."""
    recipe: Recipe = Recipe()

    def body(self, planes: Tensor) -> Tensor:
        """[B, 4, h, w] -> [B, 3 * shuffle**2, 2h / shuffle, 2w / shuffle], channel order of `pixel_shuffle`."""
        raise NotImplementedError

    def forward(self, planes: Tensor) -> Tensor:
        """[B, 4, h, w] companded planes -> [B, 3, 2h, 2w] sRGB, not clipped."""
        return F.pixel_shuffle(self.body(planes), self.shuffle)

    def original_loss(self, rendered: Tensor, truth: Tensor) -> Tensor:
        """[B] loss the architecture was published with, both [B, 3, H, W]; L1 + 0.15 (1 - SSIM) where none is known."""
        return supervised_loss(rendered, truth)

    def deploy(self) -> IspNet:
        """The network that runs: equal output in eval mode, without what only training needs. Self where nothing is."""
        return self

    def parameter_count(self) -> int:
        """Number of weights and biases."""
        return sum(p.numel() for p in self.parameters())


def mosaic(planes: Tensor) -> Tensor:
    """[B, 4, h, w] packed planes -> [B, 1, 2h, 2w], for networks that look at the mosaic itself."""
    return F.pixel_shuffle(planes, 2)


def checked(net: object, source: str) -> IspNet:
    """The network, if it keeps the contract on two sizes. Raises UsageError saying what it broke; `source` names it."""
    if not isinstance(net, IspNet):
        raise UsageError(f"{source} must be a subclass of eguot_train.isps.IspNet, it builds a {type(net).__name__}")
    for key in ("name", "halo"):
        if not hasattr(net, key):
            raise UsageError(f"{source}: give the class a `{key}`, as the contract in eguot_train.isps.base says")
    if net.multiple < 1 or net.halo < 0 or net.halo % net.multiple:
        raise UsageError(f"{source}: halo must be a multiple of `multiple`, got {net.halo} and {net.multiple}")
    for sides in ((48, 64), (96, 48)):
        height, width = (-(-side // net.multiple) * net.multiple for side in sides)
        try:
            with torch.no_grad():
                shape = tuple(net.eval()(torch.zeros(1, 4, height, width)).shape)
        except Exception as error:  # it is somebody's code
            raise UsageError(f"{source}: planes [1, 4, {height}, {width}] stop it ({fault(error)})") from error
        if shape != (1, 3, 2 * height, 2 * width):
            wanted = f"[1, 3, {2 * height}, {2 * width}]"
            raise UsageError(f"{source}: planes [1, 4, {height}, {width}] must give {wanted}, it gave {list(shape)}")
    return net.train()


def fault(error: Exception) -> str:
    """What went wrong in somebody's code, and where it was raised, in one line."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    others = [str(Path(__file__).parents[1]), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("<", *others))]
    where = f", {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {reason}{where}"


def macs_per_pixel(net: IspNet, side: int = 128) -> float:
    """Multiply-adds per output pixel, counted over the convolutions and linear layers of one forward pass."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        module = getattr(module, "computes_as", module)
        if isinstance(module, nn.Linear):
            total += module.weight.numel() * (output.numel() // module.out_features)
        elif isinstance(module, nn.Conv2d | PackedConv2d):
            total += module.weight.numel() * output.shape[2] * output.shape[3]
        elif isinstance(module, nn.ConvTranspose2d):
            total += module.weight.numel() * inputs[0].shape[2] * inputs[0].shape[3]

    handles = [m.register_forward_hook(count) for m in net.modules()]
    device = next((p.device for p in net.parameters()), None)
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, 4, side, side, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return total / (4 * side * side)
