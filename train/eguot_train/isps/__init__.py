"""The ISP architectures by their command-line names."""

from __future__ import annotations

from collections.abc import Callable

from .awnet import AwNet
from .base import IspNet, Recipe
from .efficientisp import EfficientIsp
from .lan import Lan
from .liteispnet import LiteIspNet
from .microisp import MicroIsp
from .punet import Punet
from .pynet import PyNet
from .qisp import Qisp
from .robustisp import RobustIsp
from .syenet import SyeNet
from .unet32 import UNet32

ISPS: dict[str, Callable[[], IspNet]] = {
    "qisp-xs": lambda: Qisp("xs"),
    "qisp-s": lambda: Qisp("s"),
    "qisp-m": lambda: Qisp("m"),
    "qisp-l": lambda: Qisp("l"),
    "robustisp": RobustIsp,
    "efficientisp": EfficientIsp,
    "syenet": SyeNet,
    "microisp": MicroIsp,
    "lan": Lan,
    "unet32": UNet32,
    "punet": Punet,
    "liteispnet": LiteIspNet,
    "pynet": PyNet,
    "awnet": AwNet,
}

__all__ = ["ISPS", "IspNet", "Recipe"]
