"""The reader of .onnx and .mlpackage against messages encoded by hand, and on damaged bytes.

That it agrees with the onnx and coremltools packages is tested with real conversions in tests/compress.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eguot_sdk.errors import IspFileError
from eguot_sdk.inspection import as_text, inspect_file
from eguot_sdk.protofile import describe_mlpackage, describe_onnx
from eguot_sdk.spec import IspSpec

SPEC = IspSpec(name="t", architecture="a", parameters=3, halo=4, layout="NCHW")


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def onnx_bytes(spec: IspSpec | None = SPEC) -> bytes:
    dims = b"".join(field(1, d) for d in (field(1, 1), field(1, 4), field(2, "h"), field(2, "w")))
    port = field(1, "raw") + field(2, field(1, field(1, 1) + field(2, dims)))
    weight = field(1, varint(8) + varint(3)) + field(2, 3) + field(8, "w") + field(9, b"\0" * 24)
    nodes = b"".join(field(1, field(4, op)) for op in ("Conv", "Relu", "Conv"))
    graph = nodes + field(5, weight) + field(11, port) + field(12, field(1, "srgb"))
    entry = b"" if spec is None else field(14, field(1, "EGUOT_ISP") + field(2, spec.to_json()))
    return field(1, 10) + field(2, "made by hand") + field(7, graph) + field(8, field(1, "") + field(2, 18)) + entry


def write_mlpackage(folder: Path, inside: str = "com.apple.CoreML/model.mlmodel") -> Path:
    array = varint(1) + varint(4) + varint(276) + varint(276)
    port = field(1, "raw") + field(3, field(5, field(1, array) + field(2, 65568)))
    metadata = field(100, field(1, "EGUOT_ISP") + field(2, SPEC.to_json()))
    description = field(1, port) + field(10, field(1, "srgb")) + field(100, metadata)
    block = b"".join(field(3, field(1, op)) for op in ("const", "conv", "relu", "conv"))
    program = field(1, 1) + field(2, field(1, "main") + field(2, field(3, field(1, "CoreML7") + field(2, block))))
    model = folder / "Data" / "com.apple.CoreML" / "model.mlmodel"
    (model.parent / "weights").mkdir(parents=True)
    model.write_bytes(field(1, 8) + field(2, description) + field(502, program))
    (model.parent / "weights" / "weight.bin").write_bytes(b"\0" * 100)
    manifest = {"itemInfoEntries": {"id": {"path": inside}}, "rootModelIdentifier": "id"}
    (folder / "Manifest.json").write_text(json.dumps(manifest))
    return folder


def test_an_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(onnx_bytes())
    facts = inspect_file(path)
    assert facts["ops"] == {"Conv": 2, "Relu": 1}
    assert facts["input"] == [{"name": "raw", "shape": [1, 4, "h", "w"], "dtype": "float32"}]
    assert facts["tensors"] == {"int8": {"count": 1, "constant_bytes": 24}}
    assert facts["opset"] == 18
    assert facts["spec"]["architecture"] == "a"
    assert "layout           NCHW" in as_text(facts)
    path.write_bytes(onnx_bytes(None))
    assert "no ISP spec inside" in as_text(inspect_file(path))


def test_a_core_ml_package(tmp_path: Path) -> None:
    facts = inspect_file(write_mlpackage(tmp_path / "a.mlpackage"))
    assert facts["ops"] == {"conv": 2, "relu": 1}
    assert facts["input"] == [{"name": "raw", "shape": [1, 4, 276, 276], "dtype": "float32"}]
    assert facts["constant_bytes"] == 100
    assert facts["specification"] == 8
    assert facts["spec"]["name"] == "t"
    assert "for the program that embeds it" in as_text(facts)


def test_a_package_that_points_outside_itself(tmp_path: Path) -> None:
    package = write_mlpackage(tmp_path / "a.mlpackage", "../../secret")
    (tmp_path / "secret").write_bytes(b"x")
    with pytest.raises(IspFileError, match="outside the package"):
        describe_mlpackage(package)


@pytest.mark.parametrize("manifest", ["", "[]", '{"itemInfoEntries": {}}', "[" * 100_000])
def test_a_bad_manifest(tmp_path: Path, manifest: str) -> None:
    package = write_mlpackage(tmp_path / "a.mlpackage")
    (package / "Manifest.json").write_text(manifest)
    with pytest.raises(IspFileError, match=r"a\.mlpackage: not a Core ML package"):
        describe_mlpackage(package)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_is_one_line_or_a_description(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Cut anywhere, or with bytes replaced: never another error, whatever the position."""
    whole = bytearray(onnx_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("cut") / "a.onnx"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        outcome = describe_onnx(path)["file"]
    except IspFileError as error:
        outcome = str(error)
    assert outcome.startswith("a.onnx")
    assert "\n" not in outcome


@pytest.mark.parametrize("inside", [field(1, b"\1" * 10_000_000), b"\x08\1" * 5_000_000])
def test_endless_lists_are_not_read_to_the_end(tmp_path: Path, inside: bytes) -> None:
    """Of numbers in one packed field, and of fields, in one message of many."""
    (tmp_path / "a.onnx").write_bytes(field(1, 10) + field(7, field(5, inside)))
    with pytest.raises(IspFileError, match="more than 1048576 fields"):
        describe_onnx(tmp_path / "a.onnx")


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    for content in (b"", b"PK\x03\x04" * 50, b"\xff" * 300):
        path.write_bytes(content)
        with pytest.raises(IspFileError):
            inspect_file(path)
