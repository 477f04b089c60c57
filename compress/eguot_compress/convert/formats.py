"""The file formats: what each can hold and how a file of it is written, given its spec, and run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eguot_compress.exact_picture import Kernels
from eguot_compress.fake_quant import QuantState
from eguot_compress.parity import run_tflite
from eguot_sdk.errors import MissingDependency
from eguot_sdk.ispfile import embed_spec
from eguot_sdk.spec import IspSpec, Precision, TensorSpec
from eguot_train.isps.base import IspNet

from . import tflite_onnx2tf
from .contents import Contents, read_coreml, read_onnx, read_tflite
from .coreml import embed_coreml, run_coreml, write_coreml
from .onnx_file import embed_onnx, run_onnx, write_onnx
from .tflite import to_tflite

Format = Literal["tflite", "coreml", "onnx"]
Stored = NDArray[np.generic]


class Write(Protocol):
    """Writes a file without a spec."""

    def __call__(
        self, net: IspNet, precision: Precision, path: Path, *, side: int, state: QuantState | None
    ) -> None: ...


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """One format. `run`: stored input in the layout of the file -> stored output."""

    suffix: str
    precisions: tuple[Precision, ...]
    layout: Literal["NHWC", "NCHW"]
    fixed_tile: bool
    runtime: str
    """What `run` is, for reports."""
    tools: tuple[str, ...]
    """Packages beside torch that have a say in a file."""
    write: Write
    embed: Callable[[Path, IspSpec], None]
    run: Callable[[Path, Stored], Stored]
    kernels: Kernels | None
    """Whose integer arithmetic `run` is, as in `exact_picture`."""
    exact: bool = True
    """Whether integer files hold the scales given; if not, they have their own, and `ports` reads those of the ends."""
    ports: Callable[[Path], tuple[TensorSpec, TensorSpec]] | None = None
    read: Callable[[Path], Contents]
    """What a file holds."""
    inputs: dict[Precision, TensorSpec]
    """How input is stored; float32 where not listed."""
    outputs: dict[Precision, TensorSpec]


def _write_tflite(net: IspNet, precision: Precision, path: Path, *, side: int, state: QuantState | None) -> None:
    path.write_bytes(to_tflite(net, precision, side=side, state=state))


def _embed_tflite(path: Path, spec: IspSpec) -> None:
    path.write_bytes(embed_spec(path.read_bytes(), spec))


def _on_tensors(run: Callable[[Path, Tensor], Tensor]) -> Callable[[Path, Stored], Stored]:
    def on_arrays(path: Path, stored: Stored) -> Stored:
        return run(path, torch.from_numpy(stored)).numpy()

    return on_arrays


def _f32(value: float) -> float:
    return float(np.float32(value))


INT8 = TensorSpec(dtype="int8", scale=_f32(1 / 255), zero_point=-128)
INT16 = TensorSpec(dtype="int16", scale=_f32(1 / 32767), zero_point=0)

FORMATS: dict[Format, FileFormat] = {
    "tflite": FileFormat(
        suffix="tflite",
        precisions=("fp32", "fp16", "w8", "w8a8", "w8a16"),
        layout="NHWC",
        fixed_tile=False,
        runtime="LiteRT",
        kernels="xnnpack",
        tools=("litert-torch", "ai-edge-quantizer", "ai-edge-litert"),
        write=_write_tflite,
        embed=_embed_tflite,
        run=run_tflite,
        read=read_tflite,
        inputs={"w8a8": INT8, "w8a16": INT16},
        outputs={"w8a8": INT8},
    ),
    "coreml": FileFormat(
        suffix="mlpackage",
        precisions=("fp32", "fp16", "w8", "w8a8"),
        layout="NCHW",
        fixed_tile=True,
        runtime="Core ML" if sys.platform == "darwin" else "evaluated op by op, not run on Apple hardware",
        kernels=None,
        tools=("coremltools",),
        write=write_coreml,
        embed=embed_coreml,
        run=_on_tensors(run_coreml),
        read=read_coreml,
        inputs={},
        outputs={},
    ),
    "onnx": FileFormat(
        suffix="onnx",
        precisions=("fp32", "fp16", "w8", "w8a8"),
        layout="NCHW",
        fixed_tile=False,
        runtime="onnxruntime",
        kernels="onnxruntime",
        tools=("onnx", "onnxruntime"),
        write=write_onnx,
        embed=embed_onnx,
        run=_on_tensors(run_onnx),
        read=read_onnx,
        inputs={},
        outputs={},
    ),
}


NEEDED = {
    "tflite": ("TFLite", "convert", ("litert_torch", "ai_edge_quantizer", "ai_edge_litert")),
    "coreml": ("Core ML", "coreml", ("coremltools",)),
    "onnx": ("ONNX", "onnx", ("onnx", "onnxruntime", "onnxscript")),
    "onnx2tf": ("TFLite by onnx2tf", "tensorflow", ("onnx2tf", "tensorflow", "onnx", "ai_edge_litert")),
}
"""What writing and running a file takes beside torch: its name to people, the extra, packages as they are imported."""


def require(ways: Iterable[str]) -> None:
    """Raises MissingDependency where a package of NEEDED is not installed, once for all ways. Imports nothing."""
    lacking = [
        (what, extra, absent)
        for what, extra, modules in (NEEDED[way] for way in ways)
        if (absent := [module for module in modules if find_spec(module) is None])
    ]
    if lacking:
        whats, extras, modules = zip(*lacking, strict=True)
        packages = ", ".join(dict.fromkeys(m.replace("_", "-") for absent in modules for m in absent))
        needed_for = "conversion to " + ", ".join(whats)
        raise MissingDependency(packages, needed_for=needed_for, pip=f"'eguot-sdk[{','.join(extras)}]'")


def by_onnx2tf(tiles: Tensor) -> FileFormat:
    """TFLite the second way; `tiles` [N, 4, h, w] teach int8 ranges."""

    def write(net: IspNet, precision: Precision, path: Path, *, side: int, state: QuantState | None) -> None:
        path.write_bytes(tflite_onnx2tf.to_tflite_onnx2tf(net, precision, tiles))

    return replace(
        FORMATS["tflite"],
        precisions=tflite_onnx2tf.PRECISIONS,
        tools=("onnx", "onnx2tf", "tensorflow", "ai-edge-litert"),
        write=write,
        exact=False,
        ports=tflite_onnx2tf.ports,
    )


def as_stored(planes: Tensor, spec: IspSpec) -> Stored:
    """[N, 4, h, w] in [0, 1] -> the input as the file stores it, in its layout."""
    from eguot_sdk.ingest import quantise

    axes: Any = (0, 2, 3, 1) if spec.layout == "NHWC" else (0, 1, 2, 3)
    return np.ascontiguousarray(quantise(planes.permute(*axes).numpy(), spec.input))


def from_stored(stored: Stored, spec: IspSpec) -> Tensor:
    """The output as the file stores it -> real values [N, 3, 2h, 2w]."""
    from eguot_sdk.ingest import dequantise

    real = torch.from_numpy(dequantise(stored, spec.output).copy())
    return real.permute(0, 3, 1, 2) if spec.layout == "NHWC" else real
