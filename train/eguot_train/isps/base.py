"""What every ISP network is to the rest of the project.

Input: packed planes R, Gr, Gb, B as the SDK's ingest makes them, float [B, 4, h, w], companded, in [0, 1].
Output: sRGB, float [B, 3, 2h, 2w], not clipped. Everything up to the last depth-to-space is `body`, which is
what gets converted; the shuffle itself is appended by the converter as one DEPTH_TO_SPACE.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class IspNet(nn.Module):
    """Base class: set the attributes, implement `body`."""

    name: str
    """Name on the command line and in the spec."""
    shuffle: int
    """Depth-to-space block of the tail: 2 for a body at packed resolution, 4 for one at half of it."""
    halo: int
    """Receptive-field margin in packed pixels, a multiple of `multiple`."""
    multiple: int
    """Height and width of the input must be multiples of this."""
    global_context: bool = False
    """True where one output pixel depends on the whole frame."""
    mobile_safe: bool = True
    """True where every op stays on the fast path of the mobile runtimes."""

    def body(self, planes: Tensor) -> Tensor:
        """[B, 4, h, w] -> [B, 3 * shuffle**2, 2h / shuffle, 2w / shuffle], channel order of `pixel_shuffle`."""
        raise NotImplementedError

    def forward(self, planes: Tensor) -> Tensor:
        """[B, 4, h, w] companded planes -> [B, 3, 2h, 2w] sRGB, not clipped."""
        return F.pixel_shuffle(self.body(planes), self.shuffle)

    def parameter_count(self) -> int:
        """Number of weights and biases."""
        return sum(p.numel() for p in self.parameters())


def macs_per_pixel(net: IspNet, side: int = 128) -> float:
    """Multiply-adds per output pixel, counted over the convolutions and linear layers of one forward pass."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += module.weight.numel() * (output.numel() // module.out_features)
        elif isinstance(module, nn.Conv2d):
            total += module.weight.numel() * output.shape[2] * output.shape[3]
        elif isinstance(module, nn.ConvTranspose2d):
            total += module.weight.numel() * inputs[0].shape[2] * inputs[0].shape[3]

    handles = [m.register_forward_hook(count) for m in net.modules()]
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, 4, side, side))
    finally:
        for handle in handles:
            handle.remove()
    return total / (4 * side * side)
