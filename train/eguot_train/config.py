"""TrainConfig: everything that decides a run, frozen and typed; saved as JSON with the run, unknown keys refused.

`for_machine` gives the defaults of a mode on this machine; `with_settings` applies `--set KEY=VALUE`. Schedules
are fractions of `steps`. Crops are in packed pixels (64 means 128x128 output pixels).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from eguot_sdk.errors import CheckpointError, UsageError
from eguot_sdk.spec import ColorInput

from . import MAX_SEED
from .cost import WEIGHTS
from .psi import Family

Mode = Literal["unpaired", "paired", "mixed", "supervised"]
MODES: tuple[Mode, ...] = get_args(Mode)
ExpertName = Literal["colour", "structure", "frequency"]
EXPERTS: tuple[ExpertName, ...] = get_args(ExpertName)
DATA = ("raw", "srgb", "pairs", "val")
"""Keys that name folders or shards."""
OF_TRANSPORT = (
    "transport", "psi_source", "psi_target", "alpha", "alpha_start", "alpha_fraction", "cost_strength", "cost_weights",
    "potential_width", "potential_reduce", "r1", "r1_every", "lr_potential", "warmup",
    "experts", "omega", "experts_width", "lr_experts",
)  # fmt: skip
OF_UNPAIRED = ("pseudo", "weighted_alignment", "refit", "find_pairs")
UNREAD: dict[Mode, tuple[str, ...]] = {
    "unpaired": (), "mixed": (), "paired": OF_UNPAIRED, "supervised": (*OF_TRANSPORT, *OF_UNPAIRED)
}  # fmt: skip
"""Keys that a mode does not look at."""
PAIRED_TRANSPORT = 0.003
"""Share of the transport term where the truth is known: it only breaks ties, and .01 already costs sharpness."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One run. A run folder names its data by whole paths; results name data by hash (`config.json`: `data`)."""

    mode: Mode
    isp: str = "qisp-s"
    """Name of the architecture, as `eguot-sdk isps` lists it."""
    raw: str | None = None
    """Folder of raws (unpaired, mixed)."""
    srgb: str | None = None
    """Folder of target photos (unpaired, mixed)."""
    pairs: str | None = None
    """Folder of pairs (paired, mixed, supervised)."""
    val: str | None = None
    """Folder of pairs scored along the way; never used to choose or stop."""
    init: str | None = None
    """Run whose EMA weights the network starts from."""
    color_input: ColorInput = "srgb"
    """Whether ingest applies the camera matrix."""
    steps: int = 3000
    seed: int = 0
    batch: int = 8
    """Crops per step of each kind (unpaired raws, target photos, pseudo-pairs, pairs), over all processes together."""
    crop: int = 64
    """Side of a crop in packed pixels."""
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the networks' forward and backward passes; transforms, divergences, penalties and weights stay fp32."""
    accumulate: int = 1
    """Micro-batches a step, where a batch does not fit in memory: same result, one more forward pass of the network."""
    compile: bool = False
    """Compile the network and the potential with torch.compile: minutes at the start, faster steps on a GPU."""
    loaders: int = 1
    """Threads that make batches ahead."""
    window: int = 64
    """Samples in memory at once, each kind and process, of shards and of folders too large; crops are drawn there."""
    reuse: int = 8
    """Crops taken of each such sample before the window moves past it, on average."""
    lr: float = 1e-3
    """Adam learning rate of the network; cosine to 2% of it."""
    lr_potential: float = 3e-4
    """Adam learning rate of the potential; cosine to 10% of it."""
    ema: float = 0.999
    """Decay of the weight average, warmed up from step 1."""
    transport: float = 0.03
    """Share of the transport term: norm of its image gradient over the fidelity term's. 0 switches it off."""
    pseudo: float = 1.0
    """Weight of the pseudo-pair term in unpaired and mixed mode; less where raws have pairs. 0 switches it off."""
    weighted_alignment: bool = True
    """Fit the reference alignment as `alignment.fit_alignment` does; false: plain quantiles and moments."""
    refit: float = 0.4
    """Fraction of the steps after which the alignment is fitted again, photos weighted by their mean w(y). 0: never."""
    find_pairs: bool = True
    """Look for raws and photos of one scene in one framing, and use them as pairs (unpaired, mixed; not in shards)."""
    register_pairs: bool = False
    """Move each pair's truth onto its R(x) block by block, and leave out what does not match: pairs of two cameras."""
    psi_source: Family = "linear"
    psi_target: Family = "softplus"
    alpha: float = 1.0
    """Strength of both divergences after warm-up."""
    alpha_start: float = 10.0
    """Strength at the first step (near balanced); falls to `alpha` over `alpha_fraction` of the steps."""
    alpha_fraction: float = 0.1
    cost_strength: float = 1.0
    """Cost of unrelated content in units of the divergence."""
    cost_weights: tuple[float, float, float, float, float] = WEIGHTS
    """Shares of pixels (C0), low-pass (C1), mean colour (DC), structure (C2) and texture (C3)."""
    potential_width: int = 16
    """Channels of the potential's first block."""
    potential_reduce: int = 2
    """Factor by which pictures are averaged down for the potential."""
    r1: float = 20.0
    """Weight gamma of the gradient penalties on v at targets and at renderings."""
    r1_every: int = 8
    warmup: float = 0.05
    """Fraction of the steps before the transport term acts on the network."""
    experts: tuple[ExpertName, ...] = ()
    """Experts on the committee (`--set experts=colour,frequency`); none switches it off. Supervised runs have none."""
    omega: tuple[float, float, float] = (0.1, 0.075, 0.075)
    """Shares of the colour, structure and frequency experts, as `transport` is one."""
    experts_width: int = 16
    """Size of the experts' networks; 64 is the full one."""
    lr_experts: float = 1e-4
    """Adam learning rate of the experts; cosine to 10% of it."""
    checkpoint_every: int = 250
    val_every: int = 500
    sheet_every: int = 1000

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        for key, kind in get_type_hints(type(self)).items():
            if not _is(getattr(self, key), kind):
                raise UsageError(f"{key} must be {_named(kind)}, not {getattr(self, key)!r}")
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"seed must be in 0..2**63-1, not {self.seed}")
        for key in (
            "steps",
            "batch",
            "crop",
            "checkpoint_every",
            "val_every",
            "sheet_every",
            "r1_every",
            "potential_width",
            "potential_reduce",
            "experts_width",
            "accumulate",
            "loaders",
            "window",
            "reuse",
        ):
            if getattr(self, key) < 1:
                raise UsageError(f"{key} must be at least 1, not {getattr(self, key)}")
        if self.batch % self.accumulate:
            raise UsageError(f"batch must be a multiple of accumulate, got {self.batch} and {self.accumulate}")
        if self.crop % 2 or self.crop < 24:
            raise UsageError(f"crop must be an even number of at least 24 packed pixels, not {self.crop}")
        for key in ("alpha_fraction", "warmup", "ema", "refit"):
            if not 0 <= getattr(self, key) <= 1:
                raise UsageError(f"{key} must be in 0..1, not {getattr(self, key)}")
        for key in ("transport", "pseudo", "r1", "cost_strength"):
            if getattr(self, key) < 0:
                raise UsageError(f"{key} must not be negative, not {getattr(self, key)}")
        for key in ("lr", "lr_potential", "lr_experts", "alpha", "alpha_start"):
            if not getattr(self, key) > 0:
                raise UsageError(f"{key} must be positive, not {getattr(self, key)}")
        if set(self.experts) - set(EXPERTS) or len(set(self.experts)) < len(self.experts):
            raise UsageError(f"experts must be different ones of {', '.join(EXPERTS)}, not {', '.join(self.experts)}")
        if min(self.cost_weights) < 0 or max(self.cost_weights) == 0:
            raise UsageError(f"cost_weights must not be negative and not all 0, not {self.cost_weights}")
        if min(self.omega) <= 0:
            raise UsageError(f"omega must be positive (leave an expert out of experts instead), not {self.omega}")
        if "frequency" in self.experts and self.crop < 32:
            raise UsageError(f"the frequency expert needs a crop of at least 32 packed pixels, not {self.crop}")
        if self.mode != "supervised" and self.transport > 0 and self.crop < 16 * self.potential_reduce:
            why = f"at least {16 * self.potential_reduce} packed pixels with potential_reduce={self.potential_reduce}"
            raise UsageError(f"crop must be {why}, not {self.crop}")

    @property
    def unpaired(self) -> bool:
        """Whether the run draws raws and photos of different scenes."""
        return self.mode in ("unpaired", "mixed")

    @property
    def paired(self) -> bool:
        """Whether the run draws aligned pairs."""
        return self.mode != "unpaired"

    def with_whole_paths(self) -> TrainConfig:
        """The same, its data found from any folder."""
        given = {key: getattr(self, key) for key in DATA if getattr(self, key) is not None}
        places: dict[str, Any] = {key: str(Path(place).absolute()) for key, place in given.items()}
        if self.init is not None and Path(self.init).exists():  # else it is the word `default`, or has moved
            places["init"] = str(Path(self.init).resolve())
        return dataclasses.replace(self, **places)

    def to_json(self) -> str:
        """JSON that `from_json` reads back to an equal config."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Read a saved config. Raises CheckpointError on unknown keys or wrong kinds."""
        try:
            data = json.loads(text)
            if not isinstance(data, dict):
                raise TypeError("it holds no object")
            known = {f.name for f in dataclasses.fields(cls)}
            unknown = sorted(set(data) - known)
            if unknown:
                raise CheckpointError(f"config: unknown key {unknown[0]!r}")
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            return cls(**values)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError, UsageError) as error:
            raise CheckpointError(f"config: not a run's config.json ({error})") from error

    def with_settings(self, settings: Iterable[str]) -> TrainConfig:
        """A copy with `KEY=VALUE` settings applied, each value read as the key's type."""
        hints = get_type_hints(type(self))
        changes: dict[str, Any] = {}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals:
                raise UsageError(f"--set takes KEY=VALUE, not {setting!r}")
            if key not in hints:
                near = difflib.get_close_matches(key, hints, n=3)
                keys = f"is it {' or '.join(near)}?" if near else f"keys are {', '.join(sorted(hints))}"
                raise UsageError(f"--set knows no {key!r}: {keys}")
            changes[key] = _parse(key, value, hints[key])
        return dataclasses.replace(self, **changes)


def _parse(key: str, value: str, kind: Any) -> Any:
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        if kind in (int, float):
            return kind(value)
        if kind == tuple[ExpertName, ...]:
            return tuple(value.split(",")) if value else ()
        if get_origin(kind) is tuple:
            numbers = tuple(float(v) for v in value.split(","))
            if len(numbers) != len(get_args(kind)):
                raise ValueError
            return numbers
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise ValueError
            return value
        if not value and kind is str:
            raise ValueError
        return value or None
    except (ValueError, KeyError):
        raise UsageError(f"--set {key}: {value!r} is not {_named(kind)}") from None


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type; whole numbers pass for real ones, what is not finite does not."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if kinds[-1] is ...:
            return isinstance(value, tuple) and all(_is(v, kinds[0]) for v in value)
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_is, value, kinds))
    return isinstance(value, kind)


def _named(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple and get_args(kind)[-1] is not ...:
        return f"{len(get_args(kind))} numbers"
    if kind == tuple[ExpertName, ...]:
        return f"some of {', '.join(EXPERTS)}, by commas"
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        str | None: "a text or null",
    }
    return names.get(kind, str(kind))
