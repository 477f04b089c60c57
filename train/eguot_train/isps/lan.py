"""LAN, 46,847 parameters: strided learned packing of the mosaic and two double-attention modules.

After METHOD.md 4.1. Left open there and chosen here: leaky
ReLU 0.2 after every convolution that is not named linear or followed by an attention. The first and the last
convolution look at the mosaic and at full resolution; both are computed at packed resolution. Channel attention pools
the whole frame. Of the loss the LPIPS term is left out (its weights cannot be had), the other three are as described.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cost import low_pass, luma
from ..losses import ms_ssim
from .base import IspNet, Recipe
from .packed import full_resolution_conv, mosaic_conv
from .punet import squashed

WIDTH = 16
SLOPE = 0.2
TO_UV = ((-0.14713, -0.28886, 0.436), (0.615, -0.51499, -0.10001))
"""Rows U and V of BT.601 from R, G, B."""


class Lan(IspNet):
    """Attention by pictures and by places at a quarter of the sensor's resolution per axis."""

    name = "lan"
    halo = 0
    multiple = 2
    global_context = True
    mobile_safe = False  # tanh, dilated depthwise convolution
    recipe = Recipe(optimizer="radam", lr=5e-5, batch=32, betas=(0.9, 0.999))

    def __init__(self) -> None:
        super().__init__()
        self.pack = mosaic_conv(WIDTH)
        self.down = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.context = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.attention = nn.Sequential(DoubleAttention(), DoubleAttention())
        self.merge = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.up = nn.ConvTranspose2d(WIDTH, WIDTH, 3, stride=2, padding=1, output_padding=1)
        self.join = nn.Conv2d(2 * WIDTH, 16, 3, padding=1)
        self.tail = full_resolution_conv(4, 3)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.trunc_normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.constant_(module.bias, 0.01)

    def body(self, planes: Tensor) -> Tensor:
        packed = F.leaky_relu(self.pack(planes), SLOPE)
        context = F.leaky_relu(self.context(F.leaky_relu(self.down(packed), SLOPE)), SLOPE)
        features = self.merge(self.attention(context)) + context
        features = self.join(torch.cat([self.up(features), packed], 1))
        return squashed(F.leaky_relu(self.tail(F.leaky_relu(features, SLOPE)), SLOPE))

    def original_loss(self, rendered: Tensor, truth: Tensor) -> Tensor:
        """[B] 300 Huber + 100 L1 of blurred UV + 30 (1 - MS-SSIM of the luma); LPIPS is left out."""
        huber = F.huber_loss(rendered, truth, reduction="none").mean((1, 2, 3))
        to_uv = rendered.new_tensor(TO_UV)
        chroma = torch.einsum("uc,bchw->buhw", to_uv, low_pass(rendered - truth)).abs().mean((1, 2, 3))
        return 300 * huber + 100 * chroma + 30 * (1 - ms_ssim(luma(rendered), luma(truth)))


class DoubleAttention(nn.Module):
    """Weights per channel from the frame's mean and weights per place from a 5x5 window, side by side; residual."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(WIDTH, 32, 3, padding=1), nn.LeakyReLU(SLOPE), nn.Conv2d(32, 32, 1)
        )  # fmt: skip
        self.channels = nn.Sequential(nn.Conv2d(32, 8, 1), nn.LeakyReLU(SLOPE), nn.Conv2d(8, 32, 1))
        self.places = nn.Conv2d(32, 32, 5, padding=4, dilation=2, groups=32, bias=False)
        self.merge = nn.Conv2d(64, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        by_channel = features * squashed(self.channels(features.mean((2, 3), keepdim=True)))
        by_place = features * squashed(self.places(features))
        return x + self.merge(torch.cat([by_channel, by_place], 1))
