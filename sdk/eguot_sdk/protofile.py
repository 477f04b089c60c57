"""What `inspect` shows of .onnx files and .mlpackage folders, read without their packages.

Both are Protocol Buffers. Files are untrusted: the small reader below checks every length against its enclosing
message, only descends into the fields named here, so that depth is bounded, and looks at so many fields of a file.
Field numbers are those of onnx.proto and of Core ML's Model.proto and MIL.proto.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import IspFileError
from .ispfile import MAX_FILE_BYTES, MAX_NAME_BYTES, METADATA_NAME
from .spec import IspSpec

MAX_MANIFEST_BYTES = 1 << 20
MAX_RANK = 16
MAX_FIELDS = 1 << 20
"""Most fields, and numbers in packed fields, of one file that are looked at: seconds."""
ONNX_TYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 10: "float16",
              11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16"}  # fmt: skip
ONNX_SIZES = {"float32": 4, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "int32": 4, "int64": 8, "float16": 2,
              "float64": 8, "uint32": 4, "uint64": 8, "bfloat16": 2}  # fmt: skip
CORE_ML_TYPES = {65552: "float16", 65568: "float32", 65600: "float64", 131104: "int32"}

DAMAGED = "damaged, or of another kind than its name says"

Value = int | memoryview


def describe_onnx(path: Path) -> dict[str, Any]:
    """Like `ispfile.describe`, of an .onnx file. Raises IspFileError where it is none or is damaged."""
    data = _bytes_of(path)
    try:
        model = _Message(memoryview(data))
        graph = model.message(7)
        if graph is None or not model.number(1):
            raise IspFileError("not an ONNX file")
        ops = Counter(node.text(4) for node in graph.messages(1))
        kinds: dict[str, dict[str, int]] = {}
        for tensor in graph.messages(5):
            name = ONNX_TYPES.get(tensor.number(2), f"type {tensor.number(2)}")
            kind = kinds.setdefault(name, {"count": 0, "constant_bytes": 0})
            kind["count"] += 1
            kind["constant_bytes"] += _elements(tensor.numbers(1)[:MAX_RANK]) * ONNX_SIZES.get(name, 0)
        found = {entry.text(1): entry.blob(2) for entry in model.messages(14)}
        return {
            "file": path.name,
            "format": "onnx",
            "bytes": len(data),
            "opset": max((o.number(2) for o in model.messages(8) if not o.text(1)), default=None),
            "ops": dict(ops.most_common()),
            "tensors": kinds,
            "constant_bytes": sum(kind["constant_bytes"] for kind in kinds.values()),
            "input": [_onnx_port(port) for port in graph.messages(11)],
            "output": [_onnx_port(port) for port in graph.messages(12)],
            "spec": _spec(found.get(METADATA_NAME)),
        }
    except IspFileError as error:
        raise IspFileError(f"{path.name}: {error}") from error


def describe_mlpackage(path: Path) -> dict[str, Any]:
    """Like `ispfile.describe`, of an .mlpackage folder. Raises IspFileError where it is none or is damaged."""
    try:
        files = [p for p in sorted(path.rglob("*")) if p.is_file()]
        data = _bytes_of(_root_model(path))
        model = _Message(memoryview(data))
        description, program = model.message(2), model.message(502)
        if description is None or program is None:
            raise IspFileError("not a Core ML package that holds an ML program")
        ops: Counter[str] = Counter()
        for function in program.mapped(2):
            for block in function.mapped(3):
                ops.update(op.text(1) for op in block.messages(3))
        metadata = description.message(100)
        found = {} if metadata is None else {entry.text(1): entry.blob(2) for entry in metadata.messages(100)}
        return {
            "file": path.name,
            "format": "coreml",
            "bytes": sum(p.stat().st_size for p in files),
            "specification": model.number(1),
            "ops": {name: count for name, count in ops.most_common() if name != "const"},
            "constant_bytes": sum(p.stat().st_size for p in files if p.name == "weight.bin"),
            "input": [_core_ml_port(port) for port in description.messages(1)],
            "output": [_core_ml_port(port) for port in description.messages(10)],
            "spec": _spec(found.get(METADATA_NAME)),
        }
    except IspFileError as error:
        raise IspFileError(f"{path.name}: {error}") from error


def _root_model(package: Path) -> Path:
    """The model file that a package's manifest names, inside the package."""
    try:
        manifest = package / "Manifest.json"
        if manifest.stat().st_size > MAX_MANIFEST_BYTES:
            raise IspFileError("its manifest is too large")
        entries = json.loads(manifest.read_bytes())
        inside = entries["itemInfoEntries"][entries["rootModelIdentifier"]]["path"]
        model: Path = (package / "Data" / inside).resolve()
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise IspFileError(f"not a Core ML package ({type(error).__name__} in Manifest.json)") from error
    if not model.is_relative_to(package.resolve()):
        raise IspFileError("its manifest points outside the package")
    return model


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise IspFileError(f"cannot be read ({error.strerror or error})") from error
    if len(data) > MAX_FILE_BYTES:
        raise IspFileError(f"larger than the {MAX_FILE_BYTES >> 20} MB an ISP file may have")
    return data


