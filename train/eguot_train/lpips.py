"""LPIPS v0.1 with AlexNet (Zhang et al. 2018), where its weights lie on this machine. Nothing is ever downloaded.

Two files of published weights: torchvision's AlexNet, and the linear layers on top, which the packages `lpips` and
`torchmetrics` bring along. Both are read without running what is in them. torch is imported when a picture is compared.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eguot_sdk.errors import MissingDependency, UsageError

BACKBONE = "alexnet-owt-7be5be79.pth"
LINEAR = "alex.pth"
IN_PACKAGES = (("lpips", "weights/v0.1"), ("torchmetrics", "functional/image/lpips_models"))
MAX_BYTES = 1 << 29
LEAST_SIDE = 64
"""Pixels; of smaller pictures the last layers see hardly anything."""
LAYERS = ((0, 3, 64, 11, 4, 2), (3, 64, 192, 5, 1, 2), (6, 192, 384, 3, 1, 1), (8, 384, 256, 3, 1, 1),
          (10, 256, 256, 3, 1, 1))  # fmt: skip
"""Of AlexNet's convolutions: number in `features`, channels in and out, kernel, stride, padding."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""The mean and deviation of ImageNet for pictures in [-1, 1]."""


@dataclass(frozen=True, slots=True)
class Lpips:
    """Distance of two pictures; opens the weights when first used, once a process."""

    backbone: Path
    linear: Path

    @classmethod
    def find(cls, folder: Path | None = None) -> Lpips | None:
        """From a folder that holds both files (UsageError where one is missing), else from where other programs keep
        them: torch's cache, and installed packages. None where they are not.
        """
        if folder is not None:
            for name in (BACKBONE, LINEAR):
                if not (folder / name).is_file():
                    raise UsageError(f"{folder}: LPIPS needs {BACKBONE} (of torchvision) and {LINEAR} (of lpips) there")
            return cls(folder / BACKBONE, folder / LINEAR)
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "torch"
        backbone = Path(os.environ.get("TORCH_HOME") or cache) / "hub" / "checkpoints" / BACKBONE
        linear = next((path for path in _in_packages() if path.is_file()), None)
        if linear is None or not backbone.is_file() or find_spec("torch") is None:
            return None
        return cls(backbone, linear)

    def __call__(self, picture: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float | None:
        """LPIPS of two uint8 sRGB pictures [H, W, 3] of one size; None below 64 pixels. Raises UsageError."""
        if min(picture.shape[:2]) < LEAST_SIDE:
            return None
        return _distance(_weights(self.backbone, self.linear), picture, truth)


def _in_packages() -> list[Path]:
    found = []
    for package, folder in IN_PACKAGES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            found.append(Path(spec.origin).parent / folder / LINEAR)
    return found


@lru_cache(maxsize=1)
def _weights(backbone: Path, linear: Path) -> list[tuple[Any, Any, Any]]:
    """Weight and bias of each convolution, and the weights of its channels, as tensors."""
    features, channels = _read(backbone), _read(linear)
    layers = []
    for i, (number, wide, narrow, kernel, _, _) in enumerate(LAYERS):
        try:
            weight, bias = features[f"features.{number}.weight"], features[f"features.{number}.bias"]
            share = channels[f"lin{i}.model.1.weight"]
        except KeyError as error:
            raise UsageError(f"{backbone} and {linear}: no LPIPS weights, {error} is missing") from error
        shapes = [tuple(getattr(t, "shape", ())) for t in (weight, bias, share)]
        if shapes != [(narrow, wide, kernel, kernel), (narrow,), (1, narrow, 1, 1)]:
            raise UsageError(f"{backbone} and {linear}: layer {i} of LPIPS has the shapes {shapes}")
        layers.append((weight.float(), bias.float(), share.float()))
    return layers


def _read(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("torch", needed_for="LPIPS", pip="'eguot-sdk[train]'") from error
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: more than {MAX_BYTES >> 20} MiB")
        read = torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # a damaged file raises nearly anything out of torch's reader
        raise UsageError(f"{path}: not a file of weights ({' '.join(str(error).split()):.100})") from error
    if not isinstance(read, dict):
        raise UsageError(f"{path}: not a file of weights, it holds no names")
    return read


def _distance(layers: list[tuple[Any, Any, Any]], picture: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    import torch
    from torch.nn import functional as F

    with torch.inference_mode():
        both = torch.from_numpy(np.stack([picture, truth])).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = (both - torch.tensor(SHIFT)[:, None, None]) / torch.tensor(SCALE)[:, None, None]
        total = 0.0
        for (number, _, _, _, stride, padding), (weight, bias, share) in zip(LAYERS, layers, strict=True):
            if number in (3, 6):
                x = F.max_pool2d(x, 3, 2)
            x = torch.relu(F.conv2d(x, weight, bias, stride, padding))
            unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
            gap = (unit[:1] - unit[1:]).square()
            total += float(F.conv2d(gap, share).mean())
    return total
