"""Post-training quantisation: a float network becomes one whose weights lie on int8 steps, without training.

Plain rounding of these small networks costs dB: the inputs of a convolution are positive and alike, so rounding
errors of one filter add up to a cast. So weights are rounded one input at a time, and what one rounding broke the
inputs still to come make good, weighted by how they vary together (GPTQ, Frantar et al. 2022, arXiv 2210.17323);
then each bias takes up the mean error that is left. Every layer sees the inputs the quantised layers before it make.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from eguot_train.checkpoint import load_run
from eguot_train.isps.base import IspNet

from .calibration import load_calibration
from .fake_quant import Bits, QuantBody, QuantConv, QuantState, calibrate, quantise_body, refuse_linear
from .integer_form import float_form, integer_form
from .material import Folders
from .quant_run import building, refuse_existing, save_derived

DAMPING = 1e-3
HALF_TILES = 16
"""Crops that fp16 weights are rounded by: its errors are small, so fewer will do."""
COLUMNS_PER_TILE = 1024
BATCH = 8


def post_train(net: IspNet, tiles: Tensor, *, bits: Bits | None) -> tuple[IspNet, QuantState]:
    """A copy of `net` with quantised weights, and the scales. `tiles`: [N, 4, h, w] companded planes.

    `bits` of activations; None leaves them float. Raises EguotError for an op without integer form.
    """
    rounded = copy.deepcopy(net).eval()
    body, exact = quantise_body(rounded, bits=bits), quantise_body(net, bits=None)
    refuse_linear(exact.graph_module)
    batches = torch.split(tiles, BATCH)
    calibrate(body, batches)
    exact.enable(False)
    wanted = _mean_outputs(exact, batches)
    for name, conv, inputs in _in_order(body, batches):
        conv.fixed_scale = conv.scales().clone()
        exact_already = conv.conv.weight[0].numel() == 1  # one weight a filter lies on its own step
        if not exact_already:
            moments, mean = _input_statistics(conv.conv, inputs)
            _round_weights(conv, moments)
            _correct_bias(conv, mean, wanted[name])
    return rounded, body.state()


def half_weights(net: IspNet, tiles: Tensor) -> IspNet:
    """A copy of `net` whose convolutions hold fp16 numbers, in float32. `tiles`: [N, 4, h, w] companded planes.

    Rounded like int8 weights, one input at a time. A bias is the weight of an input that is always one; it comes first,
    for it is the largest number and so the one that fp16 leaves farthest off: a bias near one by up to a quarter of a
    thousandth, which alone is 72 dB.
    """
    rounded = copy.deepcopy(net).eval()
    body = quantise_body(rounded, bits=None)
    body.enable(False)
    batches = torch.split(tiles[:HALF_TILES], BATCH)
    for _, conv, inputs in _in_order(body, batches):
        layer = conv.conv
        moments, _ = _input_statistics(layer, inputs, ones=layer.bias is not None)
        per_group = layer.out_channels // layer.groups
        with torch.no_grad():
            for group, moment in enumerate(moments):
                rows = slice(group * per_group, (group + 1) * per_group)
                weight = layer.weight[rows].flatten(1)
                if layer.bias is not None:
                    weight = torch.cat([layer.bias[rows, None], weight], 1)
                found = _round_columns(weight, lambda column: column.half().double(), moment)
                if layer.bias is not None:
                    layer.bias[rows], found = found[:, 0], found[:, 1:]
                layer.weight[rows] = found.view_as(layer.weight[rows])
    return rounded


def _in_order(body: QuantBody, batches: Sequence[Tensor]) -> Iterator[tuple[str, QuantConv, list[Tensor]]]:
    """Every convolution in the order of the graph, once: its name, itself, its first input by batch.

    What is changed in it before the next is asked for, all layers after it see. One pass over the graph: a value is
    kept until its last reader has run.
    """
    graph_module = body.graph_module
    names = {conv: name for name, conv in body.convolutions().items()}
    last_reader = {source: node for node in graph_module.graph.nodes for source in node.all_input_nodes}
    runs = [fx.Interpreter(graph_module, garbage_collect_values=False) for _ in batches]
    for run, batch in zip(runs, batches, strict=True):
        run.args_iter = iter([batch])
    for node in graph_module.graph.nodes:
        layer = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, QuantConv) and layer in names:
            yield names.pop(layer), layer, [run.env[node.args[0]] for run in runs]
        for run in runs:
            with torch.no_grad():
                run.env[node] = run.run_node(node)
            for source in node.all_input_nodes:
                if last_reader[source] is node:
                    del run.env[source]


def _input_statistics(layer: nn.Conv2d, inputs: Sequence[Tensor], *, ones: bool = False) -> tuple[Tensor, Tensor]:
    """Means over places of one filter's inputs: products [groups, K, K] of a sample, values [groups, K] of all.

    `inputs`: [N, channels, h, w] by batch. `ones`: an input that is always one comes first.
    """
    size = layer.weight[0].numel() + ones
    moments = torch.zeros(layer.groups, size, size, dtype=torch.float64)
    mean = torch.zeros(layer.groups, size, dtype=torch.float64)
    places = 0
    for picture in (picture for batch in inputs for picture in batch):
        columns = F.unfold(_pad(picture[None], layer), layer.kernel_size, layer.dilation, 0, layer.stride)[0]
        columns = columns.reshape(layer.groups, size - ones, -1)
        if ones:
            columns = torch.cat([torch.ones_like(columns[:, :1]), columns], 1)
        mean += columns.mean(2)
        sample = columns[..., :: max(1, columns.shape[2] // COLUMNS_PER_TILE) | 1]
        moments += sample @ sample.mT
        places += sample.shape[2]
    return moments / places, mean / sum(len(batch) for batch in inputs)


def _pad(picture: Tensor, layer: nn.Conv2d) -> Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(picture, layer._reversed_padding_repeated_twice, mode)


def _round_weights(conv: QuantConv, moments: Tensor) -> None:
    layer, scale = conv.conv, conv.scales()
    per_group = len(scale) // len(moments)
    with torch.no_grad():
        for group, moment in enumerate(moments):
            rows = slice(group * per_group, (group + 1) * per_group)
            weight = layer.weight[rows].flatten(1)
            layer.weight[rows] = round_rows(weight, scale[rows], moment).view_as(layer.weight[rows])


def round_rows(weight: Tensor, scale: Tensor, moments: Tensor) -> Tensor:
    """Weights [O, K] on the steps of `scale` [O] that nearly minimise the output error for inputs of `moments` [K, K].

    float32 [O, K], each value a whole number in -127..127 times its row's scale.
    """
    step = scale.double()
    return _round_columns(weight, lambda column: torch.clamp(torch.round(column / step), -127, 127) * step, moments)


def _round_columns(weight: Tensor, rounded: Callable[[Tensor], Tensor], moments: Tensor) -> Tensor:
    """`weight` [O, K] column by column through `rounded`; what a column loses the columns still to come make good."""
    count = weight.shape[1]
    dead = moments.diagonal() == 0
    damped = (
        moments.double()
        + torch.eye(count, dtype=torch.float64) * max(float(moments.diagonal().mean()), 1e-12) * DAMPING
    )
    damped[dead, dead] = 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True)
    left = weight.double().clone()
    result = torch.empty_like(left)
    for i in range(count):
        result[:, i] = rounded(left[:, i])
        error = (left[:, i] - result[:, i]) / factor[i, i]
        left[:, i + 1 :] -= error[:, None] * factor[i, i + 1 :]
    return result.float()


def _correct_bias(conv: QuantConv, mean: Tensor, wanted: Tensor) -> None:
    """Shift the bias so that the mean output over all places is `wanted` [output channels]."""
    layer = conv.conv
    if layer.bias is None:
        return
    with torch.no_grad():
        weight = conv.weight().double().reshape(len(mean), -1, mean.shape[1])
        found = torch.einsum("gok,gk->go", weight, mean).flatten() + layer.bias.double()
        layer.bias.add_((wanted - found).float())


def _mean_outputs(body: QuantBody, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """[output channels] per convolution: mean over all tiles and places of its first call."""
    totals: dict[str, Tensor] = {}
    handles = []
    called: set[str] = set()
    for name, conv in body.convolutions().items():

        def add(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
            if name not in called:
                called.add(name)
                totals[name] = totals.get(name, torch.zeros(())) + output.double().flatten(2).mean(2).sum(0)

        handles.append(conv.register_forward_hook(add))
    with torch.no_grad():
        for batch in batches:
            called.clear()
            body(batch)
    for handle in handles:
        handle.remove()
    count = sum(len(b) for b in batches)
    return {name: total / count for name, total in totals.items()}


def quantize(run: Path, out: Path, *, folders: Folders | None = None, seed: int = 0) -> Path:
    """Post-training quantisation of a run into a new run that `convert --precision w8a8` takes as it is.

    Ranges and moments come from `folders`, else the run's own data, else procedural scenes.
    """
    run, folders = Path(run), folders or Folders()
    refuse_existing(out)
    loaded = load_run(run)
    folder, multiple = folders.pairs or folders.raw, loaded.net.multiple
    calibration = load_calibration(loaded.config, folder, seed=seed, multiple=multiple).suited_to(loaded.net)
    source = calibration.source
    print(f"calibration: {source['kind']} ({source['files']})", file=sys.stderr, flush=True)
    net = integer_form(float_form(loaded.net))
    quantised = post_train(net, calibration.tiles, bits=8)
    made_by = {"command": "quantize", "seed": seed, "from_step": loaded.step, "calibration": source}
    with building(out) as folder:
        config = dataclasses.replace(loaded.config, steps=loaded.step)
        save_derived(folder, config, loaded.net, loaded, made_by, quantised)
    return out
