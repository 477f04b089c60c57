"""Real conversions, checked through the real runtime: numbers, sizes, ops, scales, spec, gates and error lines."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from eguot_compress.calibration import Calibration, load_calibration
from eguot_compress.cli import convert as command
from eguot_compress.convert import Converted, Holding, _refuse_unfit, convert, formats, plan
from eguot_compress.convert.formats import INT8, as_stored, from_stored
from eguot_compress.convert.tflite import to_tflite
from eguot_compress.fake_quant import QuantBody, QuantIsp, calibrate, quantise_body
from eguot_compress.parity import Difference, render, run_tflite
from eguot_compress.ptq import post_train
from eguot_sdk.errors import CheckpointError, EguotError, GateError, OutputError, UsageError
from eguot_sdk.ingest import dequantise
from eguot_sdk.ispfile import read_spec, unpack_model
from eguot_sdk.spec import IspSpec, TensorSpec
from eguot_train.checkpoint import build_isp, load_run
from eguot_train.isps.base import IspNet

MakeRun = Callable[..., Path]
ALL = ("fp32", "fp16", "w8", "w8a8", "w8a16")
BUILTINS = {"CONV_2D", "PAD", "ADD", "DEPTH_TO_SPACE", "DEQUANTIZE", "RELU"}


@pytest.fixture(scope="session")
def files(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Converted]:
    out = tmp_path_factory.mktemp("files")
    return {r.precision: r for r in convert(run, out, precisions=ALL)}


def graph_of(path: Path) -> tuple[list[str], list[tuple[list[int], int]], list[tuple[list[float], list[int]]]]:
    """Op names, (shape, type) of every tensor, (scales, zero points) of every quantised tensor."""
    from ai_edge_litert import schema_py_generated as schema

    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    (graph,) = model.subgraphs
    ops = [names[model.operatorCodes[op.opcodeIndex].builtinCode] for op in graph.operators]
    tensors = [([int(n) for n in t.shape], t.type) for t in graph.tensors]
    scales = [
        ([float(s) for s in t.quantization.scale], [int(z) for z in t.quantization.zeroPoint])
        for t in graph.tensors
        if t.quantization is not None and t.quantization.scale is not None
    ]
    return ops, tensors, scales


def test_every_precision_reaches_parity(files: dict[str, Converted]) -> None:
    assert [r.problem for r in files.values()] == [None] * 5
    assert files["fp32"].parity.network.psnr_db > 100
    assert files["fp16"].parity.network.psnr_db > 60
    assert files["w8"].parity.twin.psnr_db > 80
    assert files["w8a16"].parity.twin.psnr_db > 80
    assert files["w8a8"].parity.twin.over_2_lsb <= 0.002
    assert files["w8a8"].parity.network.psnr_db > 30


def test_names_and_sizes(files: dict[str, Converted]) -> None:
    assert sorted(p.name for p in files["fp32"].path.parent.iterdir()) == sorted(  # type: ignore[union-attr]
        f"street.{p}.{end}" for p in ALL for end in ("tflite", "golden.npz")
    )
    sizes = {p: files[p].bytes for p in ALL}
    assert sizes["w8a8"] < 0.45 * sizes["fp32"]
    assert sizes["w8"] < 0.45 * sizes["fp32"]
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


def test_a_file_of_three_thousand_weights_is_small(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", isp="efficientisp")
    sizes = {r.precision: r.bytes for r in convert(run, tmp_path / "out", precisions=["fp32", "w8a8"])}
    assert sizes["w8a8"] < 0.45 * sizes["fp32"]
    model = unpack_model((tmp_path / "out" / "run.w8a8.tflite").read_bytes())
    assert [t.name for t in model.subgraphs[0].tensors if t.name is not None] == [b"raw", b"srgb"]
    assert [m.name for m in model.metadata] == [b"EGUOT_ISP"]


@pytest.mark.parametrize("precision", ALL)
def test_only_builtin_ops_of_rank_four_at_most(files: dict[str, Converted], precision: str) -> None:
    ops, tensors, _ = graph_of(files[precision].path)  # type: ignore[arg-type]
    assert set(ops) <= BUILTINS, ops
    assert ops[-1] == "DEPTH_TO_SPACE"
    assert max(len(shape) for shape, _ in tensors) <= 4
    assert tensors[0][0][-1] == 4


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 0.02), ("w8a8", 4 / 255)])
@pytest.mark.parametrize("size", [(2, 2), (34, 50), (128, 20)])
def test_any_tile(
    run: Path, files: dict[str, Converted], precision: str, tolerance: float, size: tuple[int, int]
) -> None:
    """Zero padding at the borders is the same in torch and in the file, at every size."""
    path = files[precision].path
    assert path is not None
    spec = read_spec(path)
    planes = torch.rand(1, 4, *size, generator=torch.Generator().manual_seed(1)) * 0.2 + 0.4
    net = load_run(run).net
    expected = net(planes).detach()
    if precision == "w8a8":  # ranges were learned from other pictures: compare with the twin
        expected = QuantIsp(quantised(run), net.shuffle)(planes).detach()
    stored = run_tflite(path, as_stored(planes, spec))
    assert stored.shape == (1, 2 * size[0], 2 * size[1], 3)
    got = from_stored(stored, spec)
    assert float((got.clamp(0, 1) - expected.clamp(0, 1)).abs().max()) <= tolerance


def test_half_weights_of_a_larger_network(make_run: MakeRun, tmp_path: Path) -> None:
    """The quantiser puts the weights of a file of some size behind the FlatBuffer."""
    run = make_run(tmp_path / "run", isp="qisp-l")
    (result,) = convert(run, tmp_path / "out", precisions=["fp16"])
    assert result.parity.network.psnr_db > 60
    assert result.bytes < 0.6 * 4 * 332_400


def quantised(run: Path, bits: int | None = 8) -> QuantBody:
    """The quantised body that `convert` makes of a float run: same seeds, same crops."""
    loaded = load_run(run)
    net, state = post_train(loaded.net.deploy(), load_calibration(loaded.config, None).tiles, bits=bits)  # type: ignore[arg-type]
    body = quantise_body(net, bits=bits)  # type: ignore[arg-type]
    body.load_state(state)
    return body


def test_the_file_holds_every_scale_exactly(run: Path, files: dict[str, Converted]) -> None:
    body = quantised(run)
    state = body.state()
    _, _, stored = graph_of(files["w8a8"].path)  # type: ignore[arg-type]
    per_tensor = {(s[0], z[0]) for s, z in stored if len(s) == 1}
    assert per_tensor == {(float(np.float32(s)), z) for s, z in state.activations.values()}
    per_channel = sorted(tuple(sorted(s)) for s, _ in stored if len(s) > 1)
    weights = [tuple(sorted(c.scales().tolist())) for c in body.convolutions().values()]
    assert all(w in per_channel for w in weights)


def test_int16_biases_are_wide(files: dict[str, Converted]) -> None:
    from ai_edge_litert import schema_py_generated as schema

    _, tensors, _ = graph_of(files["w8a16"].path)  # type: ignore[arg-type]
    kinds = [kind for shape, kind in tensors if len(shape) == 1]
    assert kinds
    assert set(kinds) == {schema.TensorType.INT64}


@pytest.mark.parametrize("precision", ALL)
def test_spec_and_golden_pair(files: dict[str, Converted], precision: str) -> None:
    path = files[precision].path
    assert path is not None
    spec = read_spec(path)
    assert (spec.name, spec.architecture, spec.precision) == ("street", "qisp-s", precision)
    assert spec.tile % spec.multiple == 0
    assert spec.scale_factor == 2
    assert spec.provenance["golden"]["kind"] == "procedural scenes"
    assert spec.provenance.get("calibration") == (None if precision == "fp32" else spec.provenance["golden"])
    assert "litert-torch" in spec.provenance["tools"]
    assert str(path.parent) not in spec.to_json()
    with np.load(path.with_name(f"street.{precision}.golden.npz")) as golden:
        stored_in, stored_out = golden["input"], golden["output"]
    assert spec.golden is not None
    assert spec.golden.input_shape == stored_in.shape
    assert hashlib.sha256(stored_in.tobytes()).hexdigest() == spec.golden.input_sha256
    assert hashlib.sha256(stored_out.tobytes()).hexdigest() == spec.golden.output_sha256
    assert stored_in.dtype == spec.input.dtype
    assert stored_out.dtype == spec.output.dtype
    np.testing.assert_allclose(run_tflite(path, stored_in).astype(float), stored_out.astype(float), atol=1e-6)


def test_integer_input_and_output_are_fixed_to_unit_range(files: dict[str, Converted]) -> None:
    spec = read_spec(files["w8a8"].path)  # type: ignore[arg-type]
    unit = TensorSpec(dtype="int8", scale=float(np.float32(1 / 255)), zero_point=-128)
    assert (spec.input, spec.output) == (unit, unit)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_sum_and_a_body_at_packed_resolution(tiny: IspNet, tmp_path: Path, pictures: Tensor, bits: int) -> None:
    body = quantise_body(tiny, bits=bits)  # type: ignore[arg-type]
    calibrate(body, pictures.split(2))
    path = tmp_path / "tiny.tflite"
    path.write_bytes(to_tflite(tiny, "w8a8" if bits == 8 else "w8a16", side=16, state=body.state()))
    spec = IspSpec(name="t", architecture="t", parameters=1, halo=4,
                   input=TensorSpec(dtype="int8", scale=1 / 255, zero_point=-128) if bits == 8
                   else TensorSpec(dtype="int16", scale=1 / 32767))  # fmt: skip
    stored = run_tflite(path, as_stored(pictures, spec))
    got = torch.from_numpy(dequantise(stored, spec.input if bits == 8 else TensorSpec())).permute(0, 3, 1, 2)
    twin = QuantIsp(body, 2)(pictures).detach()
    found = Difference.between(got, twin)
    assert found.over_2_lsb <= 0.002
    assert found.max_lsb < (4 if bits == 8 else 0.5)


def test_calibration_from_the_runs_own_pairs_gives_a_measured_drop(
    tmp_path: Path, pairs: Path, make_run: MakeRun
) -> None:
    run = make_run(tmp_path / "run", pairs=str(pairs))
    (result,) = convert(run, tmp_path / "out", precisions=["w8a8"])
    assert result.parity.drop_basis == "pairs"
    assert read_spec(result.path).provenance["calibration"]["kind"] == "pairs"  # type: ignore[arg-type]


# Gates: no file that looks good.


def test_a_drop_above_the_gate_is_exit_3_and_no_file(run: Path, tmp_path: Path) -> None:
    convert(run, tmp_path, precisions=["w8a8"])
    result = CliRunner().invoke(
        command, [str(run), "--precision", "fp32,w8a8", "--out", str(tmp_path), "--max-drop-db", "0.00001"]
    )
    assert isinstance(result.exception, GateError)
    assert "tflite w8a8: loses" in str(result.exception)
    assert "(estimated, --calibration PAIRS measures it; allow a larger" in str(result.exception)
    assert "worst layer is" in str(result.exception)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["street.fp32.golden.npz", "street.fp32.tflite"]


@pytest.mark.parametrize("value", ["nan", "-1", "inf"])
def test_a_gate_that_is_no_number_of_db_is_refused_at_once(tmp_path: Path, value: str) -> None:
    result = CliRunner().invoke(command, ["gone", "--out", str(tmp_path / "out"), "--max-drop-db", value])
    assert result.exit_code == 2
    assert "--max-drop-db" in result.stderr


def test_a_file_of_another_network_is_found_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relive: Callable[[IspNet, int], IspNet]
) -> None:
    real = formats.to_tflite

    def damaged(net: IspNet, *args: Any, **kwargs: Any) -> bytes:
        return real(relive(type(net)().deploy(), 3), *args, **kwargs)

    monkeypatch.setattr(formats, "to_tflite", damaged)
    with pytest.raises(GateError, match=r"fp32.*dB to torch"):
        convert(run, tmp_path / "files")
    assert not (tmp_path / "files").exists()


def test_swapped_tail_channels_are_found_out(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eguot_compress.convert import tflite

    monkeypatch.setattr(tflite, "in_file_order", lambda net: net)
    with pytest.raises(GateError, match="dB to torch"):
        convert(run, tmp_path)


def test_a_layer_kept_in_float(tiny: IspNet, tmp_path: Path, pictures: Tensor) -> None:
    """Between a DEQUANTIZE and a QUANTIZE, with the weights it had before rounding."""
    rounded, state = post_train(tiny, pictures, bits=8)
    held = Holding(rounded, state).with_float_layer("first", tiny)
    path = tmp_path / "tiny.tflite"
    path.write_bytes(to_tflite(held.net, "w8a8", side=16, state=held.state))
    ops, _, _ = graph_of(path)
    at = ops.index("DEQUANTIZE")
    assert ops[at : at + 3] == ["DEQUANTIZE", "CONV_2D", "QUANTIZE"]
    spec = IspSpec(name="t", architecture="t", parameters=1, halo=4, input=INT8, output=INT8)
    got = from_stored(run_tflite(path, as_stored(pictures, spec)), spec)
    assert Difference.between(got, held.render(pictures)).over_2_lsb <= 0.002


def test_a_layer_kept_in_float_beside_int8_weights(tiny: IspNet, tmp_path: Path, pictures: Tensor) -> None:
    """The weights it had before rounding, and no DEQUANTIZE."""
    rounded, state = post_train(tiny, pictures, bits=None)
    held = Holding(rounded, state).with_float_layer("first", tiny)
    path = tmp_path / "tiny.tflite"
    path.write_bytes(to_tflite(held.net, "w8", side=16, state=held.state))
    ops, _, _ = graph_of(path)
    assert (ops.count("CONV_2D"), ops.count("DEQUANTIZE")) == (4, 3)
    by_hand = copy.deepcopy(rounded)
    by_hand.get_submodule("first").load_state_dict(tiny.get_submodule("first").state_dict())
    spec = IspSpec(name="t", architecture="t", parameters=1, halo=4)
    got = from_stored(run_tflite(path, as_stored(pictures, spec)), spec)
    assert Difference.between(got, render(by_hand, pictures)).psnr_db > 100


def test_the_worst_layer_is_the_one_that_was_damaged(tiny: IspNet, pictures: Tensor) -> None:
    rounded, state = post_train(tiny, pictures, bits=8)
    with torch.no_grad():
        rounded.get_submodule("second").weight.mul_(1.2)  # type: ignore[operator, union-attr]
    check = Calibration(pictures, pictures, None, {})
    found = Holding(rounded, state).worst_layer(tiny, render(tiny, pictures), check)
    assert found is not None
    assert found[0] == "second"


# Command.


def test_json_alone_on_stdout(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = CliRunner().invoke(command, [str(run), "--out", str(tmp_path), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    (entry,) = json.loads(result.stdout)["files"]
    assert entry["precision"] == "fp32"
    assert Path(entry["path"]).is_file()
    assert "converting" in result.stderr
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_table(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(run), "--out", str(tmp_path / "new" / "folder")], catch_exceptions=False)
    assert "street.fp32.tflite" in result.stdout
    assert "drop dB" in result.stdout


@pytest.mark.parametrize(
    ("asked", "precisions", "words"),
    [
        (["tflite"], ["int4"], "unknown precision 'int4'"),
        (["pickle"], ["fp32"], "unknown format 'pickle'"),
        (["coreml", "onnx"], ["w8a16"], "coreml cannot hold w8a16"),
        ([], ["fp32"], "no format"),
        (["tflite"], [], "no precision"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(asked: list[str], precisions: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan(asked, precisions)


def test_what_lint_refuses_is_refused_before_any_work() -> None:
    net = build_isp("liteispnet")
    for jobs in ([("tflite", "fp32")], [("coreml", "fp16")], [("onnx", "fp32"), ("onnx", "w8a8")]):
        with pytest.raises(EguotError, match="liteispnet cannot become") as caught:
            _refuse_unfit(net, "liteispnet", jobs)  # type: ignore[arg-type]
        assert "lint" in str(caught.value)
        assert "\n" not in str(caught.value)
    _refuse_unfit(net, "liteispnet", [("onnx", "fp32")])
    _refuse_unfit(build_isp("microisp"), "microisp", [("tflite", "w8a8"), ("coreml", "fp32")])


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run folder"):
        convert(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "foreign", "other"])
def test_a_bad_checkpoint(tmp_path: Path, damage: str, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "run")
    (path,) = (run / "checkpoints").iterdir()
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "foreign":
        path.write_bytes(b"PK\x03\x04" + data[4:])
    else:
        config = (run / "config.json").read_text()
        (run / "config.json").write_text(config.replace("qisp-s", "qisp-m"))
    with pytest.raises(CheckpointError) as caught:
        convert(run, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_calibration_folder_without_raws(run: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no raws here")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match="calibration"):
            convert(run, tmp_path / "out", precisions=["w8a8"], calibration=folder)
    assert not (tmp_path / "out").exists()


def test_out_is_a_file(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="folder"):
        convert(run, tmp_path / "out")


def test_an_op_the_converter_does_not_know(tiny: IspNet, relive: Callable[[IspNet, int], IspNet]) -> None:
    class Odd(type(tiny)):  # type: ignore[misc]
        def body(self, planes: Tensor) -> Tensor:
            return super().body(torch.special.bessel_j0(planes))  # type: ignore[no-any-return]

    with pytest.raises(EguotError, match="refuses this network") as caught:
        to_tflite(relive(Odd(), 0), "fp32", side=16)
    assert "\n" not in str(caught.value)
