"""A runtime without a model, for tests of programs that use the SDK: bilinear colours of the 2x2 cells, in NumPy.

R, the mean of both greens, and B of each cell are spread over its 2x2 pixels, so the
picture is right in colour and soft in detail. It has a halo and integer tensors like a real ISP. Use `ISP.fake()`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..ingest import dequantise, quantise
from ..spec import IspSpec, TensorSpec
from .base import Runtime

TENSORS = {"int8": TensorSpec(dtype="int8", scale=1 / 255, zero_point=-128), "float32": TensorSpec()}


def fake_spec(dtype: Literal["int8", "float32"] = "int8") -> IspSpec:
    """The spec `FakeRuntime` keeps to, with input and output of one dtype."""
    if dtype not in TENSORS:
        raise UsageError(f"the fake ISP computes in int8 or float32, not {dtype!r}")
    return IspSpec(
        name="fake",
        architecture="bilinear-cells",
        parameters=0,
        halo=1,
        tile=64,
        input=TENSORS[dtype],
        output=TENSORS[dtype],
        precision="w8a8" if dtype == "int8" else "fp32",
    )


class FakeRuntime(Runtime):
    """`closed` and `invocations` tell a test what was done with it."""

    def __init__(self, spec: IspSpec) -> None:
        self.name = "fake"
        self.input_tensor, self.output_tensor = spec.input, spec.output
        self.closed = False
        self.invocations = 0
        self.resize(1, 1)

    def resize(self, height: int, width: int) -> None:
        self._input = np.zeros((1, height, width, 4), self.input_dtype)
        self._output = np.zeros((1, 2 * height, 2 * width, 3), self.output_dtype)

    def input(self) -> NDArray[Any]:
        return self._input

    def invoke(self) -> None:
        self.invocations += 1
        planes = dequantise(self._input, self.input_tensor)[0]
        cells = np.stack([planes[..., 0], (planes[..., 1] + planes[..., 2]) / 2, planes[..., 3]], axis=-1)
        self._output[0] = quantise(_double(_double(cells, axis=0), axis=1), self.output_tensor)

    def output(self) -> NDArray[Any]:
        return self._output

    def close(self) -> None:
        self.closed = True


def _double(cells: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Twice as many samples along an axis, linearly between the centres of the cells."""
    cells = np.moveaxis(cells, axis, 0)
    before = np.concatenate([cells[:1], cells[:-1]])
    after = np.concatenate([cells[1:], cells[-1:]])
    double = np.empty((2 * cells.shape[0], *cells.shape[1:]), np.float32)
    double[0::2] = 0.75 * cells + 0.25 * before
    double[1::2] = 0.75 * cells + 0.25 * after
    return np.moveaxis(double, 0, axis)
