"""The spec goes into a .tflite and comes out; whatever bytes a file holds, reading them ends well and soon."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eguot_sdk import ispfile
from eguot_sdk.errors import EguotError, IspFileError
from eguot_sdk.isp import ISP
from eguot_sdk.ispfile import describe, embed_spec, find_spec, pack_model, read_model, read_spec, unpack_model
from eguot_sdk.spec import IspSpec

schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="ai-edge-litert is not installed")

DATA = Path(__file__).resolve().parent.parent / "data"
TINY = DATA / "tiny.w8a8.tflite"
TINY_BYTES = TINY.read_bytes()
WORDS = len(TINY_BYTES) // 4


def edited(data: bytes, edit: Callable[[Any], None]) -> bytes:
    """The model with `edit` applied to its object form."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    edit(model)
    builder = flatbuffers.Builder(len(data) + 4096)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def entries(data: bytes) -> list[tuple[str, bytes]]:
    """Metadata entries as the generated reader sees them."""
    model = schema.Model.GetRootAs(data, 0)
    items = [model.Metadata(i) for i in range(model.MetadataLength())]
    return [(m.Name().decode(), model.Buffers(m.Buffer()).DataAsNumpy().tobytes()) for m in items]


def test_spec_round_trip(tmp_path: Path) -> None:
    spec = IspSpec(
        name="näme \u2713", architecture="a", parameters=7, halo=6, multiple=2,
        provenance={"deep": [1, {"x": None}]}, metrics=({"protocol": "plain", "psnr_db": 30.25},),
    )  # fmt: skip
    path = tmp_path / "x.tflite"
    path.write_bytes(embed_spec(TINY_BYTES, spec))
    assert read_spec(path) == spec
    assert read_spec(str(path)) == spec


def test_an_earlier_spec_is_replaced_and_other_metadata_kept() -> None:
    def note(model: Any) -> None:
        entry, buffer = schema.MetadataT(), schema.BufferT()
        buffer.data = np.frombuffer(b"hello", np.uint8)
        entry.name, entry.buffer = "note", len(model.buffers)
        model.buffers.append(buffer)
        model.metadata.append(entry)

    first = read_spec(TINY)
    data = edited(TINY_BYTES, note)
    second = embed_spec(data, first.replace(name="second"))
    names = [name for name, _ in entries(second)]
    assert names.count(ispfile.METADATA_NAME) == 1
    assert dict(entries(second))["note"] == b"hello"
    assert find_spec(second, "x") == first.replace(name="second")
    assert schema.Model.GetRootAs(second, 0).BuffersLength() == schema.Model.GetRootAs(data, 0).BuffersLength()
    assert embed_spec(second, first.replace(name="second")) == second


def test_a_model_without_spec_says_what_to_do(tmp_path: Path) -> None:
    def strip(model: Any) -> None:
        model.metadata = None

    path = tmp_path / "plain.tflite"
    path.write_bytes(edited(TINY_BYTES, strip))
    assert describe(path)["spec"] is None
    with pytest.raises(IspFileError, match=r"plain.tflite: no ISP spec inside: .*eguot-sdk convert"):
        read_spec(path)


def test_describe_agrees_with_the_generated_reader() -> None:
    told = describe(TINY)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(TINY_BYTES, 0))
    (graph,) = model.subgraphs
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    ops = [names[model.operatorCodes[op.opcodeIndex].builtinCode] for op in graph.operators]
    used = {t.buffer for t in graph.tensors}
    weights = sum(len(model.buffers[i].data) for i in used if model.buffers[i].data is not None)
    assert told["ops"] == {name: ops.count(name) for name in ops}
    assert told["ops"] == {"CONV_2D": 3, "DEPTH_TO_SPACE": 1}
    assert sum(kind["count"] for kind in told["tensors"].values()) == len(graph.tensors)
    assert told["constant_bytes"] == sum(kind["constant_bytes"] for kind in told["tensors"].values()) == weights
    assert told["bytes"] == len(TINY_BYTES)
    (given_input,), (given_output,) = told["input"], told["output"]
    assert given_input["shape"] == [1, 32, 32, 4]
    assert given_input["dtype"] == given_output["dtype"] == "int8"
    assert given_output["shape"] == [1, 64, 64, 3]
    assert given_output["scale"] == pytest.approx(1 / 255, rel=1e-6)
    assert given_output["zero_point"] == -128
    assert told["spec"]["name"] == "tiny w8a8"
    assert describe(DATA / "tiny.fp32.tflite")["input"][0]["scale"] is None


