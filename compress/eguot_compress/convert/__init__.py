"""From a run to files that phones and boards run, each checked against torch before it gets its name.

`convert` writes NAME.PRECISION.EXT with its spec inside and a golden input/output pair beside it (NAME is the run
folder's name). A file that falls short of parity or of the drop asked for is not left behind.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from eguot_compress.calibration import Calibration, load_calibration
from eguot_compress.fake_quant import Bits, QuantIsp, QuantState, quantise_body
from eguot_compress.parity import Parity, measure, planes_as_input, render, render_file, run_file
from eguot_compress.ptq import post_train
from eguot_compress.quant_run import load_scales
from eguot_sdk.errors import GateError, OutputError, UsageError
from eguot_sdk.ispfile import embed_spec
from eguot_sdk.spec import GoldenPair, IspSpec, Precision, TensorSpec
from eguot_train.checkpoint import LoadedRun, load_run
from eguot_train.isps.base import IspNet

from .tflite import to_tflite

Format = Literal["tflite"]
HOLDS: dict[Format, tuple[Precision, ...]] = {"tflite": ("fp32", "fp16", "w8", "w8a8", "w8a16")}
"""Which precisions each format can hold."""
BITS: dict[Precision, Bits | None] = {"w8": None, "w8a8": 8, "w8a16": 16}
"""Bits of activations; None: float."""
TILE = 256
"""Preferred tile of the files written, packed pixels without the halo."""
GOLDEN_SIDE = 32

Echo = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Converted:
    """One file, or why there is none."""

    format: Format
    precision: Precision
    path: Path | None
    """None where the file fell short and was not kept."""
    bytes: int
    parity: Parity
    problem: str | None
    seconds: float


def convert(
    run: Path,
    out: Path,
    *,
    formats: Sequence[str] = ("tflite",),
    precisions: Sequence[str] = ("fp32",),
    calibration: Path | None = None,
    max_drop_db: float | None = None,
    echo: Echo | None = None,
) -> list[Converted]:
    """Write every format x precision of a run into `out`. Raises GateError when one fell short, after the others.

    `calibration`: folder of raws or pairs to learn activation ranges from; None: the run's own, else procedural scenes.
    """
    results = list(convert_each(run, out, formats=formats, precisions=precisions, calibration=calibration,
                                max_drop_db=max_drop_db, echo=echo))  # fmt: skip
    refuse_failed(results)
    return results


def refuse_failed(results: Sequence[Converted]) -> None:
    """Raises GateError naming every result that fell short."""
    failed = [f"{r.format} {r.precision}: {r.problem}" for r in results if r.problem]
    if failed:
        raise GateError("; ".join(failed) + "; not written")


def convert_each(
    run: Path,
    out: Path,
    *,
    formats: Sequence[str],
    precisions: Sequence[str],
    calibration: Path | None = None,
    max_drop_db: float | None = None,
    echo: Echo | None = None,
) -> Iterator[Converted]:
    """Like `convert`, one result at a time; what fell short is a result with a `problem`, not an error."""
    jobs = plan(formats, precisions)
    loaded = load_run(run)
    say = echo or (lambda line: None)
    subject = _Subject(loaded, run.resolve().name, load_calibration(loaded.config, calibration), run)
    _make_folder(out)
    for format_, precision in jobs:
        say(f"{subject.name}.{precision}.{format_}: converting")
        result = _write_one(subject, out, format_, precision, max_drop_db)
        say(f"{subject.name}.{precision}.{format_}: {result.problem or 'written'} ({result.seconds:.1f} s)")
        yield result


def plan(formats: Sequence[str], precisions: Sequence[str]) -> list[tuple[Format, Precision]]:
    """All pairs of format and precision. Raises UsageError for one that does not exist or cannot be held."""
    known = list(get_args(Precision))
    for given, allowed, what in ((formats, list(HOLDS), "format"), (precisions, known, "precision")):
        for word in given:
            if word not in allowed:
                raise UsageError(f"unknown {what} {word!r}: use one of {', '.join(allowed)}")
        if not given:
            raise UsageError(f"no {what} given: use one of {', '.join(allowed)}")
    pairs: list[tuple[Format, Precision]] = []
    for format_ in HOLDS:
        for precision in get_args(Precision):
            if format_ in formats and precision in precisions:
                if precision not in HOLDS[format_]:
                    raise UsageError(f"{format_} cannot hold {precision}: it holds {', '.join(HOLDS[format_])}")
                pairs.append((format_, precision))
    return pairs


class _Subject:
    """What all files of one conversion share: the network, its golden renderings, its scales, its provenance."""

    def __init__(self, loaded: LoadedRun, name: str, calibration: Calibration, run: Path) -> None:
        self.net, self.loaded, self.name, self.calibration = loaded.net, loaded, name, calibration
        self.network = render(self.net, calibration.golden)
        self.provenance = _provenance(loaded, run, calibration)
        self.scales = load_scales(run)
        self._quantised: dict[Precision, tuple[IspNet, QuantState]] = {}

    def quantised(self, precision: Precision) -> tuple[IspNet, QuantState | None]:
        """The network as a file of this precision holds it, and its scales; those of a quantised run as they are."""
        if precision in ("fp32", "fp16"):
            return self.net, None
        if precision not in self._quantised:
            if precision == "w8a8" and self.scales is not None:
                self._quantised[precision] = self.net, self.scales
            else:
                self._quantised[precision] = post_train(self.net, self.calibration.tiles, bits=BITS[precision])
        return self._quantised[precision]

    def twin(self, net: IspNet, state: QuantState | None) -> Tensor:
        """Golden renderings by the torch model with the same rounding."""
        if state is None:
            return self.network
        body = quantise_body(net, bits=state.bits)
        body.load_state(state)
        return render(QuantIsp(body, net.shuffle), self.calibration.golden)

    def spec(self, precision: Precision) -> IspSpec:
        """The spec of a file, without golden pair and metrics."""
        multiple = self.net.multiple
        integer = {"w8a8": TensorSpec(dtype="int8", scale=_f32(1 / 255), zero_point=-128),
                   "w8a16": TensorSpec(dtype="int16", scale=_f32(1 / 32767), zero_point=0)}  # fmt: skip
        fields = {"name": self.name, "architecture": self.net.name, "halo": self.net.halo, "multiple": multiple,
                  "parameters": sum(p.numel() for p in self.net.parameters()), **self.loaded.spec_fields}  # fmt: skip
        return IspSpec(
            **fields,
            tile=max(multiple, TILE // multiple * multiple),
            precision=precision,
            input=integer.get(precision, TensorSpec()),
            output=integer["w8a8"] if precision == "w8a8" else TensorSpec(),
            provenance=self.provenance,
        )


def _write_one(
    subject: _Subject, out: Path, format_: Format, precision: Precision, max_drop_db: float | None
) -> Converted:
    """Convert into a folder of its own beside the target, measure there, and only then give the file its name."""
    started = time.monotonic()
    stem = f"{subject.name}.{precision}"
    final, final_golden = out / f"{stem}.{format_}", out / f"{stem}.golden.npz"
    net, state = subject.quantised(precision)
    spec = subject.spec(precision)
    side = spec.tile + 2 * spec.halo
    with _workshop(out) as folder:
        path, golden_path = folder / final.name, folder / final_golden.name
        data = to_tflite(net, precision, side=side, state=state)
        path.write_bytes(embed_spec(data, spec))
        golden_input = planes_as_input(subject.calibration.golden[:1, :, :GOLDEN_SIDE, :GOLDEN_SIDE], spec)
        golden_output = run_file(path, golden_input)
        file = render_file(path, spec, subject.calibration.golden)
        parity = measure(file, subject.twin(net, state), subject.network, subject.calibration)
        problem = parity.problem(precision) or _drop_problem(parity, max_drop_db)
        spec = spec.replace(golden=_golden(golden_input, golden_output), metrics=(_metrics(parity),))
        path.write_bytes(embed_spec(data, spec))
        np.savez(golden_path, input=golden_input, output=golden_output)
        size = path.stat().st_size
        if problem is None:
            os.replace(golden_path, final_golden)
            os.replace(path, final)
        else:  # an older file of this name would look like this one's result
            final.unlink(missing_ok=True)
            final_golden.unlink(missing_ok=True)
    return Converted(
        format=format_, precision=precision, path=None if problem else final, bytes=size, parity=parity,
        problem=problem, seconds=time.monotonic() - started,
    )  # fmt: skip


def _drop_problem(parity: Parity, max_drop_db: float | None) -> str | None:
    if max_drop_db is None or parity.drop_db <= max_drop_db:
        return None
    return f"loses {parity.drop_db:.3f} dB, {max_drop_db:g} allowed"


def _golden(stored_in: np.ndarray, stored_out: np.ndarray) -> GoldenPair:
    return GoldenPair(
        input_shape=tuple(int(n) for n in stored_in.shape),
        input_sha256=hashlib.sha256(np.ascontiguousarray(stored_in).tobytes()).hexdigest(),
        output_sha256=hashlib.sha256(np.ascontiguousarray(stored_out).tobytes()).hexdigest(),
    )


def _metrics(parity: Parity) -> dict[str, Any]:
    return {
        "protocol": "golden-crops",
        "psnr_to_network_db": round(parity.network.psnr_db, 3),
        "psnr_to_quantised_torch_db": round(parity.twin.psnr_db, 3),
        "drop_db": round(parity.drop_db, 4),
        "drop_basis": parity.drop_basis,
    }


def _provenance(loaded: LoadedRun, run: Path, calibration: Calibration) -> dict[str, Any]:
    tools = {}
    for package in ("eguot-sdk", "torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert"):
        try:
            tools[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "mode": loaded.config.mode,
        "step": loaded.step,
        "config_sha256": hashlib.sha256((run / "config.json").read_bytes()).hexdigest(),
        "data": dict(loaded.state.get("data", {})),
        "calibration": calibration.source,
        "tools": tools,
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Commit of the checkout this package runs from; None where it is installed, or git is absent."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
    )
    return done.stdout.strip() or None


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be made a folder ({error.strerror}); give another --out") from error


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """A folder inside `out` for unfinished files, gone afterwards whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix=".convert-", dir=out))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _f32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))
