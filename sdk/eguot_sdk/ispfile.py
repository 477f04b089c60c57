"""ISP files: reading the spec out of a .tflite, writing it in, and saying what the file holds.

A .tflite is a FlatBuffer; the spec is the bytes of the buffer that its metadata entry EGUOT_ISP names. Files are
untrusted: reading goes through the small reader below, which checks every offset and bounds every count, and needs
neither a runtime nor the flatbuffers package. Writing uses the object API of `ai_edge_litert`.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from .errors import IspFileError, MissingDependency
from .spec import MAX_SPEC_BYTES, IspSpec

METADATA_NAME = "EGUOT_ISP"
MAX_FILE_BYTES = 256 * 1024 * 1024
MAX_ITEMS = 65536
"""Most tensors, operators, buffers or other entries an ISP file may list."""
MAX_NAME_BYTES = 4096
MAX_PORTS = 64
"""Most inputs or outputs a model is described with."""
DAMAGED = "the TFLite file is damaged"

T = TypeVar("T")

# Names of the TFLite schema in the order of their codes; ops that came later are shown by number.
_TYPES = """
    float32 float16 int32 uint8 int64 string bool int16 complex64 int8 float64 complex128 uint64 resource variant
    uint32 uint16 int4 bfloat16 int2 uint4 float8_e4m3fn float8_e5m2
"""
_OPS = """
    ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR
    FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION
    LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH SVDF TANH
    CONCAT_EMBEDDINGS SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER
    BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE
    BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM
    ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE
    TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK
    LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD
    RANGE RESIZE_NEAREST_NEIGHBOR LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N
    GATHER_ND COS WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE
    NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM BATCH_MATMUL
    PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D IMAG REAL COMPLEX_ABS HASHTABLE
    HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE
    ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM MULTINOMIAL GELU
    DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2
    UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR RIGHT_SHIFT
