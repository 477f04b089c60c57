"""An ISP file from Python inside an Android app (Chaquopy), computed by the app's own LiteRT interpreter.

PyPI's wheels of LiteRT and rawpy do not run in an Android app, and need not: counts come from Camera2 (RAW_SENSOR), and
the interpreter is `org.tensorflow.lite.Interpreter`. Python needs NumPy only. eguot-sdk is not on PyPI: in a clone of
its repository, `pip wheel --no-deps .` makes a wheel, which goes beside the build.gradle of the app, where it says
`version = "3.11"` (or newer; the wheel takes no older Python) and
`pip { install "numpy"; options "--no-deps"; install "eguot_sdk-0.1.0-py3-none-any.whl" }`. On the Kotlin side, a class
that Python is handed; the interpreter stays the app's, which closes it after the ISP:

    class Model(private val interpreter: Interpreter) {
        fun resize(height: Int, width: Int) {
            interpreter.resizeInput(0, intArrayOf(1, height, width, 4)); interpreter.allocateTensors()
        }
        fun run(input: ByteArray, outputBytes: Int): ByteArray {
            val given = ByteBuffer.allocateDirect(input.size).put(input); given.rewind()
            val result = ByteBuffer.allocateDirect(outputBytes)
            interpreter.run(given, result); result.rewind()
            return ByteArray(outputBytes).also { result.get(it) }
        }
    }

In Python:

    isp = open_isp(model_bytes, model)
    rgb = isp.process(RawFrame.from_array(mosaic, cfa=..., black=..., white=..., white_balance=..., matrix=...))

Was not run on Android: tested (tests/examples) with a stand-in for `Model` that computes with LiteRT.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eguot_sdk.errors import IspFileError
from eguot_sdk.isp import ISP
from eguot_sdk.ispfile import find_spec
from eguot_sdk.runtimes import Runtime
from eguot_sdk.spec import IspSpec


class JavaRuntime(Runtime):
    """One `Model`; tensors cross as bytes."""

    def __init__(self, model: Any, spec: IspSpec) -> None:
        self.name = "LiteRT for Java"
        self.input_tensor, self.output_tensor = spec.input, spec.output
        self._model, self._factor = model, spec.scale_factor
        self._input: NDArray[Any] = np.zeros((1, 0, 0, 4), self.input_dtype)
        self._output: NDArray[Any] = np.zeros((1, 0, 0, 3), self.output_dtype)

    def resize(self, height: int, width: int) -> None:
        """Nothing happens where the tile is of this size already, which it is for all tiles of a frame."""
        if self._input.shape[1:3] != (height, width):
            self._model.resize(height, width)
            self._input = np.zeros((1, height, width, 4), self.input_dtype)
            self._output = np.zeros((1, self._factor * height, self._factor * width, 3), self.output_dtype)

    def input(self) -> NDArray[Any]:
        """What the model reads."""
        return self._input

    def invoke(self) -> None:
        """Run the model."""
        result = bytes(self._model.run(self._input.tobytes(), self._output.nbytes))
        self._output = np.frombuffer(result, self.output_dtype).reshape(self._output.shape)

    def output(self) -> NDArray[Any]:
        """What the model wrote."""
        return self._output

    def close(self) -> None:
        """Nothing: the app owns the interpreter, and an ISP goes on with it after an error closed this runtime."""


def open_isp(file: bytes, model: Any) -> ISP:
    """The ISP of a .tflite, computed by `model`, which has loaded the same file, one tile at a time."""
    spec = find_spec(file, "the ISP file")
    if spec is None:
        raise IspFileError("the file has no ISP spec inside: make it with `eguot-sdk convert`")
    return ISP(spec, lambda _: JavaRuntime(model, spec), threads=1)
