"""What a .tflite from the converter still needs: shuffles, and biases the int16 kernels read correctly.

torch's pixel_shuffle becomes a rank-6 reshape in every converter: slow, refused by GPU delegates, and fixed to one
size. The built-in DEPTH_TO_SPACE does the same at any size; it wants its channels in another order
(`fake_quant.in_file_order`). Spec and metadata are `eguot_sdk.ispfile`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eguot_sdk.errors import EguotError
from eguot_sdk.ispfile import pack_model, unpack_model

BIAS_AT = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2}

INT16_VERSION = {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 5, "FULLY_CONNECTED": 4}
"""Op versions that first had int16 activations with int64 biases; old runtimes refuse higher ones by number alone."""


@dataclass(frozen=True, eq=False)
class FloatLayer:
    """A convolution to be put back to float: `steps` int8 [O, h, w, I] finds it, `weight` and `bias` replace it."""

    steps: NDArray[np.int8]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def finish_tflite(
    data: bytes, block: int, float_layers: Sequence[FloatLayer] = (), *, inner_shuffles: bool = False
) -> bytes:
    """A converted body, one output [1, h, w, 3 * block**2] -> the file with the output [1, block*h, block*w, 3].

    int8 and float outputs keep type and scale, int16 leaves as float. Input and output are named `raw` and `srgb`.
    `float_layers` compute in float between a DEQUANTIZE and a QUANTIZE. `inner_shuffles`: reshapes of the right sizes
    stand for DEPTH_TO_SPACE.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = unpack_model(data)
    for layer in float_layers:
        _put_back_to_float(model, schema, layer)
    _widen_int16_biases(model, schema)
    if inner_shuffles:
        _write_inner_shuffles(model, schema)
    _append_depth_to_space(model, schema, block)
    _tidy(model, schema)
    return pack_model(model)


def _tidy(model: Any, schema: Any) -> None:
    """Drop what no runtime reads and what takes more room than weights in small files.

    Names inside the graph, notes of the converter (its least runtime version is that before the edits), an empty buffer
    for every value, and constants and kinds of ops that the edits left without a reader.
    """
    (graph,) = model.subgraphs
    model.metadata, model.description = [], None
    used = {int(i) for op in graph.operators for i in (*op.inputs, *op.outputs)} | {*graph.inputs, *graph.outputs}
    codes = sorted({op.opcodeIndex for op in graph.operators})
    model.operatorCodes = [model.operatorCodes[code] for code in codes]
    for op in graph.operators:
        op.opcodeIndex = codes.index(op.opcodeIndex)
    kept, place = [schema.BufferT()], {0: 0}
    for index, tensor in enumerate(graph.tensors):
        if index not in {*graph.inputs, *graph.outputs}:
            tensor.name = None
        if model.buffers[tensor.buffer].data is None or index not in used:
            tensor.buffer = 0
            continue
        if tensor.buffer not in place:
            place[tensor.buffer] = len(kept)
            kept.append(model.buffers[tensor.buffer])
        tensor.buffer = place[tensor.buffer]
    model.buffers = kept


def _write_inner_shuffles(model: Any, schema: Any) -> None:
    """DEPTH_TO_SPACE for every reshape that stands for one, between floats where values are int16."""
    (graph,) = model.subgraphs
    operators, graph.operators = graph.operators, []
    for op in operators:
        block = _stands_for(model, schema, op)
        if not block:
            graph.operators.append(op)
            continue
        source, target = int(op.inputs[0]), int(op.outputs[0])
        options = schema.DepthToSpaceOptionsT()
        options.blockSize = block
        if graph.tensors[source].type != schema.TensorType.INT16:
            graph.operators.append(_op(model, schema, "DEPTH_TO_SPACE", 1, source, target, options))
            continue
        flat, image = (_as_float(schema, graph.tensors[i]) for i in (source, target))
        source = _append_op(model, schema, "DEQUANTIZE", 3, source, flat, schema.DequantizeOptionsT())
        source = _append_op(model, schema, "DEPTH_TO_SPACE", 1, source, image, options)
        graph.operators.append(_op(model, schema, "QUANTIZE", 2, source, target, schema.QuantizeOptionsT()))


