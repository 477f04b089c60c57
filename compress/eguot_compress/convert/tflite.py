"""TFLite files: litert-torch for the graph, our own scales for integers, DEPTH_TO_SPACE for the tail.

Input 0 is packed planes [1, h, w, 4], output 0 is sRGB [1, 2h, 2w, 3]. The size written is a default: a runtime may
resize the input to any multiple of `net.multiple`. Integer files hold exactly the scales of the QuantBody given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from eguot_compress.fake_quant import (
    QuantConv,
    QuantState,
    float_body,
    has_inner_shuffles,
    in_file_order,
    orders,
    quantise_body,
)
from eguot_compress.quiet import quietly
from eguot_sdk.errors import EguotError, MissingDependency

from .tflite_edits import FloatLayer, finish_tflite

if TYPE_CHECKING:
    from eguot_sdk.spec import Precision
    from eguot_train.isps.base import IspNet

PARTITIONER = "MINCUT"
"""How the converter decides which ops it computes in NHWC. Its own choice for graphs of a thousand ops and more,
GREEDY, hands convolutions between Q and DQ (MicroISP in int8) maps of the other layout."""


def to_tflite(net: IspNet, precision: Precision, *, side: int, state: QuantState | None = None) -> bytes:
    """A .tflite without a spec. `side`: height and width written, packed pixels. `state`: scales of integer precisions.

    Raises EguotError when an op of the network cannot be converted, MissingDependency without litert-torch.
    """
    ordered = in_file_order(net).eval()
    inner = has_inner_shuffles(net)
    if state is not None:
        layers: list[FloatLayer] = []
        body = quantise_body(ordered, bits=state.bits)
        body.load_state(state.reordered(orders(net)))
        for name in state.float_layers:  # the converter would round their weights its own way: exchanged afterwards
            conv = body.convolutions()[name]
            layers.append(_float_layer(conv))
            conv.enabled = True
        with body.exporting():
            data = _litert(body, side, integers=True)
        return finish_tflite(data, net.shuffle, layers, inner_shuffles=inner)
    data = _litert(float_body(ordered).eval(), side, integers=False)
    return finish_tflite(_half_weights(data) if precision == "fp16" else data, net.shuffle, inner_shuffles=inner)


def _float_layer(conv: QuantConv) -> FloatLayer:
    """A convolution's weights in the layout of the file, [O, h, w, I]."""
    layer = conv.conv
    if layer.groups != 1 or layer.bias is None:
        raise EguotError("TFLite: only a plain convolution with a bias can be kept in float")
    weight, bias = layer.weight.detach().permute(0, 2, 3, 1), layer.bias.detach()
    return FloatLayer(conv.steps().permute(0, 2, 3, 1).contiguous().numpy(), weight.numpy(), bias.numpy())


def _litert(body: object, side: int, *, integers: bool) -> bytes:
    try:
        with quietly():
            import litert_torch
    except ImportError as error:
        raise MissingDependency("litert-torch", needed_for="a TFLite file", pip="'eguot-sdk[convert]'") from error
    with quietly():
        from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
        from litert_torch.quantize.quant_config import QuantConfig

        quantizer = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        wrapped = litert_torch.to_channel_last_io(body, args=[0], outputs=[0]).eval()
        config = litert_torch.config
        shown, config.show_progress = config.show_progress, False
        cut, config.layout_optimize_partitioner = config.layout_optimize_partitioner, PARTITIONER
        try:
            model = litert_torch.convert(
                wrapped, (torch.zeros(1, side, side, 4),),
                quant_config=QuantConfig(pt2e_quantizer=quantizer) if integers else None,
            )  # fmt: skip
            return bytes(model.model_content())
        except Exception as error:  # the converter raises whatever its passes raise
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EguotError(f"TFLite: the converter refuses this network: {first:.200}") from error
        finally:
            config.show_progress, config.layout_optimize_partitioner = shown, cut


def _half_weights(data: bytes) -> bytes:
    """The float file with fp16 weights that are turned back to float32 when it is loaded."""
    with quietly():
        from ai_edge_quantizer import qtyping, quantizer

        job = quantizer.Quantizer(bytearray(data))
        job.update_quantization_recipe(
            regex=".*",
            operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
            algorithm_key="float_casting",
            op_config=qtyping.OpQuantizationConfig(
                weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
                compute_precision=qtyping.ComputePrecision.FLOAT,
                explicit_dequantize=True,
            ),
        )
        return bytes(job.quantize(enable_progress_report=False).quantized_model)
