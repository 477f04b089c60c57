"""What a target will refuse or run slowly, found on the untrained network or on a finished file.

A network is traced, its deployed form, once with shapes; a .tflite is read. Rules come from conversions that were run
and from the targets' published op lists; what no rule knows is not reported, so a clean lint is no promise of speed.
"""

from __future__ import annotations

import bisect
import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.ispfile import describe
from eguot_train.checkpoint import build_isp, load_run, named_run
from eguot_train.isps import ISPS
from eguot_train.isps.base import IspNet
from eguot_train.isps.packed import written_out

from .fake_quant import UNFIT, ending_in_convolution, quantise_body, trace_body
from .integer_form import folded, integer_form

Target = Literal["tflite-cpu", "tflite-gpu", "nnapi", "coreml-ane"]
TARGETS: tuple[Target, ...] = get_args(Target)
Severity = Literal["error", "warning"]

_BASE = {
    "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DEPTH_TO_SPACE", "FULLY_CONNECTED",
    "LOGISTIC", "MAX_POOL_2D", "MEAN", "MUL", "PAD", "RELU", "RELU6", "RESHAPE", "RESIZE_BILINEAR", "SUB", "TANH",
    "TRANSPOSE_CONV", "STRIDED_SLICE", "QUANTIZE", "DEQUANTIZE", "PRELU",
}  # fmt: skip
_GPU = {
    "ABS", "DIV", "ELU", "EXP", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOG", "MAXIMUM", "MINIMUM", "MIRROR_PAD", "NEG",
    "PADV2", "POW", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "RELU_N1_TO_1", "RESIZE_NEAREST_NEIGHBOR", "RSQRT",
    "SELECT_V2", "SLICE", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQRT", "SQUARE", "SQUARED_DIFFERENCE",
    "SUM", "TILE", "TRANSPOSE",
}  # fmt: skip
DELEGATE_OPS: dict[Target, set[str]] = {
    "tflite-gpu": _BASE | _GPU,
    "nnapi": _BASE | {"SPACE_TO_DEPTH", "TRANSPOSE", "RESIZE_NEAREST_NEIGHBOR"},
}
"""Built-in ops a delegate takes; other ops of a file fall back to the CPU there. The GPU's are those that TensorFlow's
lite/tools/versioning/gpu_compatibility.cc (commit 03a5e4e19a9c) has a rule for."""

INT8 = "int8"
"""Where a finding lies that stops integer files only."""
INT16 = "everything: neither delegates nor XNNPACK take int16 values, and plain kernels are many times slower"
NEEDS_HALF = "everything: it computes in float32, the Neural Engine in fp16"