def _stands_for(model: Any, schema: Any, op: Any) -> int:
    """The block of the shuffle that a reshape stands for; 0 where it is none: [1, h, w, c b b] to [1, h b, w b, c]."""
    if model.operatorCodes[op.opcodeIndex].builtinCode != schema.BuiltinOperator.RESHAPE:
        return 0
    before, after = (tuple(model.subgraphs[0].tensors[i].shape) for i in (op.inputs[0], op.outputs[0]))
    if len(before) != 4 or len(after) != 4:
        return 0
    block = int(after[1]) // int(before[1])
    wanted = (before[0], before[1] * block, before[2] * block, before[3] // block**2) if block else ()
    return block if block > 1 and after == wanted else 0


def _as_float(schema: Any, tensor: Any) -> Any:
    """A copy of an integer tensor's description, for its values as float32."""
    flat = copy.copy(tensor)
    flat.type, flat.quantization = schema.TensorType.FLOAT32, None
    return flat


def _append_depth_to_space(model: Any, schema: Any, block: int) -> None:
    (graph,) = model.subgraphs
    (source,) = graph.outputs
    graph.tensors[graph.inputs[0]].name = b"raw"
    if graph.tensors[source].type == schema.TensorType.INT16:  # the built-in shuffle knows no int16
        flat = _as_float(schema, graph.tensors[source])
        source = _append_op(model, schema, "DEQUANTIZE", 3, source, flat, schema.DequantizeOptionsT())
    target = source if block == 1 else _shuffle_op(model, schema, source, block)
    graph.tensors[target].name = b"srgb"
    graph.outputs = [target]
    for signature in model.signatureDefs or []:
        signature.outputs[0].tensorIndex = target
        signature.inputs[0].name, signature.outputs[0].name = b"raw", b"srgb"


def _shuffle_op(model: Any, schema: Any, source: int, block: int) -> int:
    """Append the shuffle; the index of the picture it makes."""
    graph = model.subgraphs[0]
    image = copy.copy(graph.tensors[source])
    batch, height, width, channels = (int(n) for n in image.shape)
    image.shape = [batch, height * block, width * block, channels // block**2]
    options = schema.DepthToSpaceOptionsT()
    options.blockSize = block
    return _append_op(model, schema, "DEPTH_TO_SPACE", 1, source, image, options)


def _append_op(model: Any, schema: Any, name: str, version: int, source: int, result: Any, options: Any) -> int:
    """Add one op from tensor `source` to the new tensor `result` at the end; the index of `result`."""
    target = _new_tensor(model, result)
    model.subgraphs[0].operators.append(_op(model, schema, name, version, source, target, options))
    return target


def _new_tensor(model: Any, tensor: Any) -> int:
    """Add an activation tensor; its index."""
    tensor.buffer, tensor.shapeSignature = 0, None
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def _op(model: Any, schema: Any, name: str, version: int, source: int, target: int, options: Any) -> Any:
    code, op = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    code.version = version
    model.operatorCodes.append(code)
    op.opcodeIndex = len(model.operatorCodes) - 1
    op.inputs, op.outputs = [source], [target]
    op.builtinOptions = options
    op.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
    return op


def _put_back_to_float(model: Any, schema: Any, layer: FloatLayer) -> None:
    """x, CONV_2D, y becomes x, DEQUANTIZE, CONV_2D in float, QUANTIZE, y; float values need float weights only."""
    (graph,) = model.subgraphs
    at = _find_convolution(model, schema, layer.steps)
    conv = graph.operators[at]
    constants = []
    for index, values in ((conv.inputs[1], layer.weight), (conv.inputs[2], layer.bias)):
        tensor = copy.copy(graph.tensors[index])
        constants.append(_new_tensor(model, tensor))
        tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
        tensor.buffer = _new_buffer(model, schema, values.astype(np.float32))
    if graph.tensors[conv.inputs[0]].type == schema.TensorType.FLOAT32:
        conv.inputs = [conv.inputs[0], *constants]
        read = {int(i) for op in graph.operators for i in op.inputs} | {int(i) for i in graph.outputs}
        graph.operators = [op for op in graph.operators if not read.isdisjoint(int(i) for i in op.outputs)]
        return
    before, after = (_as_float(schema, graph.tensors[i]) for i in (conv.inputs[0], conv.outputs[0]))
    entry, exit_ = _new_tensor(model, before), _new_tensor(model, after)
    into = _op(model, schema, "DEQUANTIZE", 2, conv.inputs[0], entry, schema.DequantizeOptionsT())
    out = _op(model, schema, "QUANTIZE", 1, exit_, conv.outputs[0], schema.QuantizeOptionsT())
    conv.inputs, conv.outputs = [entry, *constants], [exit_]
    graph.operators[at : at + 1] = [into, conv, out]


def _new_buffer(model: Any, schema: Any, values: NDArray[Any]) -> int:
    """Add a constant; the index of its buffer."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _find_convolution(model: Any, schema: Any, steps: NDArray[np.int8]) -> int:
    """Place of the plain convolution with these weights, which it reads at once or through a DEQUANTIZE."""
    (graph,) = model.subgraphs
    kinds = [model.operatorCodes[op.opcodeIndex].builtinCode for op in graph.operators]
    stored_as = {
        int(op.outputs[0]): int(op.inputs[0])
        for kind, op in zip(kinds, graph.operators, strict=True)
        if kind == schema.BuiltinOperator.DEQUANTIZE
    }
    for at, (kind, op) in enumerate(zip(kinds, graph.operators, strict=True)):
        if kind == schema.BuiltinOperator.CONV_2D:
            weight = graph.tensors[stored_as.get(int(op.inputs[1]), int(op.inputs[1]))]
            data = model.buffers[weight.buffer].data
            if weight.type != schema.TensorType.INT8 or data is None or tuple(weight.shape) != steps.shape:
                continue
            if np.array_equal(np.frombuffer(bytes(data), np.int8), steps.ravel()):
                return at
    raise EguotError("TFLite: a layer to be put back to float is no plain convolution in the file")


def _widen_int16_biases(model: Any, schema: Any) -> None:
    """int32 biases beside int16 activations become int64: LiteRT 2.3 computes wrong values with int32 ones.

    The op versions go back to those of such kernels, so that tflite-runtime 2.14 takes the file too.
    """
    (graph,) = model.subgraphs
    bias_at = {getattr(schema.BuiltinOperator, name): at for name, at in BIAS_AT.items()}
    versions = {getattr(schema.BuiltinOperator, name): version for name, version in INT16_VERSION.items()}
    for op in graph.operators:
        at = bias_at.get(model.operatorCodes[op.opcodeIndex].builtinCode)
        if at is None or len(op.inputs) <= at or op.inputs[at] < 0:
            continue
        bias = graph.tensors[op.inputs[at]]
        if graph.tensors[op.outputs[0]].type != schema.TensorType.INT16 or bias.type != schema.TensorType.INT32:
            continue
        code = model.operatorCodes[op.opcodeIndex]
        code.version = min(code.version, versions[code.builtinCode])
        narrow = np.frombuffer(bytes(model.buffers[bias.buffer].data), np.int32)
        bias.buffer, bias.type = _new_buffer(model, schema, narrow.astype(np.int64)), schema.TensorType.INT64