"""
TENSOR_TYPES = tuple(_TYPES.split())
OP_NAMES = tuple(_OPS.split())
CONTROL_FLOW = (*(OP_NAMES.index(name) for name in ("IF", "WHILE", "CALL", "CALL_ONCE")), 200, 209)
"""The last two are STABLEHLO_WHILE and STABLEHLO_CASE."""


def read_spec(path: str | Path) -> IspSpec:
    """The spec inside an ISP file. Raises IspFileError where there is none or the file is damaged."""
    path = Path(path)
    spec = find_spec(read_model(path), path.name)
    if spec is None:
        raise IspFileError(
            f"{path.name}: no ISP spec inside: make ISP files with `eguot-sdk convert`, or add a spec to this model "
            "with eguot_sdk.ispfile.embed_spec"
        )
    return spec


def read_model(path: str | Path) -> bytes:
    """The bytes of a .tflite of at most 256 MB. Raises IspFileError where it is none, or has control flow."""
    path = Path(path)
    try:
        if not path.is_file():
            raise IspFileError(f"{path.name}: no such file" if not path.exists() else f"{path.name}: not a file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise IspFileError(f"{path.name}: cannot be read ({error.strerror or error})") from error
    if len(data) > MAX_FILE_BYTES:
        raise IspFileError(f"{path.name}: larger than the {MAX_FILE_BYTES >> 20} MB an ISP file may have")
    with _naming(path.name):
        for code in _Model(data).op_codes():
            if code in CONTROL_FLOW:  # a loop in an untrusted file may never end
                raise IspFileError(f"control flow ({_op_name(code)}) has no place in an ISP")
    return data


def find_spec(data: bytes, source: str) -> IspSpec | None:
    """The spec in the bytes of a .tflite; None where it carries none. `source`: name for messages."""
    with _naming(source):
        found = _Model(data).metadata(METADATA_NAME)
        return None if found is None else IspSpec.from_json(found)


def embed_spec(tflite: bytes, spec: IspSpec) -> bytes:
    """The .tflite with `spec` inside, in the place of an earlier one. Raises IspFileError, MissingDependency."""
    with _naming("embed_spec"):
        _Model(tflite).metadata(METADATA_NAME)
    try:
        import flatbuffers  # noqa: F401  (packing needs it; say so before any work)
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise MissingDependency("ai-edge-litert", needed_for="writing an ISP file", pip="ai-edge-litert") from error
    import numpy as np

    try:
        model = unpack_model(tflite)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(spec.to_json().encode(), np.uint8)
        model.metadata = model.metadata or []
        entry = next((m for m in model.metadata if m.name in (METADATA_NAME, METADATA_NAME.encode())), None)
        if entry is None:
            entry = schema.MetadataT()
            entry.name, entry.buffer = METADATA_NAME, len(model.buffers)
            model.metadata.append(entry)
            model.buffers.append(buffer)
        else:
            model.buffers[entry.buffer] = buffer
        return pack_model(model)
    except (struct.error, ValueError, TypeError, IndexError, AttributeError) as error:
        raise IspFileError(f"embed_spec: the TFLite model is damaged ({type(error).__name__})") from error


def unpack_model(tflite: bytes) -> Any:
    """The ModelT of `ai_edge_litert.schema_py_generated`, all weights inside it, so that it can be packed again.

    Tools put the weights of larger models behind the FlatBuffer and only say where: packed again as it is, such a
    model would point at nothing. Raises IspFileError where a buffer points out of the file.
    """
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite, 0))
    for buffer in model.buffers or []:
        if buffer.offset > 1:  # 0 and 1 mean that the data, if any, are inside
            end = buffer.offset + buffer.size
            if end > len(tflite):
                raise IspFileError(DAMAGED)
            buffer.data = np.frombuffer(tflite, np.uint8)[buffer.offset : end]
            buffer.offset = buffer.size = 0
    return model


def pack_model(model: Any) -> bytes:
    """The bytes of a ModelT. Equal vectors and texts are written once and referred to by all who hold them.

    The zero points alone of filters and their biases, eight zero bytes a channel, are a tenth of a small int8 file.
    """
    import flatbuffers

    class Sharing(flatbuffers.Builder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(1 << 16)
            self.written: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: Any) -> int:
            key = (x.dtype.str, x.tobytes())
            if key not in self.written:
                self.written[key] = super().CreateNumpyVector(x)
            return self.written[key]

        def CreateString(self, s: Any, *options: Any) -> int:
            key = ("text", s if isinstance(s, bytes) else s.encode())
            if key not in self.written:
                self.written[key] = super().CreateString(s, *options)
            return self.written[key]

    builder = Sharing()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def describe(path: str | Path) -> dict[str, Any]:
    """What an ISP file, or any .tflite, holds, ready for JSON.

    `file`, `format`, `bytes`; `ops`: {name: count}; `tensors`: {dtype: {count, constant_bytes}}; `constant_bytes` of
    all weights; `input` and `output`: lists of {name, shape, dtype, scale, zero_point}; `spec`: as a dict, or None.
    """
    path = Path(path)
    return describe_bytes(read_model(path), path.name)


def describe_bytes(data: bytes, source: str) -> dict[str, Any]:
    """`describe` of the bytes of a .tflite; `source`: name for messages."""
    spec = find_spec(data, source)
    with _naming(source):
        model = _Model(data)
        graph = model.main_graph()
        tensors = graph.tables(0)
        kinds: dict[str, dict[str, int]] = {}
        buffer_bytes = model.buffer_bytes()
        for tensor in tensors:
            kind = kinds.setdefault(_type_name(tensor), {"count": 0, "constant_bytes": 0})
            kind["count"] += 1
            buffer = tensor.number(2, "<I")
            kind["constant_bytes"] += _item(buffer_bytes, buffer)
            buffer_bytes[buffer] = 0  # tensors may share a buffer
        codes = model.op_codes()
        ops = Counter(_op_name(_item(codes, op.number(0, "<I"))) for op in graph.tables(3))
        return {
            "file": source,
            "format": "tflite",
            "bytes": len(data),
            "ops": dict(ops.most_common()),
            "tensors": kinds,
            "constant_bytes": sum(kind["constant_bytes"] for kind in kinds.values()),
            "input": [_describe_tensor(_item(tensors, i)) for i in graph.numbers(1, "<i", MAX_PORTS)],
            "output": [_describe_tensor(_item(tensors, i)) for i in graph.numbers(2, "<i", MAX_PORTS)],
            "spec": None if spec is None else dataclasses.asdict(spec),
        }


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Within: an IspFileError gets the name of the file in front."""
    try:
        yield
    except IspFileError as error:
        raise IspFileError(f"{source}: {error}") from error


