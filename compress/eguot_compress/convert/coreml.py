"""Core ML packages: mlprogram in fp32 or fp16, with int8 weights, or with every value quantised (Q/DQ).

Input `raw` [1, 4, tile, tile], output `srgb` [1, 3, 2 * tile, 2 * tile], both float32: one fixed tile, since flexible
shapes leave the Neural Engine. Q/DQ computes in float32, for fp16 scales would move nearly half of all values.
"""

from __future__ import annotations

import gc
import shutil
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

from .mil import MilProgram

if TYPE_CHECKING:
    from eguot_sdk.spec import Precision
    from eguot_train.isps.base import IspNet

MOVES_SCALES = "common::distributive_quantized_binary_op_scale_normalization"
"""A pass that folds the scale of a sum into its neighbours: same numbers, but other scales than the network's."""
POOLS = (torch.ops.aten.max_pool2d.default, torch.ops.aten.avg_pool2d.default)
FLOAT32_COMPUTE: tuple[Precision, ...] = ("fp32", "w8a8")


def write_coreml(net: IspNet, precision: Precision, path: Path, *, side: int, state: QuantState | None) -> None:
    """An .mlpackage without a spec. `side`: the one height and width it takes, packed pixels.

    Raises EguotError when an op cannot be converted, MissingDependency without coremltools.
    """
    if state is None:
        _convert(net, precision, path, side)
        return
    body = quantise_body(net, bits=state.bits)
    body.load_state(state)
    with body.exporting(stored=True):
        _convert(QuantIsp(body, net.shuffle), precision, path, side)


def embed_coreml(path: Path, spec: IspSpec) -> None:
    """Write the spec into the package's user-defined metadata."""
    with quietly():
        import coremltools

        model = coremltools.models.MLModel(str(path), skip_model_load=True)
        model.user_defined_metadata[METADATA_NAME] = spec.to_json()
        beside = path.with_name(f"with-spec-{path.name}")  # a package cannot be saved over itself
        model.save(str(beside))
        del model
        gc.collect()  # coremltools leaves its temporary folder to the collector, which would complain later
        shutil.rmtree(path)
        beside.rename(path)


def run_coreml(path: Path, planes: Tensor) -> Tensor:
    """[N, 4, tile, tile] -> [N, 3, 2 * tile, 2 * tile], float32: by Core ML on macOS, op by op elsewhere."""
    import sys

    if sys.platform != "darwin":
        program = MilProgram(path)
        return torch.cat([program.run(p[None]) for p in planes])
    import coremltools

    model = coremltools.models.MLModel(str(path))
    results = [model.predict({"raw": p[None].numpy()})["srgb"] for p in planes]
    return torch.from_numpy(np.concatenate(results).astype(np.float32))


def _convert(module: nn.Module, precision: Precision, path: Path, side: int) -> None:
    try:
        with quietly():
            import coremltools as ct
    except ImportError as error:
        raise MissingDependency("coremltools", needed_for="a Core ML file", pip="'eguot-sdk[coreml]'") from error
    example = torch.zeros(1, 4, side, side)
    compute = ct.precision.FLOAT32 if precision in FLOAT32_COMPUTE else ct.precision.FLOAT16
    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes([MOVES_SCALES])
    with quietly():
        try:
            with torch.no_grad():
                exported: Any = torch.export.export(module.eval(), (example,)).run_decompositions({})
            _spell_out_strides(exported)
            model = ct.convert(
                exported,
                convert_to="mlprogram",
                inputs=[ct.TensorType(name="raw", shape=example.shape, dtype=np.float32)],
                outputs=[ct.TensorType(name="srgb", dtype=np.float32)],
                compute_precision=compute,
                minimum_deployment_target=ct.target.iOS17,
                pass_pipeline=passes,
                skip_model_load=True,
            )
        except Exception as error:  # the converter raises whatever its passes raise
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EguotError(f"Core ML: the converter refuses this network: {first:.200}") from error
        model.save(str(path))
        del model, exported
        gc.collect()  # as above


def _spell_out_strides(exported: Any) -> None:
    """A pooling's stride is its kernel where none is given; the converter wants it said."""
    for node in exported.graph.nodes:
        if node.op == "call_function" and node.target in POOLS and len(node.args) == 2:
            node.args = (*node.args, node.args[1])
