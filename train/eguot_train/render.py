"""Whole frames through a torch network, the way the SDK runs an ISP file: reflected halo, cropped back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eguot_sdk.ingest import Ingest
from eguot_sdk.raw import RawFrame
from eguot_sdk.spec import ColorInput

from .data.crops import float_spec
from .isps import IspNet
from .reference import Alignment, Reference


def frame_planes(
    frame: RawFrame, color_input: ColorInput, margin: int, multiple: int
) -> tuple[Tensor, tuple[int, int]]:
    """Ingested frame [1, 4, h, w] with `margin` reflected packed pixels around it, sides rounded up to `multiple`.

    Also the row and column of the frame's first pixel in output pixels.
    """
    ingest = Ingest(frame, float_spec(color_input))
    height = -(-(ingest.height + 2 * margin) // multiple) * multiple
    width = -(-(ingest.width + 2 * margin) // multiple) * multiple
    planes = np.empty((height, width, 4), np.float32)
    ingest.fill(planes, -margin, -margin)
    origin = (2 * margin + ingest.crop[0], 2 * margin + ingest.crop[1])
    return torch.from_numpy(planes).permute(2, 0, 1)[None].contiguous(), origin


def render_frame(net: IspNet, frame: RawFrame, color_input: ColorInput) -> NDArray[np.uint8]:
    """sRGB uint8 [H, W, 3] of a frame, as the sensor lies (not turned upright)."""
    planes, (y, x) = frame_planes(frame, color_input, net.halo, net.multiple)
    with torch.no_grad():
        rgb = net(planes.to(next(net.parameters()).device))[0, :, y : y + frame.height, x : x + frame.width]
    return to_uint8(rgb)


def reference_render(alignment: Alignment, color_input: ColorInput = "srgb") -> Callable[[RawFrame], NDArray[np.uint8]]:
    """The reference rendering R(x) with an alignment, as a rendering of frames."""
    reference = Reference(alignment)

    def render(frame: RawFrame) -> NDArray[np.uint8]:
        planes, (y, x) = frame_planes(frame, color_input, 2, 1)
        return to_uint8(reference(planes)[0, :, y : y + frame.height, x : x + frame.width])

    return render


def to_uint8(rgb: Tensor) -> NDArray[np.uint8]:
    """[3, H, W] in [0, 1] -> uint8 [H, W, 3], clipped and rounded."""
    return (rgb.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
