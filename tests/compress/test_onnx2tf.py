"""The second way to TFLite, checked against torch and against the first; skipped where TensorFlow is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from eguot_compress.convert import Converted, convert, plan
from eguot_compress.convert.formats import as_stored, from_stored
from eguot_compress.parity import Difference, run_tflite
from eguot_compress.ptq import quantize
from eguot_sdk.errors import MissingDependency, UsageError
from eguot_sdk.ispfile import describe, read_spec
from eguot_train.checkpoint import load_run

PRECISIONS = ("fp32", "fp16", "w8a8")
needs_onnx2tf = pytest.mark.filterwarnings("ignore")  # TensorFlow's own


@pytest.fixture(scope="module")
def files(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Converted]:
    for package in ("onnx2tf", "tensorflow", "onnxscript", "litert_torch"):
        pytest.importorskip(package, reason="the extra tensorflow is not installed")
    out = tmp_path_factory.mktemp("second")
    return {r.precision: r for r in convert(run, out, precisions=PRECISIONS, via="onnx2tf")}


@needs_onnx2tf
def test_both_ways_agree(run: Path, files: dict[str, Converted], tmp_path: Path) -> None:
    first = {r.precision: r for r in convert(run, tmp_path, precisions=PRECISIONS)}
    planes = torch.rand(1, 4, 34, 52, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    rendered = load_run(run).net(planes).detach()
    for precision, floor_db in (("fp32", 100), ("fp16", 60), ("w8a8", 25)):
        pictures = []
        for result in (first[precision], files[precision]):
            assert result.path is not None
            spec = read_spec(result.path)
            pictures.append(from_stored(run_tflite(result.path, as_stored(planes, spec)), spec))
        assert Difference.between(*pictures).psnr_db > floor_db
        assert Difference.between(pictures[1], rendered).psnr_db > floor_db


@needs_onnx2tf
def test_an_int8_file_says_its_own_scales(files: dict[str, Converted]) -> None:
    path = files["w8a8"].path
    assert path is not None
    spec, facts = read_spec(path), describe(path)
    for said, held in ((spec.input, facts["input"][0]), (spec.output, facts["output"][0])):
        assert (said.dtype, said.scale, said.zero_point) == (held["dtype"], held["scale"], held["zero_point"])
    assert set(facts["ops"]) == {"CONV_2D", "DEPTH_TO_SPACE"}
    with np.load(path.with_name("street.w8a8.golden.npz")) as golden:
        assert golden["input"].dtype == np.int8
    assert "tensorflow" in spec.provenance["tools"]


@needs_onnx2tf
def test_scales_of_a_quantised_run_are_not_silently_dropped(
    run: Path, files: dict[str, Converted], tmp_path: Path
) -> None:
    small = quantize(run, tmp_path / "small")
    with pytest.raises(UsageError, match="cannot carry the scales"):
        convert(small, tmp_path / "out", precisions=["w8a8"], via="onnx2tf")
    assert not (tmp_path / "out").exists()


def test_what_it_cannot_hold_is_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match="give --format tflite alone"):
        plan(["tflite", "onnx"], ["fp32"], "onnx2tf")
    with pytest.raises(UsageError, match="tflite by onnx2tf cannot hold w8a16"):
        plan(["tflite"], ["w8a16"], "onnx2tf")


def test_without_it_the_pip_line_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx2tf", None)
    with pytest.raises(MissingDependency, match=r"eguot-sdk\[tensorflow\]"):
        convert(tmp_path / "not-even-looked-for", tmp_path, via="onnx2tf")
    assert list(tmp_path.iterdir()) == []