class _Table:
    """A FlatBuffers table at a position in untrusted bytes. Fields are numbered from 0, as in the schema."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._vtable = at - int(_read(data, "<i", at))
        self._fields = (int(_read(data, "<H", self._vtable)) - 4) // 2

    def number(self, field: int, kind: str, default: int = 0) -> int:
        at = self._find(field)
        return default if at is None else int(_read(self._data, kind, at))

    def table(self, field: int) -> _Table | None:
        at = self._find(field)
        return None if at is None else _Table(self._data, self._follow(at))

    def tables(self, field: int) -> list[_Table]:
        start, count = self._vector(field, 4, MAX_ITEMS)
        return [_Table(self._data, self._follow(start + 4 * i)) for i in range(count)]

    def numbers(self, field: int, kind: str, limit: int) -> list[float]:
        size = struct.calcsize(kind)
        start, count = self._vector(field, size, limit)
        return [_read(self._data, kind, start + size * i) for i in range(count)]

    def single(self, field: int, kind: str) -> float | None:
        """The number of a vector of exactly one."""
        start, count = self._vector(field, struct.calcsize(kind), MAX_ITEMS)
        return _read(self._data, kind, start) if count == 1 else None

    def blob(self, field: int, limit: int) -> bytes:
        start, count = self._vector(field, 1, limit)
        return self._data[start : start + count]

    def blob_bytes(self, field: int) -> int:
        return self._vector(field, 1, MAX_FILE_BYTES)[1]

    def _find(self, field: int) -> int | None:
        if field >= self._fields:
            return None
        offset = int(_read(self._data, "<H", self._vtable + 4 + 2 * field))
        return self._at + offset if offset else None

    def _follow(self, at: int) -> int:
        return at + int(_read(self._data, "<I", at))

    def _vector(self, field: int, size: int, limit: int) -> tuple[int, int]:
        """Where the items of a vector start, and how many there are; all of them lie inside the file."""
        at = self._find(field)
        if at is None:
            return 0, 0
        start = self._follow(at)
        count = int(_read(self._data, "<I", start))
        if count > limit:
            raise IspFileError(f"damaged, or no ISP: a list of {count} items where at most {limit} make sense")
        if start + 4 + count * size > len(self._data):
            raise IspFileError(DAMAGED)
        return start + 4, count


class _Model:
    """The few fields of a TFLite model that are of interest here."""

    def __init__(self, data: bytes) -> None:
        if data[4:8] != b"TFL3":
            raise IspFileError("not a TFLite file")
        self._data = data
        self._root = _Table(data, int(_read(data, "<I", 0)))

    def op_codes(self) -> list[int]:
        # codes over 127 live in the wider field; old files have only the narrow one
        return [max(code.number(0, "<b"), code.number(3, "<i")) for code in self._root.tables(1)]

    def main_graph(self) -> _Table:
        graphs = self._root.tables(2)
        if not graphs:
            raise IspFileError("the TFLite model has no graph")
        return graphs[0]

    def buffer_bytes(self) -> list[int]:
        """Sizes of the buffers, inside the FlatBuffer or, where they say an offset, behind it."""
        buffers = self._root.tables(4)
        return [b.number(2, "<Q") if b.number(1, "<Q") > 1 else b.blob_bytes(0) for b in buffers]

    def metadata(self, name: str) -> bytes | None:
        for entry in self._root.tables(6):
            if entry.blob(0, MAX_NAME_BYTES) == name.encode():
                buffer = _item(self._root.tables(4), entry.number(1, "<I"))
                start, count = buffer.number(1, "<Q"), buffer.number(2, "<Q")
                if start <= 1:
                    return buffer.blob(0, MAX_SPEC_BYTES)
                if count > MAX_SPEC_BYTES or start + count > len(self._data):
                    raise IspFileError(DAMAGED)
                return self._data[start : start + count]
        return None


def _read(data: bytes, kind: str, at: int) -> float:
    if at < 0 or at + struct.calcsize(kind) > len(data):
        raise IspFileError(DAMAGED)
    value: float = struct.unpack_from(kind, data, at)[0]
    return value


def _item(items: Sequence[T], index: float) -> T:
    if not 0 <= index < len(items):
        raise IspFileError(DAMAGED)
    return items[int(index)]


def _op_name(code: int) -> str:
    return OP_NAMES[code] if 0 <= code < len(OP_NAMES) else f"op {code}"


def _type_name(tensor: _Table) -> str:
    code = tensor.number(1, "<b")
    return TENSOR_TYPES[code] if 0 <= code < len(TENSOR_TYPES) else f"type {code}"


def _describe_tensor(tensor: _Table) -> dict[str, Any]:
    quantisation = tensor.table(4)
    scale = None if quantisation is None else quantisation.single(2, "<f")
    zero_point = None if quantisation is None else quantisation.single(3, "<q")
    return {
        "name": tensor.blob(3, MAX_NAME_BYTES).decode(errors="replace"),
        "shape": tensor.numbers(0, "<i", 16),
        "dtype": _type_name(tensor),
        "scale": scale if scale is not None and math.isfinite(scale) else None,
        "zero_point": zero_point,
    }
