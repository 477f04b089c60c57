"""TFLite files through LiteRT: `ai-edge-litert`, or `tflite-runtime` where only that is installed.

LiteRT checks the structure of a file before it trusts it, and its `invoke` releases the GIL, so runtimes of one
thread each run in parallel in Python threads. Integer results are the same for any number of threads.
"""

from __future__ import annotations

import ctypes
import importlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import IspFileError, MissingDependency, UsageError
from ..ispfile import read_model
from ..paths import kind_of
from ..spec import DType, TensorSpec
from . import RuntimeFactory
from .base import Runtime

HELD = "reference to internal data"
PATIENCE_S = 2.0
PACKAGES = (("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime"))


def litert_factory(path: Path, delegate: str | Path | None) -> RuntimeFactory:
    """Number of threads -> LiteRtRuntime of the file as it is now."""
    module, package = _import_litert()
    model = read_model(path)

    def open_one(threads: int) -> LiteRtRuntime:
        loaded = [_load_delegate(module, delegate)] if delegate is not None else None
        name = package if delegate is None else f"{package}, {Path(delegate).name}"
        return LiteRtRuntime(module, name, model, path.name, threads, loaded)

    return open_one


class LiteRtRuntime(Runtime):
    """One interpreter. Made by `litert_factory`; `source` is the file name for messages."""

    def __init__(
        self, module: Any, package: str, model: bytes, source: str, threads: int, delegates: list[Any] | None
    ) -> None:
        self.name = package
        self._source = source
        try:
            self._interpreter = module.Interpreter(
                model_content=model, num_threads=threads, experimental_delegates=delegates
            )
            inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        except (ValueError, RuntimeError, IndexError) as error:  # UnicodeDecodeError is a ValueError
            raise IspFileError(f"{source}: not a TFLite model that runs here ({_first_line(error)})") from error
        if len(inputs) != 1 or len(outputs) != 1:
            raise IspFileError(
                f"{source}: an ISP has one input and one output, this model has {len(inputs)} and {len(outputs)}"
            )
        if len(inputs[0]["shape"]) != 4 or inputs[0]["shape"][3] != 4:
            raise IspFileError(f"{source}: an ISP takes [1, h, w, 4], this model takes {inputs[0]['shape'].tolist()}")
        self.input_tensor = _tensor_spec(source, "input", inputs[0])
        self.output_tensor = _tensor_spec(source, "output", outputs[0])
        self._input_index, self._output_index = int(inputs[0]["index"]), int(outputs[0]["index"])
        self._input_shape = (0, 0)

    def resize(self, height: int, width: int) -> None:
        if (height, width) == self._input_shape:
            return
        self._input_shape = (0, 0)
        try:
            shape = [1, height, width, 4]
            _when_free(partial(self._interpreter.resize_tensor_input, self._input_index, shape))
            _when_free(self._interpreter.allocate_tensors)
        except (ValueError, RuntimeError) as error:
            raise IspFileError(
                f"{self._source}: the model cannot take an input of {height} x {width} ({_first_line(error)})"
            ) from error
        self._input_shape = (height, width)

    def input(self) -> NDArray[Any]:
        view: NDArray[Any] = self._interpreter.tensor(self._input_index)()
        return view

    def invoke(self) -> None:
        try:
            _when_free(self._interpreter.invoke)
        except (ValueError, RuntimeError) as error:
            raise IspFileError(f"{self._source}: the model failed while running ({_first_line(error)})") from error

    def output(self) -> NDArray[Any]:
        view: NDArray[Any] = self._interpreter.tensor(self._output_index)()
        if view.ndim != 4 or view.shape[0] != 1 or view.shape[3] != 3:
            raise IspFileError(f"{self._source}: an ISP gives [1, H, W, 3], this model gave {list(view.shape)}")
        return view

    def close(self) -> None:
        self._interpreter = None


def _import_litert() -> tuple[Any, str]:
    """The interpreter module and the name and version of its package."""
    for module, package in PACKAGES:
        try:
            found = importlib.import_module(f"{module}.interpreter")
        except ImportError:
            continue
        try:
            return found, f"{package} {version(package)}"
        except PackageNotFoundError:
            return found, package
    raise MissingDependency("LiteRT", needed_for="running a TFLite file", pip="ai-edge-litert")


def _load_delegate(module: Any, delegate: str | Path) -> Any:
    if kind_of(Path(delegate), UsageError) != "file":
        raise UsageError(f"delegate {str(delegate)!r} is not a file: give the path of a TFLite delegate library")
    path = str(Path(delegate).absolute())  # a bare name would be looked for in the system's folders
    try:
        library = ctypes.CDLL(path)  # LiteRT's own loader leaves a broken object behind where this fails
        loaded = module.load_delegate(path) if hasattr(library, "tflite_plugin_create_delegate") else None
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        raise UsageError(f"delegate {str(delegate)!r} cannot be loaded ({_first_line(error)})") from error
    if loaded is None:
        raise UsageError(f"delegate {str(delegate)!r} is a library, but not a TFLite delegate")
    return loaded


def _tensor_spec(source: str, which: str, details: Mapping[str, Any]) -> TensorSpec:
    dtype = np.dtype(details["dtype"]).name
    if dtype not in get_args(DType):
        raise IspFileError(f"{source}: the {which} is {dtype}; an ISP's is one of {', '.join(get_args(DType))}")
    if dtype == "float32":
        return TensorSpec()
    scales, zero_points = (details["quantization_parameters"][key] for key in ("scales", "zero_points"))
    if len(scales) != 1 or len(zero_points) != 1:
        raise IspFileError(f"{source}: the {which} is {dtype} without one scale and one zero point")
    return TensorSpec(dtype=cast("DType", dtype), scale=float(scales[0]), zero_point=int(zero_points[0]))


def _when_free(call: Callable[[], Any]) -> None:
    """Call what LiteRT refuses while anything refers to the memory of a tensor.

    Our own views are gone by then, but a sampling profiler in this process (every Dask worker has one) keeps frames
    that have returned, and the views in them, until it has looked at them. So a refusal is final only after PATIENCE_S.
    """
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            call()
            return
        except RuntimeError as error:
            if HELD not in str(error) or time.monotonic() >= end:
                raise
        time.sleep(0.001)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
