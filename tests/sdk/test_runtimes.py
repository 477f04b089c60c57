"""Runtimes: what LiteRT makes of real, damaged and foreign models, and what is said when it is not there."""

from __future__ import annotations

import ctypes
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest

from eguot_sdk import ISP
from eguot_sdk.errors import IspFileError, MissingDependency, UsageError
from eguot_sdk.ispfile import embed_spec, read_spec
from eguot_sdk.runtimes import RUNTIMES, check_tensors, litert, open_runtime, runtime_factory
from eguot_sdk.runtimes.fake import FakeRuntime, fake_spec
from eguot_sdk.spec import TensorSpec

interpreters = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="ai-edge-litert is not installed")

DATA = Path(__file__).resolve().parent.parent / "data"
INT8, FLOAT, INT16 = (DATA / f"tiny.{precision}.tflite" for precision in ("w8a8", "fp32", "w8a16"))


def edited(data: bytes, edit: Callable[[Any], None]) -> bytes:
    """The model with `edit` applied to its object form."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    edit(model)
    builder = flatbuffers.Builder(len(data) + 4096)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("path", [INT8, FLOAT, INT16], ids=lambda path: path.stem)
def test_litert_gives_what_a_plain_interpreter_gives(path: Path) -> None:
    spec = read_spec(path)
    runtime = open_runtime(path)
    assert runtime.name.startswith("ai-edge-litert ")
    assert runtime.input_dtype == np.dtype(spec.input.dtype)
    assert runtime.output_dtype == np.dtype(spec.output.dtype)
    check_tensors(runtime, spec)
    rng = np.random.default_rng(0)
    for height, width in ((16, 24), (24, 16), (24, 16), (8, 8)):
        if spec.input.dtype == "float32":
            planes = rng.random((1, height, width, 4), dtype=np.float32)
        else:
            limits = np.iinfo(runtime.input_dtype)
            planes = rng.integers(max(0, limits.min), limits.max, (1, height, width, 4)).astype(runtime.input_dtype)
        runtime.resize(height, width)
        runtime.input()[...] = planes
        runtime.invoke()
        plain = interpreters.Interpreter(model_path=str(path))
        (given_input,), (given_output,) = plain.get_input_details(), plain.get_output_details()
        plain.resize_tensor_input(given_input["index"], planes.shape)
        plain.allocate_tensors()
        plain.set_tensor(given_input["index"], planes)
        plain.invoke()
        expected = plain.get_tensor(given_output["index"])
        assert expected.shape == (1, 2 * height, 2 * width, 3)
        np.testing.assert_allclose(runtime.output(), expected, rtol=0, atol=1e-6)
    runtime.close()
    runtime.close()


def test_all_runtimes_of_a_factory_run_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "isp.tflite"
    path.write_bytes(INT8.read_bytes())
    factory = runtime_factory(path)
    path.write_bytes(FLOAT.read_bytes())
    assert factory(1).input_dtype == factory(2).input_dtype == np.int8
    assert open_runtime(path).input_dtype == np.float32


def test_a_profiler_that_keeps_frames_does_not_stop_a_run() -> None:
    stop = threading.Event()

    def sample() -> None:
        while not stop.is_set():
            frames = sys._current_frames()  # as the profiler in each of Dask's workers
            time.sleep(0.003)
            del frames

    def fill(view: Any) -> None:
        view[...] = 1
        time.sleep(0.001)

    runtime = open_runtime(INT8)
    profiler = threading.Thread(target=sample)
    profiler.start()
    try:
        for side in (8, 16) * 100:
            runtime.resize(side, side)
            fill(runtime.input())
            runtime.invoke()
            assert runtime.output().shape == (1, 2 * side, 2 * side, 3)
    finally:
        stop.set()
        profiler.join()


def test_a_view_that_is_kept_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litert, "PATIENCE_S", 0.02)
    runtime = open_runtime(INT8)
    runtime.resize(8, 8)
    view = runtime.input()
    with pytest.raises(IspFileError, match="at least 1 reference to internal data"):
        runtime.invoke()
    del view
    runtime.invoke()


def test_the_suffix_chooses(tmp_path: Path) -> None:
    assert list(RUNTIMES) == [".tflite"]
    for name in ("isp.onnx", "isp", "isp.tflite.zip"):
        with pytest.raises(UsageError, match=r"ends in \.tflite"):
            open_runtime(name)
    (tmp_path / "config.json").touch()
    with pytest.raises(UsageError, match="a run folder; `eguot-sdk convert` makes an ISP file of it"):
        open_runtime(tmp_path)


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def test_without_litert_the_pip_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "ai_edge_litert.interpreter", "tflite_runtime", "tflite_runtime.interpreter")
    with pytest.raises(MissingDependency, match="pip install ai-edge-litert"):
        open_runtime(INT8)
    assert read_spec(INT8).name == "tiny w8a8"  # reading needs no runtime


def test_writing_a_spec_without_litert_gives_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("ai_edge_litert.schema_py_generated")
    hide(monkeypatch, "ai_edge_litert.schema_py_generated")
    with pytest.raises(MissingDependency, match="pip install ai-edge-litert"):
        embed_spec(INT8.read_bytes(), read_spec(INT8))


def test_tflite_runtime_is_the_second_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = types.ModuleType("tflite_runtime.interpreter")
    stand_in.Interpreter = interpreters.Interpreter  # type: ignore[attr-defined]
    hide(monkeypatch, "ai_edge_litert.interpreter")
    monkeypatch.setitem(sys.modules, "tflite_runtime", types.ModuleType("tflite_runtime"))
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", stand_in)
    assert open_runtime(INT8).name.startswith("tflite-runtime")


def test_delegates_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a file"):
        open_runtime(INT8, delegate=tmp_path / "gone.so")
    text = tmp_path / "text.so"
    text.write_text("no library")
    with pytest.raises(UsageError, match="cannot be loaded"):
        ISP.load(INT8, delegate=text)


DELEGATE = r"""
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
typedef struct Delegate {
    void *data; int (*prepare)(void *, struct Delegate *); void *hooks[3]; int64_t flags; void *builder;
} Delegate;
int calls;
static int prepare(void *context, Delegate *self) { calls++; return 0; }
static Delegate one = {NULL, prepare, {NULL, NULL, NULL}, 0, NULL};
Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t n, void (*report)(const char *)) {
    return &one;
}
void tflite_plugin_destroy_delegate(Delegate *self) {}
"""


def test_a_delegate_is_asked_and_a_plain_library_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a delegate with")
    for name, source in (("delegate", DELEGATE), ("plain", "int x;")):
        (tmp_path / f"{name}.c").write_text(source)
        command = [compiler, "-shared", "-fPIC", "-w", "-o", tmp_path / f"{name}.so", tmp_path / f"{name}.c"]
        subprocess.run(command, check=True)
    with pytest.raises(UsageError, match="not a TFLite delegate"):
        open_runtime(INT8, delegate=tmp_path / "plain.so")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="not a TFLite delegate"):
        open_runtime(INT8, delegate="plain.so")
    planes = np.random.default_rng(0).random((16, 16, 4), dtype=np.float32)
    with ISP.load(INT8) as isp, ISP.load(INT8, delegate=tmp_path / "delegate.so") as delegated:
        assert delegated.threads == 1
        assert delegated.runtime.endswith(", delegate.so")
        np.testing.assert_array_equal(delegated.run(planes), isp.run(planes))  # this delegate takes no operator
    assert ctypes.c_int.in_dll(ctypes.CDLL(str(tmp_path / "delegate.so")), "calls").value >= 1


def refusal(path: Path) -> str | None:
    """What the IspFileError of opening and running a model says; None where there is none."""
    try:
        runtime = open_runtime(path)
        runtime.resize(8, 8)
        runtime.invoke()
        runtime.output()
    except IspFileError as error:
        return str(error)
    return None


def test_damaged_models_end_in_one_line(tmp_path: Path) -> None:
    data = INT8.read_bytes()
    path = tmp_path / "bad.tflite"
    refused = 0
    for seed in range(150):
        rng = random.Random(seed)
        changed = bytearray(data)
        for _ in range(rng.choice([1, 4, 64])):
            changed[rng.randrange(len(changed))] = rng.choice([0, 1, 127, 128, 255])
        path.write_bytes(changed[: rng.choice([len(changed), rng.randrange(len(changed))])])
        message = refusal(path)
        refused += message is not None
        assert message is None or re.fullmatch(r"bad\.tflite: .+", message)  # a dot matches no line end
    assert 50 < refused < 150


def test_models_that_are_no_isp(tmp_path: Path) -> None:
    def two_outputs(model: Any) -> None:
        model.subgraphs[0].outputs = [*model.subgraphs[0].outputs, *model.subgraphs[0].operators[1].outputs]

    def body_only(model: Any) -> None:
        model.subgraphs[0].outputs = model.subgraphs[0].operators[0].outputs

    path = tmp_path / "other.tflite"
    path.write_bytes(edited(FLOAT.read_bytes(), two_outputs))
    with pytest.raises(IspFileError, match=r"other.tflite: .*one input and one output.*1 and 2"):
        open_runtime(path)
    path.write_bytes(edited(FLOAT.read_bytes(), body_only))
    with pytest.raises(IspFileError, match=r"other.tflite: an ISP gives \[1, H, W, 3\]"):
        ISP.load(path).run(np.zeros((8, 8, 4), np.float32))


@pytest.mark.parametrize(
    ("field", "tensor", "says"),
    [
        ("input", TensorSpec(dtype="int8", scale=1 / 128, zero_point=-128), "the input is int8 with scale 0.0078125"),
        ("input", TensorSpec(dtype="int8", scale=1 / 255, zero_point=0), "zero point 0, the model's is int8"),
        ("output", TensorSpec(dtype="uint8", scale=1 / 255, zero_point=-128), "the output is uint8"),
        ("output", TensorSpec(), "the output is float32, the model's is int8"),
    ],
)
def test_a_spec_that_contradicts_its_model_is_refused(
    field: str, tensor: TensorSpec, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "lies.tflite"
    path.write_bytes(embed_spec(INT8.read_bytes(), read_spec(INT8).replace(**{field: tensor})))
    with pytest.raises(IspFileError, match=says):
        ISP.load(path)


def test_a_size_the_model_cannot_take_is_refused() -> None:
    runtime = open_runtime(INT8)
    with pytest.raises(IspFileError, match=r"cannot take an input of 0 x 0|cannot take"):
        runtime.resize(-1, 8)
    runtime.resize(8, 8)
    runtime.invoke()
    assert runtime.output().shape == (1, 16, 16, 3)


def slow_fake(planes: np.ndarray) -> np.ndarray:
    """What FakeRuntime computes, pixel by pixel: float [h, w, 4] -> [2h, 2w, 3]."""
    height, width = planes.shape[:2]
    cells = np.stack([planes[..., 0], planes[..., 1:3].mean(axis=-1), planes[..., 3]], axis=-1).astype(np.float64)
    out = np.zeros((2 * height, 2 * width, 3))
    for y in range(2 * height):
        for x in range(2 * width):
            v, u = (y - 0.5) / 2, (x - 0.5) / 2  # place in cells
            for row in (int(np.floor(v)), int(np.floor(v)) + 1):
                for col in (int(np.floor(u)), int(np.floor(u)) + 1):
                    share = (1 - abs(v - row)) * (1 - abs(u - col))
                    out[y, x] += share * cells[min(max(row, 0), height - 1), min(max(col, 0), width - 1)]
    return out


def test_the_fake_is_bilinear() -> None:
    planes = np.random.default_rng(3).random((5, 7, 4), dtype=np.float32)
    runtime = FakeRuntime(fake_spec("float32"))
    runtime.resize(5, 7)
    runtime.input()[0] = planes
    runtime.invoke()
    np.testing.assert_allclose(runtime.output()[0], slow_fake(planes), atol=1e-6)
    np.testing.assert_allclose(ISP.fake(dtype="int8").run(planes), slow_fake(planes), atol=1 / 255)
    with pytest.raises(UsageError, match="int8 or float32"):
        fake_spec("int4")  # type: ignore[arg-type]


def test_an_isp_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent: no such file; an ISP file that runs here ends in"):
        ISP.load(tmp_path / "absent")
    with pytest.raises(UsageError, match="a folder; an ISP file that runs here ends in"):
        ISP.load(tmp_path)
