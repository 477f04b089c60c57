"""What every runtime is to the rest of the SDK: one loaded model with one input and one output tensor.

A runtime belongs to one thread at a time. Axes are NHWC with one picture; sizes are packed pixels. `input()` and
`output()` are views of the runtime's own memory: write or copy at once and let them go, for no view may live
across `resize`, `invoke` or `close`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import IspFileError
from ..spec import IspSpec, TensorSpec


class Runtime(ABC):
    """One model ready to run."""

    name: str
    """Package and version that runs the model, e.g. `ai-edge-litert 2.3.0`."""
    input_tensor: TensorSpec
    """How the model stores its input, read from the model itself."""
    output_tensor: TensorSpec
    """How the model stores its output, read from the model itself."""

    @property
    def input_dtype(self) -> np.dtype[Any]:
        """NumPy dtype of `input()`."""
        return np.dtype(self.input_tensor.dtype)

    @property
    def output_dtype(self) -> np.dtype[Any]:
        """NumPy dtype of `output()`."""
        return np.dtype(self.output_tensor.dtype)

    @abstractmethod
    def resize(self, height: int, width: int) -> None:
        """Make the input [1, height, width, 4]; nothing happens where it is so already. Raises IspFileError."""

    @abstractmethod
    def input(self) -> NDArray[Any]:
        """Writable view [1, h, w, 4] of the input, of `input_dtype`."""

    @abstractmethod
    def invoke(self) -> None:
        """Run the model on what `input()` holds; other threads run meanwhile. Raises IspFileError."""

    @abstractmethod
    def output(self) -> NDArray[Any]:
        """View [1, H, W, 3] of the output, of `output_dtype`, valid until the next `invoke`."""

    @abstractmethod
    def close(self) -> None:
        """Free the model and its memory; may be called twice."""


def check_tensors(runtime: Runtime, spec: IspSpec) -> None:
    """Raise IspFileError where the model stores its input or output in another way than its spec says."""
    for which, found, said in (
        ("input", runtime.input_tensor, spec.input),
        ("output", runtime.output_tensor, spec.output),
    ):
        same = found.dtype == said.dtype and found.zero_point == said.zero_point
        if not same or not math.isclose(found.scale, said.scale, rel_tol=1e-5):
            raise IspFileError(
                f"ISP {spec.name!r}: its spec says the {which} is {_words(said)}, the model's is {_words(found)}: "
                "convert it again"
            )


def _words(tensor: TensorSpec) -> str:
    if tensor.dtype == "float32":
        return "float32"
    return f"{tensor.dtype} with scale {tensor.scale:.7g} and zero point {tensor.zero_point}"
