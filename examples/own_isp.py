"""An ISP of your own: name the class on the command line and everything else works with it.

    PYTHONPATH=examples eguot-sdk train paired --pairs PAIRS --isp own_isp:OwnIsp --out runs/own

The contract is IspNet (`eguot_train/isps/base.py`): built without arguments, `name` and `halo` set, `body` from packed
planes [B, 4, h, w] to [B, 12, h, w], which a depth-to-space turns into the picture [B, 3, 2h, 2w]. Keep to convolutions
and ReLU, and end in a convolution, for a network that converts to every format at every precision.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eguot_train.isps import IspNet


class OwnIsp(IspNet):
    """Three convolutions, with a short cut around the middle one."""

    name = "own-isp"
    halo = 3  # each 3x3 convolution sees one packed pixel more on every side

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 16, 3, padding=1)
        self.tail = nn.Conv2d(16, 12, 3, padding=1)

    def body(self, planes: Tensor) -> Tensor:
        features = torch.relu(self.stem(planes))
        return self.tail(features + torch.relu(self.middle(features)))
