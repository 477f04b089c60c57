"""The ISP architectures by their command-line names."""

from __future__ import annotations

from collections.abc import Callable

from .base import IspNet
from .qisp import Qisp

ISPS: dict[str, Callable[[], IspNet]] = {
    "qisp-s": lambda: Qisp("s"),
    "qisp-m": lambda: Qisp("m"),
    "qisp-l": lambda: Qisp("l"),
}

__all__ = ["ISPS", "IspNet"]
