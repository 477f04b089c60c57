"""A second way to TFLite that shares nothing with the first but the network: ONNX, onnx2tf, TensorFlow's converter.

For float files and post-training quantisation: onnx2tf cannot carry scales, so an int8 file gets TensorFlow's own,
learned from the calibration tiles on weights that post-training quantisation has already put on their steps. It exists
to check the first way by: a float file must agree with torch as well as that one does.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from torch import Tensor

from eguot_compress.fake_quant import float_body, has_inner_shuffles, in_file_order
from eguot_compress.quiet import quietly
from eguot_sdk.errors import EguotError, MissingDependency
from eguot_sdk.ispfile import describe
from eguot_sdk.spec import DType, TensorSpec

from .onnx_file import export_onnx
from .tflite_edits import finish_tflite

if TYPE_CHECKING:
    from eguot_sdk.spec import Precision
    from eguot_train.isps.base import IspNet

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "w8a8")
ENDINGS: dict[Precision, str] = {"fp32": "float32", "fp16": "float16", "w8a8": "full_integer_quant"}


def to_tflite_onnx2tf(net: IspNet, precision: Precision, tiles: Tensor) -> bytes:
    """A .tflite without a spec. `tiles`: [N, 4, h, w] companded planes to learn int8 ranges from.

    Raises EguotError when an op of the network cannot be converted, MissingDependency without onnx2tf.
    """
    body = float_body(in_file_order(net)).eval()
    with tempfile.TemporaryDirectory(prefix="onnx2tf-") as folder:
        work = Path(folder)
        export_onnx(body, work / "isp.onnx", tiles.shape[-1], output="body", flexible=False)
        np.save(work / "tiles.npy", tiles.permute(0, 2, 3, 1).contiguous().numpy())
        _convert(work, integers=precision == "w8a8")
        found = work / "out" / f"isp_{ENDINGS[precision]}.tflite"
        if not found.is_file():
            raise EguotError(f"TFLite by onnx2tf: no {precision} file came out of TensorFlow's converter")
        return finish_tflite(found.read_bytes(), net.shuffle, inner_shuffles=has_inner_shuffles(net))


def _convert(work: Path, *, integers: bool) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with quietly(drop=True):
            import onnx2tf
    except ImportError as error:
        package = error.name or "onnx2tf"
        raise MissingDependency(
            package, needed_for="a TFLite file by onnx2tf", pip="'eguot-sdk[tensorflow]'"
        ) from error
    plain = [[[[0.0] * 4]]], [[[[1.0] * 4]]]  # mean and deviation: the tiles are as the network takes them
    with quietly(drop=True):
        try:
            onnx2tf.convert(
                input_onnx_file_path=str(work / "isp.onnx"), output_folder_path=str(work / "out"),
                output_integer_quantized_tflite=integers, quant_type="per-channel", non_verbose=True, verbosity="error",
                custom_input_op_name_np_data_path=[["raw", str(work / "tiles.npy"), *plain]],
            )  # fmt: skip
        except (Exception, SystemExit) as error:  # it leaves by sys.exit where it gives up
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EguotError(f"TFLite by onnx2tf: the converter refuses this network: {first:.200}") from error


def ports(path: Path) -> tuple[TensorSpec, TensorSpec]:
    """How the input and the output of a .tflite are stored."""
    facts = describe(path)
    return _port(facts["input"][0]), _port(facts["output"][0])


def _port(port: dict[str, object]) -> TensorSpec:
    if port["dtype"] == "float32":
        return TensorSpec()
    assert port["dtype"] in get_args(DType)
    return TensorSpec(dtype=port["dtype"], scale=port["scale"], zero_point=port["zero_point"])  # type: ignore[arg-type]
