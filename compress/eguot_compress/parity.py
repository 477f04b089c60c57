"""Is the file the network? Both render the same golden crops, the file through its real runtime.

A float file is held against the network; a file with integers against the quantised network of the same scales, its
twin, computed as the file's runtime does (`exact_picture`), so that a conversion fault and an honest quantisation loss
are told apart. The loss itself is `drop_db`.
Values are compared clipped to [0, 1]; 1 LSB is 1/255.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eguot_sdk.spec import Precision

from .quiet import quietly

if TYPE_CHECKING:
    from .calibration import Calibration

NOMINAL_DB = 30.0
"""Quality of the picture that a drop is estimated against where no true pictures are at hand."""
FLOOR_DB: dict[Precision, float] = {"fp32": 80.0, "fp16": 60.0, "w8": 60.0, "w8a16": 60.0}
WAY_OUT = " (an op that this format rounds otherwise: try w8 or another format, and report the network)"
MAX_OVER_2_LSB = 0.002
MAX_TWIN_DROP_DB = 0.02


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two renderings are apart."""

    psnr_db: float
    max_lsb: float
    over_1_lsb: float
    """Share of values more than 1 LSB apart, 0..1."""
    over_2_lsb: float

    @classmethod
    def between(cls, a: Tensor, b: Tensor) -> Difference:
        """`a`, `b`: equal shapes, real values; clipped to [0, 1] first. Equal renderings are 200 dB apart."""
        lsb = (a.clamp(0, 1) - b.clamp(0, 1)).abs().double() * 255
        mse = float((lsb / 255).square().mean())
        return cls(
            psnr_db=-10 * float(np.log10(max(mse, 1e-20))),
            max_lsb=float(lsb.max()),
            over_1_lsb=float((lsb > 1.001).double().mean()),  # .001: scales are float32
            over_2_lsb=float((lsb > 2.001).double().mean()),
        )


@dataclass(frozen=True, kw_only=True)
class ScaleCheck:
    """How many scales of the quantised network there are, and how many of either side the other lacks."""

    total: int
    differing: int


@dataclass(frozen=True, kw_only=True)
class Parity:
    """One file against torch on the golden set."""

    twin: Difference
    """File against the torch model with the same rounding (float files: the network itself)."""
    network: Difference
    """File against the float network; of a run trained with rounding, against its weights without the rounding, which
    is no good picture where that training relied on ranges to clip."""
    drop_db: float
    """PSNR the file loses against the network."""
    twin_drop_db: float
    """PSNR the torch model with the same rounding loses."""
    drop_basis: str
    """`pairs`: against true pictures. `estimate`: against a picture of 30 dB with independent errors."""
    banding_lsb: float
    """Grey ramp: largest difference between the file's step from column to column and the network's."""
    scales: ScaleCheck | None = None
    """Scales read back from the file against those of the quantised network; None for float files."""

    def problem(self, precision: Precision) -> str | None:
        """What falls short of what this precision must reach; None where nothing does."""
        if self.scales is not None and self.scales.differing:
            return f"{self.scales.differing} of {self.scales.total} scales in the file are not the network's{WAY_OUT}"
        if not math.isfinite(self.twin.psnr_db):
            return "it renders values that are no numbers: train on, or convert an earlier checkpoint"
        if precision in FLOOR_DB:
            floor = FLOOR_DB[precision]
            return None if self.twin.psnr_db >= floor else f"{self.twin.psnr_db:.1f} dB to torch, {floor:.0f} needed"
        if self.twin.over_2_lsb > MAX_OVER_2_LSB:
            far = 100 * self.twin.over_2_lsb
            return f"{far:.2f}% of values are over 2 LSB from torch, at most 0.2% allowed{WAY_OUT}"
        if abs(self.drop_db - self.twin_drop_db) > MAX_TWIN_DROP_DB:
            apart = abs(self.drop_db - self.twin_drop_db)
            return f"{apart:.3f} dB from the quantised torch model, at most {MAX_TWIN_DROP_DB} allowed{WAY_OUT}"
        return None


def measure(file: Tensor, twin: Tensor, network: Tensor, calibration: Calibration, scales: ScaleCheck | None) -> Parity:
    """Compare renderings [N, 3, 2c, 2c] of `calibration.golden`."""
    return Parity(
        twin=Difference.between(file, twin),
        network=Difference.between(file, network),
        drop_db=drop_db(file, network, calibration.truths),
        twin_drop_db=drop_db(twin, network, calibration.truths),
        drop_basis="estimate" if calibration.truths is None else "pairs",
        banding_lsb=banding_lsb(file[-1], network[-1]),
        scales=scales,
    )


def drop_db(rendering: Tensor, network: Tensor, truths: Tensor | None) -> float:
    """PSNR lost by `rendering` against `network`: to `truths`, or estimated for a picture of NOMINAL_DB."""
    if truths is None:
        mse = 10 ** (-Difference.between(rendering, network).psnr_db / 10)
        return float(10 * np.log10(1 + mse / 10 ** (-NOMINAL_DB / 10)))
    n = len(truths)
    return Difference.between(network[:n], truths).psnr_db - Difference.between(rendering[:n], truths).psnr_db


def banding_lsb(rendering: Tensor, network: Tensor) -> float:
    """[3, H, W] of a horizontal ramp: worst column step that the network does not take, in LSB, borders left out."""
    step = (rendering.clamp(0, 1).mean(1).diff(dim=1) - network.clamp(0, 1).mean(1).diff(dim=1)).abs()
    inner = step[:, 8:-8] if step.shape[1] > 24 else step
    return float(inner.max()) * 255


def render(net: torch.nn.Module, planes: Tensor) -> Tensor:
    """A torch network over [N, 4, h, w], one crop at a time -> [N, 3, 2h, 2w], not clipped."""
    with torch.no_grad():
        return torch.cat([net(p[None]) for p in planes])


def run_tflite(path: Path, stored: NDArray[np.generic]) -> NDArray[np.generic]:
    """[N, h, w, 4] in the file's input type -> [N, 2h, 2w, 3] in its output type."""
    from eguot_sdk.runtimes import open_runtime

    with quietly():
        runtime = open_runtime(path, threads=1)
        runtime.resize(*stored.shape[1:3])
    try:
        results = []
        for tile in stored:
            runtime.input()[0] = tile
            runtime.invoke()
            results.append(np.array(runtime.output()[0]))
        return np.stack(results)
    finally:
        runtime.close()
