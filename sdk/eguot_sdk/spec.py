"""IspSpec: what a program must know to feed an ISP file and to read its output.

The spec travels inside the ISP file as versioned JSON (README, "The ISP spec"). Unknown keys,
missing keys and values out of range are refused: a file that says something this version does not
understand is not run. Sizes of planes (`tile`, `halo`, `multiple`) are in packed pixels: one packed
pixel is one 2x2 Bayer cell.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .errors import IspFileError

SPEC_VERSION = 1
MAX_SPEC_BYTES = 256 * 1024
MAX_DEPTH = 32
"""Levels of lists and objects inside one another; Python's own limit ends programs that read them."""
PLANES = ("R", "Gr", "Gb", "B")

ColorInput = Literal["camera", "srgb"]
Precision = Literal["fp32", "fp16", "w8", "w8a8", "w8a16"]
DType = Literal["float32", "int8", "uint8", "int16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """How real values in [0, 1] are stored: real = (stored - zero_point) * scale."""

    dtype: DType = "float32"
    scale: float = 1.0
    zero_point: int = 0

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, get_args(DType))
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise IspFileError(f"spec: scale must be a positive number, not {self.scale!r}")
        if self.dtype == "float32" and (self.scale != 1.0 or self.zero_point != 0):
            raise IspFileError("spec: a float32 tensor has scale 1 and zero_point 0")
        if not -32768 <= self.zero_point <= 32767:
            raise IspFileError(f"spec: zero_point {self.zero_point} is out of range")


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenPair:
    """Hashes of one golden input and output (raw bytes of the tensors, C order) that lie beside the file."""

    input_shape: tuple[int, ...]
    input_sha256: str
    output_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class IspSpec:
    """The contract of one ISP file. Frozen; `to_json` and `from_json` round-trip exactly."""

    name: str
    """Name of the ISP, for people."""
    architecture: str
    """Name of the network family, e.g. `qisp-s`."""
    parameters: int
    """Number of weights of the network as deployed."""
    halo: int
    """Margin in packed pixels a tile needs on each side so that tiled equals whole."""
    multiple: int = 1
    """Height and width of the input must be multiples of this (packed pixels)."""
    tile: int = 256
    """Preferred side of a tile without its halo, in packed pixels; a multiple of `multiple`."""
    fixed_tile: bool = False
    """True where the file takes exactly one input size: tile + 2 * halo on each side."""
    scale_factor: int = 2
    """Output pixels per packed pixel, per axis."""
    global_context: bool = False
    """True where the output at one place depends on the whole frame; such a file is run whole."""
    color_input: ColorInput = "srgb"
    """`camera`: white-balanced camera RGB. `srgb`: the camera matrix was applied to each 2x2 cell."""
    planes: tuple[str, ...] = PLANES
    """Order of the input channels."""
    companding: float = 1 / 2.2
    """Exponent applied to linear [0, 1] before quantisation."""
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    """Order of the axes of input and output."""
    input: TensorSpec = field(default_factory=TensorSpec)
    output: TensorSpec = field(default_factory=TensorSpec)
    output_space: Literal["sRGB"] = "sRGB"
    precision: Precision = "fp32"
    """Weights and activations: fp32, fp16, w8 (int8 weights), w8a8, w8a16."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Recipe, data hashes, tool versions, git commit."""
    metrics: tuple[Mapping[str, Any], ...] = ()
    """Measured quality; each entry names its `protocol`."""
    golden: GoldenPair | None = None
    version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        if self.version != SPEC_VERSION:
            raise IspFileError(
                f"spec: version {self.version!r} is not understood (this eguot-sdk reads version {SPEC_VERSION}): "
                "install the eguot-sdk that wrote the file"
            )
        for key, low, high in (
            ("parameters", 0, 10**10),
            ("halo", 0, 4096),
            ("multiple", 1, 256),
            ("tile", 1, 1 << 16),
            ("scale_factor", 1, 8),
        ):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise IspFileError(f"spec: {key} must be a whole number in {low}..{high}, not {value!r}")
        if self.halo % self.multiple or self.tile % self.multiple:
            raise IspFileError(f"spec: halo {self.halo} and tile {self.tile} must be multiples of {self.multiple}")
        if tuple(self.planes) != PLANES:
            raise IspFileError(f"spec: planes must be {list(PLANES)}, not {list(self.planes)}")
        if not 0.1 <= self.companding <= 1.0:
            raise IspFileError(f"spec: companding must be in 0.1..1, not {self.companding!r}")
        for key in ("name", "architecture"):
            if not getattr(self, key).isprintable():
                raise IspFileError(f"spec: {key} {getattr(self, key)!r:.80} holds characters that cannot be printed")
        _one_of("color_input", self.color_input, get_args(ColorInput))
        _one_of("precision", self.precision, get_args(Precision))
        _one_of("layout", self.layout, ("NHWC", "NCHW"))
        _one_of("output_space", self.output_space, ("sRGB",))

    def to_json(self, *, indent: int | None = None) -> str:
        """The spec as JSON; `from_json` reads it back to an equal object."""
        separators = (",", ":") if indent is None else None
        return json.dumps(
            dataclasses.asdict(self), indent=indent, separators=separators, sort_keys=True, allow_nan=False
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> IspSpec:
        """Read a spec. Raises IspFileError naming the first thing that is wrong."""
        if len(text) > MAX_SPEC_BYTES:
            raise IspFileError(f"spec: {len(text)} bytes is more than the {MAX_SPEC_BYTES} a spec may have")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise IspFileError(f"spec: not valid JSON ({error})") from error
        _check_values(data)
        fields = _strict(cls, data, "spec")
        for key in ("input", "output"):
            fields[key] = TensorSpec(**_strict(TensorSpec, fields[key], f"spec.{key}"))
        if fields["golden"] is not None:
            golden = _strict(GoldenPair, fields["golden"], "spec.golden")
            golden["input_shape"] = tuple(golden["input_shape"])
            fields["golden"] = GoldenPair(**golden)
        fields["planes"] = tuple(fields["planes"])
        fields["metrics"] = tuple(fields["metrics"])
        return cls(**fields)

    def replace(self, **changes: Any) -> IspSpec:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)


_KINDS: dict[str, tuple[Any, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "ColorInput": (str,),
    "Precision": (str,),
    "DType": (str,),
    "Literal['NHWC', 'NCHW']": (str,),
    "Literal['sRGB']": (str,),
    "Mapping[str, Any]": (dict,),
    "tuple[str, ...]": (list,),
    "tuple[int, ...]": (list,),
    "tuple[Mapping[str, Any], ...]": (list,),
}


def _strict(cls: type, data: object, where: str) -> dict[str, Any]:
    """The keys of `data` checked against the fields of a dataclass: none unknown, none missing, kinds right."""
    if not isinstance(data, dict):
        raise IspFileError(f"{where}: expected a JSON object, found {type(data).__name__}")
    known = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise IspFileError(f"{where}: unknown key {unknown[0]!r}; known keys are {', '.join(sorted(known))}")
    for name, f in known.items():
        if name not in data:
            raise IspFileError(f"{where}: key {name!r} is missing")
        kinds = _KINDS.get(str(f.type).replace('"', "'"))
        if kinds:
            value = data[name]
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise IspFileError(f"{where}: {name} must be {f.type}, not {value!r:.80}")
            item: type | None = {"tuple[str, ...]": str, "tuple[int, ...]": int}.get(str(f.type))
            if item is not None and not all(isinstance(v, item) for v in value):
                raise IspFileError(f"{where}: {name} must be {f.type}, not {value!r:.80}")
            if str(f.type).startswith("tuple[Mapping") and not all(isinstance(v, dict) for v in value):
                raise IspFileError(f"{where}: {name} must be a list of objects")
    return dict(data)


def _check_values(value: object, depth: int = 0) -> None:
    """Refuse what Python reads but nobody can use: numbers and texts that are none, and what is nested too deeply."""
    if depth > MAX_DEPTH:
        raise IspFileError(f"spec: lists and objects lie in one another more than {MAX_DEPTH} deep")
    if isinstance(value, float) and not math.isfinite(value):
        raise IspFileError(f"spec: {value} is no number of JSON")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise IspFileError(f"spec: a whole number of {value.bit_length()} bits; at most 63 are read")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise IspFileError(f"spec: {value!r:.80} holds half of a surrogate pair, which is no text") from error
    for item in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_values(item, depth + 1)


def _one_of(key: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise IspFileError(f"spec: {key} must be one of {', '.join(map(str, allowed))}, not {value!r}")
