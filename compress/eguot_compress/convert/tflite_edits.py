"""What a .tflite from the converter still needs: the tail shuffle, and biases the int16 kernels read correctly.

torch's pixel_shuffle becomes a rank-6 reshape in every converter: slow, refused by GPU delegates, and fixed to one
size. The built-in DEPTH_TO_SPACE does the same at any size; it wants its channels in another order
(`fake_quant.permute_tail`). Spec and metadata are `eguot_sdk.ispfile`'s.
"""

from __future__ import annotations

import copy
from typing import Any

import flatbuffers
import numpy as np

BIAS_AT = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3}


def finish_tflite(data: bytes, block: int) -> bytes:
    """A converted body, one output [1, h, w, 3 * block**2] -> the file with the output [1, block*h, block*w, 3].

    int8 and float outputs keep type and scale, int16 leaves as float. Input and output are named `raw` and `srgb`.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    _widen_int16_biases(model, schema)
    _append_depth_to_space(model, schema, block)
    builder = flatbuffers.Builder(len(data) + 4096)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _append_depth_to_space(model: Any, schema: Any, block: int) -> None:
    (graph,) = model.subgraphs
    (source,) = graph.outputs
    graph.tensors[graph.inputs[0]].name = b"raw"
    graph.tensors[source].name = b"body"
    if graph.tensors[source].type == schema.TensorType.INT16:  # the built-in shuffle knows no int16
        flat = copy.copy(graph.tensors[source])
        flat.type, flat.quantization, flat.name = schema.TensorType.FLOAT32, None, b"body_float"
        source = _append_op(model, schema, "DEQUANTIZE", 3, source, flat, schema.DequantizeOptionsT())
    image = copy.copy(graph.tensors[source])
    batch, height, width, channels = (int(n) for n in image.shape)
    image.shape = [batch, height * block, width * block, channels // block**2]
    image.name = b"srgb"
    options = schema.DepthToSpaceOptionsT()
    options.blockSize = block
    target = _append_op(model, schema, "DEPTH_TO_SPACE", 1, source, image, options)
    graph.outputs = [target]
    for signature in model.signatureDefs or []:
        signature.outputs[0].tensorIndex = target
        signature.inputs[0].name, signature.outputs[0].name = b"raw", b"srgb"


def _append_op(model: Any, schema: Any, name: str, version: int, source: int, result: Any, options: Any) -> int:
    """Add one op from tensor `source` to the new tensor `result`; the index of `result`."""
    (graph,) = model.subgraphs
    code, op = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    code.version = version
    model.operatorCodes.append(code)
    result.buffer, result.shapeSignature = 0, None
    graph.tensors.append(result)
    op.opcodeIndex = len(model.operatorCodes) - 1
    op.inputs, op.outputs = [source], [len(graph.tensors) - 1]
    op.builtinOptions = options
    op.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
    graph.operators.append(op)
    return len(graph.tensors) - 1


def _widen_int16_biases(model: Any, schema: Any) -> None:
    """int32 biases beside int16 activations become int64: LiteRT 2.3 computes wrong values with int32 ones."""
    (graph,) = model.subgraphs
    bias_at = {getattr(schema.BuiltinOperator, name): at for name, at in BIAS_AT.items()}
    for op in graph.operators:
        at = bias_at.get(model.operatorCodes[op.opcodeIndex].builtinCode)
        if at is None or len(op.inputs) <= at or op.inputs[at] < 0:
            continue
        bias = graph.tensors[op.inputs[at]]
        if graph.tensors[op.outputs[0]].type != schema.TensorType.INT16 or bias.type != schema.TensorType.INT32:
            continue
        buffer = schema.BufferT()
        narrow = np.frombuffer(bytes(model.buffers[bias.buffer].data), np.int32)
        buffer.data = np.frombuffer(narrow.astype(np.int64).tobytes(), np.uint8)
        model.buffers.append(buffer)
        bias.buffer, bias.type = len(model.buffers) - 1, schema.TensorType.INT64