def weights_behind(data: bytes) -> bytes:
    """The model with every buffer of some size behind the FlatBuffer, as tools write larger models."""
    blobs: list[bytes] = []

    def move(model: Any, starts: list[int] | None = None) -> None:
        blobs.clear()
        for buffer in model.buffers:
            if buffer.data is not None and len(buffer.data) >= 64:
                blobs.append(bytes(buffer.data))
                buffer.data, buffer.size = None, len(blobs[-1])
                buffer.offset = starts[len(blobs) - 1] if starts else 1 << 20  # any number, for the size of the file

    front = edited(data, move)
    front += bytes(-len(front) % 16)
    sizes = [len(blob) + -len(blob) % 16 for blob in blobs]
    starts = [len(front) + sum(sizes[:i]) for i in range(len(blobs))]
    front = edited(data, lambda model: move(model, starts)).ljust(len(front), b"\0")
    return front + b"".join(blob.ljust(size, b"\0") for blob, size in zip(blobs, sizes, strict=True))


def test_weights_behind_the_flatbuffer_are_taken_along(tmp_path: Path) -> None:
    outside = weights_behind(TINY_BYTES)
    assert max(buffer.size for buffer in schema.ModelT.InitFromObj(schema.Model.GetRootAs(outside, 0)).buffers) > 64
    spec = read_spec(TINY)
    for name, data in (("inside", TINY_BYTES), ("outside", outside)):
        (tmp_path / f"{name}.tflite").write_bytes(data)
        (tmp_path / f"{name}-embedded.tflite").write_bytes(embed_spec(data, spec.replace(name="again")))
    assert find_spec(outside, "x") == spec
    assert describe(tmp_path / "outside.tflite")["constant_bytes"] == describe(TINY)["constant_bytes"]
    planes = np.random.default_rng(0).random((32, 32, 4), np.float32)
    wanted = ISP.load(TINY).run(planes)
    for name in ("outside.tflite", "inside-embedded.tflite", "outside-embedded.tflite"):
        assert np.array_equal(ISP.load(tmp_path / name).run(planes), wanted), name
    cut = outside[:-64]
    with pytest.raises(IspFileError, match="damaged"):
        embed_spec(cut, spec)


def test_equal_vectors_are_packed_once() -> None:
    def flat(data: bytes) -> list[object]:
        (graph,) = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0)).subgraphs
        return [
            (t.name, list(t.shape), list(t.quantization.scale), list(t.quantization.zeroPoint))
            for t in graph.tensors
            if t.quantization is not None and t.quantization.scale is not None
        ]

    plain = edited(TINY_BYTES, lambda model: None)
    shared = pack_model(unpack_model(plain))
    assert flat(shared) == flat(plain)
    assert len(shared) < len(plain) - 100
    assert pack_model(unpack_model(shared)) == shared


