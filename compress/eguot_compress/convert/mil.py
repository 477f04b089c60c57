"""Evaluates a Core ML program op by op, where Core ML itself is not at hand.

Reads an .mlpackage from disk, rebuilds its MIL program with coremltools and computes every op with torch, in float32,
or in float64 where the program quantises values, so that what the graph says is told from rounding inside a sum;
results that the program stores as fp16 are rounded to fp16. What this cannot know: Apple's own rounding inside an op,
compilation, and which processor takes what. Reports call it "evaluated, not run on Apple hardware".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eguot_compress.quiet import quietly
from eguot_sdk.errors import EguotError, MissingDependency

Values = Mapping[str, Any]


class MilProgram:
    """The `main` function of an .mlpackage with one input and one output."""

    def __init__(self, path: Path) -> None:
        """Raises MissingDependency without coremltools."""
        try:
            with quietly():
                import coremltools
                from coremltools.converters.mil.frontend.milproto.load import load

                model = coremltools.models.MLModel(str(path), skip_model_load=True)
                spec = model.get_spec()
                program = load(spec, spec.specificationVersion, file_weights_dir=model.weights_dir)
        except ImportError as error:
            raise MissingDependency("coremltools", needed_for="a Core ML file", pip="'eguot-sdk[coreml]'") from error
        self.function = program.functions["main"]
        self.operations = [op for op in self.function.operations if op.op_type != "const"]

    def run(self, planes: Tensor) -> Tensor:
        """The program on one input, float32 as the file takes it; its output in float32.

        Raises EguotError for an op this interpreter does not know.
        """
        for op in self.operations:
            if op.op_type not in OPS:
                raise EguotError(
                    f"Core ML op {op.op_type} cannot be evaluated here, so the file cannot be checked: convert on a "
                    f"Mac, or use {', '.join(sorted(OPS))}"
                )
        (entry,) = self.function.inputs.values()
        kind = torch.float64 if any(op.op_type == "quantize" for op in self.operations) else torch.float32
        known: dict[str, Tensor] = {entry.name: planes.to(kind)}
        with torch.no_grad():
            for op in self.operations:
                values = {key: _value(var, known, kind) for key, var in op.inputs.items() if var is not None}
                (result,) = op.outputs
                known[result.name] = _stored(OPS[op.op_type](values), result)
        return known[self.function.outputs[0].name].float()


def _value(var: Any, known: Mapping[str, Tensor], kind: torch.dtype) -> Any:
    if isinstance(var, list | tuple):
        return [_value(v, known, kind) for v in var]
    if var.name in known:
        return known[var.name]
    value = var.val
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.ndim:
        return torch.from_numpy(np.array(value)).to(kind if value.dtype.kind == "f" else torch.int64)
    return value.item() if isinstance(value, np.generic) else value


def _stored(result: Tensor, var: Any) -> Tensor:
    """As the program keeps it: fp16 results lose what fp16 cannot hold."""
    from coremltools.converters.mil.mil import types

    half = types.is_tensor(var.sym_type) and types.builtin_to_string(var.dtype) == "fp16"
    return result.half().to(result.dtype) if half else result


def _conv(v: Values) -> Tensor:
    strides, dilations, groups = _ints(v, "strides", [1, 1]), _ints(v, "dilations", [1, 1]), int(v.get("groups", 1))
    x = _padded(v, strides, dilations)
    return F.conv2d(x, v["weight"], v.get("bias"), strides, 0, dilations, groups)


def _conv_transpose(v: Values) -> Tensor:
    strides, groups = _ints(v, "strides", [1, 1]), int(v.get("groups", 1))
    full = F.conv_transpose2d(v["x"], v["weight"], v.get("bias"), strides, 0, 0, groups)
    top, bottom, left, right = _ints(v, "pad", [0, 0, 0, 0])
    height, width = full.shape[2] - top - bottom, full.shape[3] - left - right
    if v.get("output_shape") is not None:
        height, width = _ints(v, "output_shape", [])[2:]
        full = F.pad(full, (0, max(0, left + width - full.shape[3]), 0, max(0, top + height - full.shape[2])))
    return full[:, :, top : top + height, left : left + width]


def _padded(v: Values, strides: list[int], dilations: list[int]) -> Tensor:
    x, kind = v["x"], v.get("pad_type", "valid")
    if kind == "valid":
        return x
    if kind == "custom":
        top, bottom, left, right = _ints(v, "pad", [0, 0, 0, 0])
        return F.pad(x, (left, right, top, bottom))
    total = []
    for axis in (0, 1):
        size, kernel = x.shape[2 + axis], dilations[axis] * (v["weight"].shape[2 + axis] - 1) + 1
        total.append(max(0, (-(-size // strides[axis]) - 1) * strides[axis] + kernel - size))
    before = [-(-t // 2) if kind == "same_lower" else t // 2 for t in total]
    return F.pad(x, (before[1], total[1] - before[1], before[0], total[0] - before[0]))


def _ints(v: Values, key: str, default: list[int]) -> list[int]:
    found = v.get(key)
    return default if found is None else [int(n) for n in found]


def _along(value: Any, axis: Any, like: Tensor) -> Any:
    """A per-channel value shaped to broadcast over `axis`; a single one as it is."""
    if not isinstance(value, Tensor) or value.numel() == 1:
        return float(value)
    shape = [1] * like.ndim
    shape[int(axis)] = -1
    return value.reshape(shape)


def _quantize(v: Values) -> Tensor:
    x, low, high = v["input"], *((-128, 127) if v["output_dtype"] == "int8" else (0, 255))
    scale = _along(v["scale"], v.get("axis", 0), x)
    zero = 0 if v.get("zero_point") is None else _along(v["zero_point"], v.get("axis", 0), x)
    return torch.clamp(torch.round(x / scale) + zero, low, high)


def _dequantize(v: Values) -> Tensor:
    x = v["input"]
    zero = 0 if v.get("zero_point") is None else _along(v["zero_point"], v.get("axis", 0), x)
    return (x - zero) * _along(v["scale"], v.get("axis", 0), x)


def _constant_dequantize(v: Values) -> Tensor:
    data = v["quantized_data"]
    zero, scale = _along(v["zero_point"], v["axis"], data), _along(v["scale"], v["axis"], data)
    return (data - zero) * scale


def _pad_op(v: Values) -> Tensor:
    pads = _ints(v, "pad", [])
    pairs = [pads[i : i + 2] for i in range(0, len(pads), 2)]
    flat = [n for pair in reversed(pairs) for n in pair]
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "replicate"}
    mode = modes[v.get("mode", "constant")]
    if mode == "constant":
        return F.pad(v["x"], flat, mode, float(v.get("constant_val", 0.0)))
    return F.pad(v["x"], flat[:4], mode)


def _crop(v: Values) -> Tensor:
    x, (top, bottom), (left, right) = v["x"], _ints(v, "crop_height", []), _ints(v, "crop_width", [])
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _pool(v: Values, take: Callable[..., Tensor]) -> Tensor:
    sizes = _ints(v, "kernel_sizes", [])
    strides = _ints(v, "strides", sizes)
    if v.get("pad_type", "valid") != "valid" and any(_ints(v, "pad", [0, 0, 0, 0])):
        raise EguotError("Core ML pooling with padding cannot be evaluated here")
    return take(v["x"], sizes, strides)


OPS: dict[str, Callable[[Values], Tensor]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "pixel_shuffle": lambda v: F.pixel_shuffle(v["x"], int(v["upscale_factor"])),
    "relu": lambda v: torch.relu(v["x"]),
    "relu6": lambda v: v["x"].clamp(0, 6),
    "leaky_relu": lambda v: F.leaky_relu(v["x"], float(v["alpha"])),
    "prelu": lambda v: F.prelu(v["x"], v["alpha"]),
    "sigmoid": lambda v: torch.sigmoid(v["x"]),
    "tanh": lambda v: torch.tanh(v["x"]),
    "clip": lambda v: v["x"].clamp(float(v["alpha"]), float(v["beta"])),
    "add": lambda v: v["x"] + v["y"],
    "sub": lambda v: v["x"] - v["y"],
    "mul": lambda v: v["x"] * v["y"],
    "real_div": lambda v: v["x"] / v["y"],
    "concat": lambda v: torch.cat(list(v["values"]), int(v["axis"])),
    "reduce_mean": lambda v: v["x"].mean(_ints(v, "axes", []), bool(v.get("keep_dims", False))),
    "avg_pool": lambda v: _pool(v, F.avg_pool2d),
    "max_pool": lambda v: _pool(v, F.max_pool2d),
    "pad": _pad_op,
    "crop": _crop,
    "reshape": lambda v: v["x"].reshape(_ints(v, "shape", [])),
    "transpose": lambda v: v["x"].permute(_ints(v, "perm", [])),
    "upsample_nearest_neighbor": lambda v: F.interpolate(
        v["x"], scale_factor=(float(v["scale_factor_height"]), float(v["scale_factor_width"])), mode="nearest"
    ),
    "cast": lambda v: v["x"].to(torch.int32) if v["dtype"] == "int32" else v["x"],
    "identity": lambda v: v["x"],
    "quantize": _quantize,
    "dequantize": _dequantize,
    "constexpr_affine_dequantize": _constant_dequantize,
}
