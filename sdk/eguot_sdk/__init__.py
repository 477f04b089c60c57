"""Run a camera ISP: raw Bayer in, sRGB out.

    from eguot_sdk import ISP, write_image
    rgb = ISP.load("look.w8a8.tflite").process("IMG.dng")    # uint8 [H, W, 3], sRGB, upright
    write_image("IMG.jpg", rgb)

Names are loaded when first used, so importing the package loads no runtime and no raw reader.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import EguotError
    from .isp import ISP
    from .output import write_image
    from .raw import Overrides, RawFrame, read_raw
    from .spec import IspSpec

__all__ = ["ISP", "EguotError", "IspSpec", "Overrides", "RawFrame", "read_raw", "write_image"]

_HOME = {
    "ISP": "isp",
    "EguotError": "errors",
    "IspSpec": "spec",
    "Overrides": "raw",
    "RawFrame": "raw",
    "read_raw": "raw",
    "write_image": "output",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("eguot-sdk")
        except metadata.PackageNotFoundError:
            return "unknown (run from a source tree that is not installed)"
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
