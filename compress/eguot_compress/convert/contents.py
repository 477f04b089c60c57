"""What a finished file holds, read back from the file: its ops, and every scale in it.

The scales are compared with those of the quantised network: all of them, in both directions.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eguot_compress.fake_quant import QuantState
from eguot_compress.parity import ScaleCheck

Scales = tuple[float, ...]
POINTWISE = ("ADD", "SUB", "MUL")
"""Ops of TFLite whose constants are not weights of filters."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Ops by name with their counts; scales as the float32 values stored."""

    ops: dict[str, int]
    activations: frozenset[tuple[float, int]]
    """Scale and zero point of every quantised activation, and of constants that ops on single values read."""
    weights: frozenset[Scales]
    """Scales of the output channels of every tensor of int8 weights; files keep equal constants once."""
    half_scales: bool = False
    """Whether the file computes in fp16, and so keeps scales of weights as fp16."""


def compare_scales(contents: Contents, state: QuantState) -> ScaleCheck:
    """All scales of a file against those of the network it was made of. Channels may lie in another order."""
    activations = {(float(np.float32(scale)), zero) for scale, zero in state.activations.values()}
    kind = np.float16 if contents.half_scales else np.float32
    wanted = [s for n, s in state.weights.items() if n not in state.float_layers]
    weights = {tuple(sorted(float(kind(s)) for s in scales)) for scales in wanted}
    found = {tuple(sorted(scales)) for scales in contents.weights}
    return ScaleCheck(
        total=len(state.activations) + sum(len(s) for s in wanted),
        differing=len(activations ^ contents.activations) + sum(len(s) for s in weights ^ found),
    )


def read_tflite(path: Path) -> Contents:
    """Of the tensors that ops use."""
    from ai_edge_litert import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    (graph,) = model.subgraphs

    def kind_of(op: Any) -> str:
        return names[model.operatorCodes[op.opcodeIndex].builtinCode]

    ops = Counter(kind_of(op) for op in graph.operators)
    activations, weights = set[tuple[float, int]](), set[Scales]()
    used = {int(i) for op in graph.operators for i in (*op.inputs, *op.outputs) if i >= 0}
    pointwise = {int(i) for op in graph.operators if kind_of(op) in POINTWISE for i in op.inputs}
    for index, tensor in ((i, graph.tensors[i]) for i in sorted(used)):
        quantisation = tensor.quantization
        if quantisation is None or quantisation.scale is None or not len(quantisation.scale):
            continue
        scales = tuple(float(s) for s in quantisation.scale)
        if model.buffers[tensor.buffer].data is None:
            activations.add((scales[0], int(quantisation.zeroPoint[0])))
        elif index in pointwise:
            if np.prod(tensor.shape) > 1:  # a single number: the converter puts it on the end of its range, exactly
                activations.add((scales[0], int(quantisation.zeroPoint[0])))
        elif tensor.type == schema.TensorType.INT8:  # biases are int32 or int64; their scales are products
            weights.add(scales)
    return Contents(ops=dict(ops.most_common()), activations=frozenset(activations), weights=frozenset(weights))


def read_onnx(path: Path) -> Contents:
    """Of QuantizeLinear and DequantizeLinear nodes."""
    import onnx

    model = onnx.load(str(path))
    values = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            values[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    activations, weights = set[tuple[float, int]](), set[Scales]()
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        stored = values[node.input[1]]
        scales = tuple(float(s) for s in np.atleast_1d(stored))
        if node.input[0] in values and stored.ndim:
            weights.add(scales)
        else:
            zero = values[node.input[2]] if len(node.input) > 2 else np.int8(0)
            activations.add((scales[0], int(zero) - (128 if zero.dtype == np.uint8 else 0)))  # as in read_coreml
    ops = Counter(node.op_type for node in model.graph.node if node.op_type != "Constant")
    return Contents(ops=dict(ops.most_common()), activations=frozenset(activations), weights=frozenset(weights))


def read_coreml(path: Path) -> Contents:
    """Of quantize and dequantize ops, and of constants kept as integers."""
    from .mil import MilProgram

    operations = MilProgram(path).operations
    activations, weights, half = set[tuple[float, int]](), set[Scales](), False
    for op in operations:
        if op.op_type not in ("quantize", "dequantize", "constexpr_affine_dequantize"):
            continue
        stored = np.asarray(op.inputs["scale"].val)
        scales = tuple(float(s) for s in np.atleast_1d(stored))
        source: Any = op.inputs.get("input", op.inputs.get("quantized_data"))
        zero = op.inputs.get("zero_point")
        if source.val is not None and stored.ndim:
            weights.add(scales)
            half |= stored.dtype == np.float16
        elif source.val is not None or op.op_type == "quantize":  # every other one is followed by its dequantize
            kind = source.val.dtype if source.val is not None else op.inputs["output_dtype"].val
            shift = 128 if kind == "uint8" else 0  # uint8 around 0 is int8 around -128
            activations.add((scales[0], (0 if zero is None else int(zero.val)) - shift))
    return Contents(
        ops=dict(Counter(op.op_type for op in operations).most_common()), activations=frozenset(activations),
        weights=frozenset(weights), half_scales=bool(half),
    )  # fmt: skip