def _spec(found: bytes | None) -> dict[str, Any] | None:
    return None if found is None else dataclasses.asdict(IspSpec.from_json(found))


def _elements(dims: list[int]) -> int:
    count = 1
    for n in dims:
        count *= n
    return count


def _onnx_port(port: _Message) -> dict[str, Any]:
    kind = port.message(2)
    tensor = None if kind is None else kind.message(1)
    shape: list[int | str] = []
    code = 0
    if tensor is not None:
        code = tensor.number(1)
        dims = tensor.message(2)
        shape = [] if dims is None else [dim.text(2) or dim.number(1) for dim in dims.messages(1)]
    return {"name": port.text(1), "shape": shape, "dtype": ONNX_TYPES.get(code, f"type {code}")}


def _core_ml_port(port: _Message) -> dict[str, Any]:
    kind = port.message(3)
    array = None if kind is None else kind.message(5)
    if array is None:
        return {"name": port.text(1), "shape": [], "dtype": "unknown"}
    dtype = CORE_ML_TYPES.get(array.number(2), f"type {array.number(2)}")
    return {"name": port.text(1), "shape": array.numbers(1)[:MAX_RANK], "dtype": dtype}


class _Message:
    """A Protocol Buffers message in untrusted bytes. Messages inside it draw on its budget of fields."""

    def __init__(self, data: memoryview, budget: _Budget | None = None) -> None:
        self._budget = budget or _Budget()
        self._fields: dict[int, list[Value]] = {}
        for number, value in _fields(data, self._budget):
            self._fields.setdefault(number, []).append(value)

    def number(self, field: int) -> int:
        """The last value of a whole-number field, 0 where absent."""
        return next((v for v in reversed(self._fields.get(field, [])) if isinstance(v, int)), 0)

    def numbers(self, field: int) -> list[int]:
        """A repeated whole-number field, packed or not."""
        found: list[int] = []
        for value in self._fields.get(field, []):
            if isinstance(value, int):
                found.append(value)
            else:
                at = 0
                while at < len(value):
                    self._budget.take()
                    number, at = _varint(value, at)
                    found.append(number)
        return found

    def blob(self, field: int) -> bytes:
        """The last value of a bytes field."""
        return next((bytes(v) for v in reversed(self._fields.get(field, [])) if isinstance(v, memoryview)), b"")

    def text(self, field: int) -> str:
        """The last value of a text field."""
        return self.blob(field)[:MAX_NAME_BYTES].decode(errors="replace")

    def messages(self, field: int) -> Iterator[_Message]:
        """The messages of a repeated field."""
        return (_Message(v, self._budget) for v in self._fields.get(field, []) if isinstance(v, memoryview))

    def message(self, field: int) -> _Message | None:
        """The first message of a field."""
        return next(self.messages(field), None)

    def mapped(self, field: int) -> Iterator[_Message]:
        """The values of a map of messages."""
        return (value for entry in self.messages(field) if (value := entry.message(2)) is not None)


class _Budget:
    """How many more fields of a file are looked at."""

    def __init__(self) -> None:
        self._left = MAX_FIELDS

    def take(self) -> None:
        """Count one field. Raises IspFileError where there were too many."""
        self._left -= 1
        if self._left < 0:
            raise IspFileError(f"more than {MAX_FIELDS} fields make no sense")


def _fields(data: memoryview, budget: _Budget) -> Iterator[tuple[int, Value]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        budget.take()
        if number == 0:
            raise IspFileError(DAMAGED)
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:  # groups are of an older language
            raise IspFileError(DAMAGED)
        if at + size > len(data):
            raise IspFileError(DAMAGED)
        if kind == 2:
            yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise IspFileError(DAMAGED)