def test_names_are_those_of_the_schema() -> None:
    codes = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    assert [codes[i] for i in range(len(ispfile.OP_NAMES))] == list(ispfile.OP_NAMES)
    types = {v: k.lower() for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
    shared = min(len(types), len(ispfile.TENSOR_TYPES))
    assert [types[i] for i in range(shared)] == list(ispfile.TENSOR_TYPES[:shared])
    assert {codes[c] for c in ispfile.CONTROL_FLOW} == {
        "IF", "WHILE", "CALL", "CALL_ONCE", "STABLEHLO_WHILE", "STABLEHLO_CASE",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["WHILE", "STABLEHLO_WHILE", "CALL_ONCE"])
def test_loops_are_refused(name: str, tmp_path: Path) -> None:
    def loop(model: Any) -> None:
        code = model.operatorCodes[0]
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)

    path = tmp_path / "loop.tflite"
    path.write_bytes(edited(TINY_BYTES, loop))
    with pytest.raises(IspFileError, match=r"loop.tflite: control flow"):
        read_model(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    for name, content in {"empty": b"", "short": b"\0\0\0\0TFL", "text": b"hello, world, this is text"}.items():
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(content)
        with pytest.raises(IspFileError, match=f"^{name}.tflite: not a TFLite file$"):
            read_spec(path)
    with pytest.raises(IspFileError, match=r"^gone.tflite: no such file$"):
        read_spec(tmp_path / "gone.tflite")
    with pytest.raises(IspFileError, match="not a file"):
        read_spec(tmp_path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.tflite"
    with path.open("wb") as file:
        file.write(TINY_BYTES)
        file.truncate(ispfile.MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(IspFileError, match="larger than the 256 MB"):
        describe(path)


def test_a_spec_that_says_too_much_is_refused(tmp_path: Path) -> None:
    def grow(model: Any) -> None:
        model.buffers[model.metadata[-1].buffer].data = np.full(300_000, 32, np.uint8)

    names = [name for name, _ in entries(TINY_BYTES)]
    assert names[-1] == ispfile.METADATA_NAME
    path = tmp_path / "big.tflite"
    path.write_bytes(edited(TINY_BYTES, grow))
    with pytest.raises(IspFileError, match=r"big.tflite: damaged, or no ISP"):
        read_spec(path)


def check_ends_well(data: bytes, path: Path) -> None:
    """Reading `data` gives a result or one line that names the file."""
    path.write_bytes(data)
    for read in (read_spec, describe):
        message = refusal(read, path)
        assert message is None or re.fullmatch(rf"{re.escape(path.name)}: .+", message)  # a dot matches no line end


def test_long_lists_take_no_time(tmp_path: Path) -> None:
    def swell(model: Any) -> None:
        (graph,) = model.subgraphs
        model.operatorCodes = model.operatorCodes * 5000
        graph.operators = graph.operators * 5000
        model.metadata = model.metadata * 5000

    path = tmp_path / "long.tflite"
    path.write_bytes(edited(TINY_BYTES, swell))
    start = time.perf_counter()
    assert describe(path)["ops"]["CONV_2D"] == 15000
    assert time.perf_counter() - start < 5  # a list walked once per item of another would take minutes


def refusal(read: Callable[[Path], object], path: Path) -> str | None:
    """What the IspFileError says; None where there is none."""
    try:
        read(path)
    except IspFileError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "fuzz.tflite"


@settings(max_examples=300, deadline=2000)
@given(
    changes=st.lists(st.tuples(st.integers(0, WORDS - 1), st.integers(0, 2**32 - 1)), min_size=1, max_size=8),
    keep=st.one_of(st.just(len(TINY_BYTES)), st.integers(0, len(TINY_BYTES))),
)
def test_damaged_files_end_well(fuzzed: Path, changes: list[tuple[int, int]], keep: int) -> None:
    data = bytearray(TINY_BYTES)
    for word, value in changes:
        struct.pack_into("<I", data, 4 * word, value)
    check_ends_well(bytes(data[:keep]), fuzzed)


@settings(max_examples=300, deadline=2000)
@given(
    at=st.integers(0, len(TINY_BYTES) - 2),
    value=st.one_of(st.integers(0, 40), st.sampled_from([0x7FFF, 0x8000, 0xFFFF, 0xFFFC])),
)
def test_every_offset_may_lie(fuzzed: Path, at: int, value: int) -> None:
    data = bytearray(TINY_BYTES)
    struct.pack_into("<H", data, at, value)
    check_ends_well(bytes(data), fuzzed)


@settings(max_examples=200, deadline=2000)
@given(tail=st.binary(max_size=400))
def test_any_bytes_after_the_magic_end_well(fuzzed: Path, tail: bytes) -> None:
    check_ends_well(b"\x10\0\0\0TFL3" + tail, fuzzed)


@settings(max_examples=100, deadline=2000)
@given(at=st.integers(0, len(TINY_BYTES) - 4), value=st.integers(0, 2**32 - 1))
def test_embedding_into_damaged_bytes_ends_well(at: int, value: int) -> None:
    data = bytearray(TINY_BYTES)
    struct.pack_into("<I", data, at, value)
    try:
        result = embed_spec(bytes(data), read_spec(TINY))
    except EguotError:
        return
    assert find_spec(result, "x") == read_spec(TINY)