_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm)
_SHUFFLES: set[Any] = {nn.PixelShuffle, F.pixel_shuffle, torch.pixel_shuffle}
_UNSHUFFLES: set[Any] = {nn.PixelUnshuffle, F.pixel_unshuffle, torch.pixel_unshuffle}
_SQUASHES: set[Any] = {nn.Sigmoid, nn.Tanh, torch.sigmoid, torch.tanh, F.sigmoid, F.tanh, "sigmoid", "tanh"}
_RESIZERS: set[Any] = {F.interpolate, F.upsample, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d}
_TFLITE: tuple[Target, ...] = ("tflite-cpu", "tflite-gpu", "nnapi")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing a target does not take well."""

    severity: Severity
    targets: tuple[Target, ...]
    where: str
    """Layer or op."""
    what: str
    """What is wrong and what to do, one line."""


def lint(subject: str, targets: Sequence[str] = TARGETS) -> list[Finding]:
    """Findings for an architecture name, a run folder or a .tflite. Raises UsageError for what is none of them."""
    if not targets:
        raise UsageError(f"no target given: use some of {', '.join(TARGETS)}")
    for target in targets:
        if target not in TARGETS:
            raise UsageError(f"unknown target {target!r}: use some of {', '.join(TARGETS)}")
    path = named_run(Path(subject))
    if path.suffix == ".tflite":
        if not set(targets) & set(_TFLITE):
            raise UsageError(f"{path}: {', '.join(targets)} cannot run a .tflite: give its run, or other targets")
        found = list(lint_tflite(path))
    elif path.is_file() or path.suffix == ".mlpackage":
        raise UsageError(f"{path}: of files, lint reads .tflite; give one, a run folder or the name of an architecture")
    elif subject in ISPS or not path.exists():
        found = list(lint_network(build_isp(subject)))
    else:
        found = list(lint_network(load_run(path).net))
    wanted = []
    for finding in found:
        kept = tuple(t for t in finding.targets if t in targets)
        if kept:
            wanted.append(Finding(severity=finding.severity, targets=kept, where=finding.where, what=finding.what))
    return sorted(wanted, key=lambda f: f.severity)


def left_to_cpu(
    format_: str, ops: Iterable[str], *, half: bool = False, int16: bool = False
) -> dict[Target, list[str]]:
    """By target that can run files of a format: the ops its delegate does not take. `half`: the file computes in fp16;
    `int16`: its activations are int16.

    From published op lists, not from a device.
    """
    if format_ == "tflite" and int16:
        return {target: [INT16] for target in _TFLITE}
    if format_ == "tflite":
        found = {target: sorted(set(ops) - taken) for target, taken in DELEGATE_OPS.items()}
        return {"tflite-cpu": sorted(set(ops) & {"CUSTOM"}), **found}
    if format_ == "coreml" and not half:  # which fp16 ops the Neural Engine takes is not published
        return {"coreml-ane": [NEEDS_HALF]}
    return {}


def lint_network(net: IspNet) -> Iterator[Finding]:
    """Findings on the deployed form of a network, trained or not."""
    net = folded(written_out(net.deploy()).eval())
    yield from _context_findings(net)
    graph = trace_body(net)
    modules = dict(graph.named_modules())
    side = -(-96 // net.multiple) * net.multiple
    with torch.no_grad():
        ShapeProp(graph).propagate(torch.rand(1, 4, side, side))
    for node in graph.graph.nodes:
        for rule in (_rank, _shuffle, _slicing, _padding, _resizing, _activation, _norm):
            yield from rule(node, modules)
    try:
        quantise_body(integer_form(cast("IspNet", ending_in_convolution(net))))
    except EguotError as error:
        yield Finding(severity="error", targets=TARGETS, where=INT8, what=f"{error} (of integer files only)")


def _context_findings(net: IspNet) -> Iterator[Finding]:
    if net.global_context:
        yield Finding(
            severity="warning", targets=TARGETS, where=net.name,
            what="every output depends on the whole frame, so frames cannot be tiled: memory grows with the sensor",
        )  # fmt: skip
        return
    reach = receptive_margin(net)
    if reach > net.halo:
        yield Finding(
            severity="error", targets=TARGETS, where=net.name,
            what=f"halo is {net.halo}, but an output sees {reach} packed pixels past its tile: tiles would show seams",
        )  # fmt: skip


def receptive_margin(net: IspNet) -> int:
    """How many packed pixels past a tile's border an output inside it is computed from, in any direction.

    Beyond so many, NaN leaves the tile's output finite. No weight, closed ReLU, clip or maximum hides a NaN;
    `torch.where` would.
    """
    net = copy.deepcopy(net).eval().double()  # float32 kernels may share work between pixels, and so NaN
    farthest = net.halo + 8 * net.multiple
    first = -(-farthest // net.multiple) * net.multiple
    stop = first + 2 * net.multiple
    planes = torch.rand(1, 4, first + stop, first + stop, generator=torch.Generator().manual_seed(0)).double()

    def seen(margin: int) -> bool:
        """Whether the tile's output depends on anything farther than `margin`."""
        known = torch.full_like(planes, torch.nan)
        inside = slice(first - margin, stop + margin)
        known[..., inside, inside] = planes[..., inside, inside]
        tile = slice(2 * first, 2 * stop)
        return not bool(net(known)[..., tile, tile].isfinite().all())

    with torch.no_grad():
        return bisect.bisect_left(range(farthest), True, key=lambda margin: not seen(margin))


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    return type(modules[str(node.target)]) if node.op == "call_module" else node.target


def _where(node: fx.Node) -> str:
    return str(node.target).removeprefix("net.") if node.op == "call_module" else node.name


def _rank(node: fx.Node, modules: dict[str, nn.Module]) -> Iterator[Finding]:
    shape = getattr(node.meta.get("tensor_meta"), "shape", ())
    if len(shape) > 4:
        yield Finding(
            severity="error", targets=("tflite-gpu", "nnapi", "coreml-ane"), where=_where(node),
            what=f"a tensor of rank {len(shape)}; delegates take at most 4",
        )  # fmt: skip


def _shuffle(node: fx.Node, modules: dict[str, nn.Module]) -> Iterator[Finding]:
    kind = _kind(node, modules)
    if kind in _SHUFFLES or kind in _UNSHUFFLES or node.target in ("pixel_shuffle", "pixel_unshuffle"):
        yield Finding(
            severity="error", targets=_TFLITE, where=_where(node),
            what="a shuffle inside the body becomes a rank-6 reshape; use a strided convolution, or a transposed one "
            "that makes maps exactly `stride` times as large",
        )  # fmt: skip


