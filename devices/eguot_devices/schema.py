"""What a profile says, as frozen types that go to JSON and back; units are in the names.

`_ms` milliseconds, `_mb` 10^6 bytes, `_db` decibels, `_packed` packed pixels (2x2 raw ones). A percentile that too few
runs stand behind is None ("n/a"). Unknown or missing keys are refused: results cross a process, later a network.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, Union, get_args, get_origin

from eguot_sdk.errors import EguotError

SCHEMA_VERSION = 2

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Times of one thing done many times in a row, each timed by itself."""

    first_ms: float
    """The first run, which is in no other number."""
    p50_ms: float | None
    p50_low_ms: float | None
    """The median lies between `p50_low_ms` and `p50_high_ms` with about 95 % confidence."""
    p50_high_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    """None below 100 runs: it would be the slowest one."""
    runs: int
    """Runs behind the percentiles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TileProfile:
    """The network alone on one tile: what is in the interpreter, without ingest and copies."""

    height_packed: int
    width_packed: int
    """Size of the input, halo included."""
    threads: int
    init_ms: float
    """Opening the model and making room for the tile, the runtime's library being loaded already."""
    latency: Latency


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameProfile:
    """`ISP.process`, from raw to picture in memory."""

    megapixels: float
    """Of the mosaic, in 10^6."""
    threads: int
    reads_file: bool
    """Whether reading and unpacking a raw file is part of it."""
    latency: Latency
    per_megapixel_p50_ms: float | None
    per_megapixel_p90_ms: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ThreadPoint:
    """The same tile and frame with another number of threads."""

    threads: int
    tile: Latency
    frame: Latency


@dataclass(frozen=True, kw_only=True, slots=True)
class OpTime:
    """Share of one operator in the time of a tile."""

    name: str
    """Such as `CONV_2D`."""
    ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Operators:
    """What the model consists of, and who runs it."""

    total: int
    delegated: int
    """How many of them were taken by XNNPACK, or by the delegate that was asked for."""
    not_delegated: tuple[str, ...]
    """Kinds of those that were left over."""
    times: tuple[OpTime, ...]
    """In order of execution; empty: n/a."""
    times_source: str
    """How the times were measured, or why there are none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sustained:
    """Frames without a pause: what heat does."""

    seconds: float
    frames: int
    first_p50_ms: float | None
    """Median of the first tenth of the frames, of five at least."""
    last_p50_ms: float | None
    """Median of as many at the end."""
    first_temperature_c: float | None
    """Hottest thermal zone at the start."""
    last_temperature_c: float | None
    first_frequency_mhz: float | None
    """Of the fastest core."""
    last_frequency_mhz: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    """What the whole machine, or its processor package, drew while frames were developed."""

    per_megapixel_mj: float
    watts: float
    source: str
    """`RAPL package` or the name of a power supply; idle power is part of both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Means over the images of a pairs folder, from the pictures that the device itself made."""

    protocol: str
    images: int
    psnr_db: float
    ssim: float
    de2000: float
    psnr_affine_db: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """The device's output of the golden input against the reference's."""

    reference: str
    """`golden pair` (what convert wrote beside the file), or the runtime and kernels used on the asking machine."""
    max_levels: float
    """Largest difference in steps of 1/255."""
    beyond_one_level: float
    """Share of values that differ by more than one step."""
    psnr_db: float
    """100 where nothing differs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelProfile:
    """One ISP file on one device, measured in a process of its own."""

    name: str
    sha256: str
    file_bytes: int
    architecture: str
    precision: str
    parameters: int
    runtime: str
    """Package and version that ran it."""
    load_ms: float | None
    """`ISP.load` in the new process, loading of the runtime's library included."""
    tile: TileProfile
    frame: FrameProfile | None
    """None where only the network ran there (adb)."""
    threads: tuple[ThreadPoint, ...]
    """The sweep that was asked for."""
    operators: Operators | None
    sustained: Sustained | None
    energy: Energy | None
    """None: not readable there."""
    start_memory_mb: float | None
    """Resident before the ISP was loaded: Python, NumPy and the SDK."""
    peak_memory_mb: float | None
    """Highest resident size up to the end of the speed runs."""
    accuracy: Accuracy | None
    parity: Parity | None
    other_load_cores: float | None
    """Cores, of those it might use, that other processes kept busy during the speed runs, on average."""
    noise_pct: float | None
    """Spread (p90 - p10, in percent of p50) of one fixed calculation timed before and after the speed runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where it was measured."""

    system: str
    cpu: str
    soc: str | None
    """Board or phone, where it says."""
    cores: int
    """Cores this process may use."""
    memory_mb: float | None
    governor: str | None
    """Frequency governor of the first core, where readable."""
    python: str
    packages: Mapping[str, str]
    """Tool versions by distribution name."""
    delegates: tuple[str, ...]
    """Ways to run a network that were seen there: XNNPACK, and libraries of accelerators."""
    emulated: str | None
    """What emulates the processor, such as `QEMU`; times then are no latency."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawFacts:
    """The raw that was developed."""

    name: str
    sha256: str | None
    """None: a mosaic made on the spot, the same everywhere."""
    width: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsFacts:
    """The pairs that accuracy was measured on."""

    name: str
    sha256: str
    """Over the names and contents of the pairs' files."""
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A model that could not be measured, and why."""

    name: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceReport:
    """One device: what it is, what was measured there."""

    device: str
    machine: Machine
    models: tuple[ModelProfile, ...]
    failed: tuple[Failure, ...]
    notes: tuple[str, ...]
    """What a reader must know before trusting the numbers, such as a busy machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One profile run: what was asked, where it ran, what came out."""

    created_utc: str
    command: str
    """The command line that makes it, with names of files and never their folders."""
    sdk_version: str
    raw: RawFacts
    pairs: PairsFacts | None
    devices: tuple[DeviceReport, ...]
    version: int = SCHEMA_VERSION


def to_dict(value: Any) -> dict[str, Any]:
    """A type of this module as JSON-ready values."""
    return dataclasses.asdict(value)


def from_dict(kind: type[T], data: object, where: str = "report") -> T:
    """The inverse of `to_dict`. Raises EguotError naming the first key that is unknown, missing or of another kind."""
    if not isinstance(data, Mapping):
        raise EguotError(f"{where}: expected a JSON object, found {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise EguotError(f"{where}: unknown key {unknown[0]!r}: both sides must run the same version of eguot-sdk")
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in data]
    if missing:
        raise EguotError(f"{where}: key {missing[0]!r} is missing: both sides must run the same version of eguot-sdk")
    return kind(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        kind = next(k for k in get_args(kind) if k is not type(None))
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast("type[Any]", kind), value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise EguotError(f"{where}: expected a list, found {value!r:.60}")
        return tuple(_value(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:  # NaN, infinity, and whole numbers that no float can hold
            raise EguotError(f"{where}: expected a finite number")
        return float(value)
    plain = Mapping if get_origin(kind) is not None else kind
    if not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool):
        raise EguotError(f"{where}: expected {getattr(plain, '__name__', plain)}, found {value!r:.60}")
    return value
