"""ONNX files: fp32, fp16 weights and arithmetic, int8 weights, or every value quantised (QuantizeLinear pairs).

Input `raw` [1, 4, h, w], output `srgb` [1, 3, 2h, 2w], both float32, any h and w that the network takes; the tail is
one DepthToSpace (CRD). Weights of integer files are int8 constants, values are uint8. The spec is in metadata_props.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from eguot_compress.fake_quant import QuantIsp, QuantState, quantise_body
from eguot_compress.quiet import quietly
from eguot_sdk.errors import EguotError, MissingDependency
from eguot_sdk.ispfile import METADATA_NAME
from eguot_sdk.spec import IspSpec

if TYPE_CHECKING:
    from eguot_sdk.spec import Precision
    from eguot_train.isps.base import IspNet

OPSET = 18


class _Half(nn.Module):
    """A network in fp16 between float32 ends."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).half()

    def forward(self, planes: Tensor) -> Tensor:
        out: Tensor = self.net(planes.half())
        return out.float()


def write_onnx(net: IspNet, precision: Precision, path: Path, *, side: int, state: QuantState | None) -> None:
    """An .onnx without a spec; `side` is only an example. Raises EguotError, MissingDependency."""
    if state is None:
        export_onnx(_Half(net) if precision == "fp16" else net, path, side)
        return
    body = quantise_body(net, bits=state.bits)
    body.load_state(state)
    with body.exporting(stored=True):
        export_onnx(QuantIsp(body, net.shuffle), path, side)


def embed_onnx(path: Path, spec: IspSpec) -> None:
    """Write the spec into metadata_props."""
    import onnx

    model = onnx.load(str(path))
    kept = [p for p in model.metadata_props if p.key != METADATA_NAME]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=METADATA_NAME, value=spec.to_json())
    onnx.save(model, str(path))


def run_onnx(path: Path, planes: Tensor) -> Tensor:
    """[N, 4, h, w] -> [N, 3, 2h, 2w], float32, by onnxruntime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    results = [session.run(None, {"raw": p[None].numpy()})[0] for p in planes]
    return torch.from_numpy(np.concatenate(results))


def export_onnx(module: nn.Module, path: Path, side: int, *, output: str = "srgb", flexible: bool = True) -> None:
    """Planes in, `output` out. `flexible`: any height and width, else `side` only. Raises as `write_onnx` does."""
    try:
        with quietly():
            import onnx
            import onnxruntime  # noqa: F401  (parity needs it; say so before any work)
            import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        package = error.name or "onnx"
        raise MissingDependency(package, needed_for="an ONNX file", pip="'eguot-sdk[onnx]'") from error
    dynamic = torch.export.Dim.DYNAMIC
    with quietly():
        try:
            program = torch.onnx.export(
                module.eval(), (torch.zeros(1, 4, side, side),), dynamo=True, external_data=False, opset_version=OPSET,
                input_names=["raw"], output_names=[output], verbose=False,
                dynamic_shapes=({2: dynamic, 3: dynamic},) if flexible else None,
            )  # fmt: skip
        except Exception as error:  # the exporter raises whatever its passes raise
            first = re.sub(r"\x1b\[[0-9;]*m", "", (str(error).strip() or type(error).__name__).splitlines()[0])
            raise EguotError(f"ONNX: the exporter refuses this network: {first:.200}") from error
        assert program is not None
        program.save(str(path))
        model = onnx.load(str(path))
        _tidy(model, flexible)
        _unsigned(model)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))


def _unsigned(model: Any) -> None:
    """int8 values with a zero point z become uint8 ones with z + 128: the same numbers.

    onnxruntime turns the values of one reader into uint8 by itself and leaves those of several as int8; a convolution
    between the two kinds then has no integer kernel and is summed in float32.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    zeros = set()
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] not in constants:
            for attribute in [a for a in node.attribute if a.name == "output_dtype"]:
                node.attribute.remove(attribute)  # the zero point says it
            zeros.add(node.input[2])
    for name in zeros:
        zero = numpy_helper.to_array(constants[name])
        if zero.dtype == np.int8:
            moved = (zero.astype(np.int16) + 128).astype(np.uint8)
            constants[name].CopyFrom(numpy_helper.from_array(moved, name))


def _tidy(model: object, flexible: bool) -> None:
    """Name the free sizes, and drop what the exporter noted about this machine's source files."""
    graph = model.graph  # type: ignore[attr-defined]
    for value, names in () if not flexible else ((graph.input[0], ("h", "w")), (graph.output[0], ("2h", "2w"))):
        for axis, name in zip((2, 3), names, strict=True):
            value.type.tensor_type.shape.dim[axis].Clear()
            value.type.tensor_type.shape.dim[axis].dim_param = name
    del graph.value_info[:]
    for holder in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del holder.metadata_props[:]
        if hasattr(holder, "doc_string"):
            holder.doc_string = ""