def _slicing(node: fx.Node, modules: dict[str, nn.Module]) -> Iterator[Finding]:
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        if any(isinstance(part, slice) and part.step not in (None, 1) for part in index):
            yield Finding(
                severity="error", targets=_TFLITE, where=_where(node),
                what="strided slicing becomes GATHER_ND; use a stride-2 convolution with fixed weights",
            )  # fmt: skip


def _padding(node: fx.Node, modules: dict[str, nn.Module]) -> Iterator[Finding]:
    layer = modules.get(str(node.target)) if node.op == "call_module" else None
    if not isinstance(layer, nn.Conv2d):
        return
    widest = max(layer._reversed_padding_repeated_twice)
    if (layer.padding_mode == "circular" and widest > 0) or (layer.padding_mode == "replicate" and widest > 1):
        yield Finding(
            severity="error", targets=TARGETS if layer.padding_mode == "circular" else _TFLITE, where=_where(node),
            what=f"padding_mode {layer.padding_mode!r} ties a file to one tile, or has no op at all; "
            "use 'zeros' or 'reflect'",
        )  # fmt: skip


def _resizing(node: fx.Node, modules: dict[str, nn.Module]) -> Iterator[Finding]:
    if _kind(node, modules) in _RESIZERS:
        yield Finding(
            severity="error", targets=_TFLITE, where=_where(node),
            what="a resize ties a file to one tile; use a transposed convolution that makes maps exactly `stride` "
            "times as large (nearest: weights of ones, per channel)",
        )  # fmt: skip


def _activation(node: fx.Node, modules: dict[str, nn.Module]) -> Iterator[Finding]:
    kind = _kind(node, modules)
    if kind in (nn.PReLU, F.prelu, torch.prelu):
        yield Finding(
            severity="warning", targets=("tflite-cpu", "nnapi"), where=_where(node),
            what="PReLU has no fast int8 kernel: int8 files hold two depthwise convolutions and a sum for it; "
            "use ReLU or leaky ReLU",
        )  # fmt: skip
    if kind in (nn.ConvTranspose2d, F.conv_transpose2d):
        yield Finding(
            severity="error", targets=_TFLITE, where=_where(node),
            what=f"{UNFIT} ties a file to one tile; choose kernel and padding so that it does",
        )  # fmt: skip
    if kind in _SQUASHES and _reaches_output(node):
        yield Finding(
            severity="warning", targets=TARGETS, where=_where(node),
            what="a sigmoid or tanh at the end turns one step of its int8 input into several of the picture; "
            "end in a convolution, the output clamps by itself",
        )  # fmt: skip


def _reaches_output(node: fx.Node) -> bool:
    """Whether only scaling, shifting and clipping follow."""
    users = list(node.users)
    while len(users) == 1 and users[0].op != "output":
        others = [a for a in users[0].args[1:] if isinstance(a, fx.Node)]
        if others or users[0].op == "call_module":
            return False
        users = list(users[0].users)
    return len(users) == 1 and users[0].op == "output"


def _norm(node: fx.Node, modules: dict[str, nn.Module]) -> Iterator[Finding]:
    kind = _kind(node, modules)
    is_norm = isinstance(kind, type) and issubclass(kind, _NORMS)
    if is_norm or kind in (F.instance_norm, F.group_norm, F.layer_norm):
        yield Finding(
            severity="error", targets=TARGETS, where=_where(node),
            what="its statistics differ from tile to tile, which shows as seams; leave the norm out",
        )  # fmt: skip


def lint_tflite(path: Path) -> Iterator[Finding]:
    """Findings on a finished file."""
    facts = describe(path)
    ops: dict[str, int] = facts["ops"]
    if any(tensor["dtype"] == "int16" for tensor in facts["input"]):
        yield Finding(severity="warning", targets=_TFLITE, where=path.name, what=f"runtimes leave {INT16}; use w8a8")
    for op in ops:
        fallback = tuple(t for t, taken in DELEGATE_OPS.items() if op not in taken)
        if op == "CUSTOM":
            yield Finding(severity="error", targets=_TFLITE, where=op, what="not built in; no plain runtime has it")
        elif fallback:
            what = "not taken by the delegate: runs on the CPU"
            yield Finding(severity="warning", targets=fallback, where=op, what=what)
    rank = _largest_rank(path)
    if rank > 4:
        what = f"tensors of rank {rank}; delegates take at most 4"
        yield Finding(severity="error", targets=("tflite-gpu", "nnapi"), where=path.name, what=what)


def _largest_rank(path: Path) -> int:
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.Model.GetRootAs(path.read_bytes(), 0).Subgraphs(0)
    return max(graph.Tensors(i).ShapeLength() for i in range(graph.TensorsLength()))
