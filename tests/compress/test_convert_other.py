"""Core ML and ONNX files: real conversions, evaluated by the MIL interpreter and by onnxruntime."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eguot_compress.convert import Converted, Holding, convert
from eguot_compress.convert.formats import FORMATS, NEEDED, as_stored, from_stored
from eguot_compress.parity import Difference
from eguot_compress.ptq import post_train
from eguot_sdk.errors import MissingDependency
from eguot_sdk.inspection import inspect_file
from eguot_sdk.spec import IspSpec
from eguot_train.checkpoint import load_run
from eguot_train.isps.base import IspNet

PRECISIONS = ("fp32", "fp16", "w8", "w8a8")


@pytest.fixture(scope="module")
def onnx_files(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Converted]:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="the onnx extra is not installed")
    return {
        r.precision: r for r in convert(run, tmp_path_factory.mktemp("onnx"), formats=["onnx"], precisions=PRECISIONS)
    }


@pytest.fixture(scope="module")
def coreml_files(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Converted]:
    pytest.importorskip("coremltools", reason="the coreml extra is not installed")
    out = tmp_path_factory.mktemp("coreml")
    return {r.precision: r for r in convert(run, out, formats=["coreml"], precisions=PRECISIONS)}


def path_of(result: Converted) -> Path:
    assert result.path is not None
    return result.path


def test_onnx_reaches_parity(onnx_files: dict[str, Converted]) -> None:
    assert onnx_files["fp32"].parity.network.psnr_db > 100
    assert onnx_files["fp16"].parity.network.psnr_db > 60
    assert onnx_files["w8"].parity.twin.psnr_db > 100
    assert onnx_files["w8a8"].parity.twin.over_2_lsb <= 0.002
    assert onnx_files["w8a8"].bytes < 0.45 * onnx_files["fp32"].bytes


@pytest.mark.parametrize("precision", PRECISIONS)
def test_onnx_holds_plain_ops_its_spec_and_nothing_of_this_machine(
    onnx_files: dict[str, Converted], precision: str
) -> None:
    import onnx

    path = path_of(onnx_files[precision])
    model = onnx.load(str(path))
    ops = {n.op_type for n in model.graph.node}
    assert ops <= {"Conv", "Relu", "DepthToSpace", "QuantizeLinear", "DequantizeLinear", "Cast"}
    assert {n.domain for n in model.graph.node} == {""}
    (entry,) = [p for p in model.metadata_props if p.key == "EGUOT_ISP"]
    spec = IspSpec.from_json(entry.value)
    assert (spec.layout, spec.precision, spec.fixed_tile) == ("NCHW", precision, False)
    assert b"eguot_compress" not in path.read_bytes()
    with np.load(path.with_name(path.name + ".golden.npz")) as golden:
        assert spec.golden is not None
        assert hashlib.sha256(golden["output"].tobytes()).hexdigest() == spec.golden.output_sha256


def test_inspect_reads_an_onnx_file_as_onnx_does(onnx_files: dict[str, Converted]) -> None:
    import onnx

    path = path_of(onnx_files["w8a8"])
    facts, model = inspect_file(path), onnx.load(str(path))
    assert facts["ops"] == dict(Counter(n.op_type for n in model.graph.node).most_common())
    assert facts["constant_bytes"] == sum(onnx.numpy_helper.to_array(i).nbytes for i in model.graph.initializer)
    assert facts["input"][0] == {"name": "raw", "shape": [1, 4, "h", "w"], "dtype": "float32"}
    assert IspSpec.from_json(json.dumps(facts["spec"])).architecture == "qisp-s"


def test_inspect_reads_a_package_as_coremltools_does(coreml_files: dict[str, Converted]) -> None:
    from eguot_compress.convert.mil import MilProgram

    path = path_of(coreml_files["w8a8"])
    facts = inspect_file(path)
    assert facts["ops"] == dict(Counter(op.op_type for op in MilProgram(path).operations).most_common())
    side = facts["spec"]["tile"] + 2 * facts["spec"]["halo"]
    assert facts["input"] == [{"name": "raw", "shape": [1, 4, side, side], "dtype": "float32"}]
    assert facts["output"][0]["name"] == "srgb"
    assert facts["bytes"] == coreml_files["w8a8"].bytes
    assert facts["specification"] == 8


def test_onnx_takes_any_tile(run: Path, onnx_files: dict[str, Converted]) -> None:
    net = load_run(run).net
    planes = torch.rand(1, 4, 22, 36, generator=torch.Generator().manual_seed(0))
    got = FORMATS["onnx"].run(path_of(onnx_files["fp32"]), planes.numpy())
    np.testing.assert_allclose(got, net(planes).detach().numpy(), atol=1e-5)


def test_onnx_holds_every_scale(run: Path, onnx_files: dict[str, Converted]) -> None:
    import onnx

    from eguot_compress.calibration import load_calibration

    loaded = load_run(run)
    _, state = post_train(loaded.net.deploy(), load_calibration(loaded.config, None).tiles, bits=8)
    model = onnx.load(str(path_of(onnx_files["w8a8"])))
    values = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:  # constants may also be nodes
        if node.op_type == "Constant":
            values[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    scales = [values[n.input[1]] for n in model.graph.node if n.op_type == "DequantizeLinear"]
    per_tensor = {float(s) for s in scales if s.size == 1}
    per_channel = {tuple(s.tolist()) for s in scales if s.size > 1}
    assert per_tensor == {float(np.float32(s)) for s, _ in state.activations.values()}
    assert per_channel == {tuple(np.array(s, np.float32).tolist()) for s in state.weights.values()}


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML itself runs here")
def test_core_ml_reaches_parity(coreml_files: dict[str, Converted]) -> None:
    assert coreml_files["fp32"].parity.network.psnr_db > 80
    assert coreml_files["fp16"].parity.network.psnr_db > 60
    assert coreml_files["w8"].parity.twin.psnr_db > 45
    assert coreml_files["w8a8"].parity.twin.max_lsb <= 1.001  # scales are float32
    assert all("not run on Apple hardware" in r.runtime for r in coreml_files.values())


def test_core_ml_carries_its_spec(coreml_files: dict[str, Converted]) -> None:
    import coremltools

    path = path_of(coreml_files["w8"])
    assert path.name == "street.w8.mlpackage"
    metadata = coremltools.models.MLModel(str(path), skip_model_load=True).user_defined_metadata
    spec = IspSpec.from_json(metadata["EGUOT_ISP"])
    side = spec.tile + 2 * spec.halo
    assert spec.fixed_tile
    assert spec.golden is not None
    assert spec.golden.input_shape == (1, 4, side, side)


class _Varied(IspNet):
    """Ops of the MIL interpreter that QISP does not use; widths and strides that show swapped axes."""

    name, shuffle, halo, multiple = "varied", 2, 8, 2

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(4, 6, (3, 5), padding=(1, 2))
        self.down = nn.Conv2d(6, 8, 4, stride=2, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1)
        self.gate = nn.Conv2d(6, 6, 1)
        self.tail = nn.Conv2d(12, 12, 3, padding=2, dilation=2)

    def body(self, planes: Tensor) -> Tensor:
        first = nn.functional.leaky_relu(self.wide(planes), 0.2)
        second = self.up(torch.relu(self.down(first)))
        gated = second * torch.sigmoid(self.gate(first.mean((2, 3), keepdim=True)))
        pooled = nn.functional.interpolate(nn.functional.avg_pool2d(gated, 2), scale_factor=2.0, mode="nearest")
        return self.tail(torch.cat([first, torch.tanh(pooled) - gated], dim=1))  # type: ignore[no-any-return]


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML itself runs here")
def test_the_interpreter_against_torch_on_varied_ops(tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="the coreml extra is not installed")
    torch.manual_seed(0)
    net = _Varied().eval()
    path = tmp_path / "varied.mlpackage"
    FORMATS["coreml"].write(net, "fp32", path, side=24, state=None)
    planes = torch.rand(2, 4, 24, 24)
    got = FORMATS["coreml"].run(path, planes.numpy())
    np.testing.assert_allclose(got, net(planes).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("format_", ["onnx", "coreml"])
def test_a_layer_kept_in_float(tiny: IspNet, pictures: Tensor, tmp_path: Path, format_: str) -> None:
    kind = FORMATS[format_]  # type: ignore[index]
    pytest.importorskip({"onnx": "onnxscript", "coreml": "coremltools"}[format_], reason="the extra is not installed")
    held = Holding(*post_train(tiny, pictures, bits=8)).with_float_layer("tail", tiny)
    path = tmp_path / f"tiny.{kind.suffix}"
    kind.write(held.net, "w8a8", path, side=32, state=held.state)
    spec = IspSpec(name="t", architecture="t", parameters=1, halo=4, layout="NCHW")
    got = from_stored(kind.run(path, as_stored(pictures, spec)), spec)
    assert Difference.between(got, held.render(pictures)).over_2_lsb <= 0.002


@pytest.mark.parametrize(
    ("format_", "module", "extra"),
    [
        ("tflite", "litert_torch", "convert"),
        ("coreml", "coremltools", "coreml"),
        ("onnx", "onnxscript", "onnx"),
    ],
)
def test_a_missing_converter_is_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str, module: str, extra: str
) -> None:
    for needed in NEEDED[format_][2]:
        monkeypatch.setitem(sys.modules, needed, SimpleNamespace(__spec__=object()))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match=rf"{module.replace('_', '-')}.*eguot-sdk\[{extra}\]"):
        convert(tmp_path / "not-even-looked-for", tmp_path / "out", formats=[format_])
    assert list(tmp_path.iterdir()) == []


def test_all_missing_converters_are_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in NEEDED["tflite"][2]:
        monkeypatch.setitem(sys.modules, needed, SimpleNamespace(__spec__=object()))
    for needed in ("coremltools", "onnx", "onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, needed, None)
    with pytest.raises(MissingDependency, match=r"coremltools, onnx, .*'eguot-sdk\[coreml,onnx\]'"):
        convert(tmp_path / "not-even-looked-for", tmp_path / "out", formats=["coreml", "tflite", "onnx"])
