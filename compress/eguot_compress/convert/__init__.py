"""From a run to files that phones and boards run, each checked against torch before it gets its name.

`convert` writes NAME.PRECISION.EXT with its spec inside and a golden input/output pair beside it (NAME is the run
folder's name). A file that falls short of parity or of the drop asked for is not left behind.
"""

from __future__ import annotations

import copy
import dataclasses
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

from eguot_compress.calibration import Calibration, load_calibration, rounded_up
from eguot_compress.exact_picture import Kernels, exact_picture
from eguot_compress.fake_quant import Bits, QuantIsp, QuantState, quantise_body
from eguot_compress.integer_form import float_form, integer_form
from eguot_compress.lint import INT8, Target, left_to_cpu, lint_network
from eguot_compress.parity import Difference, Parity, drop_db, measure, render
from eguot_compress.ptq import half_weights, post_train
from eguot_compress.quant_run import load_quantised
from eguot_sdk.errors import EguotError, GateError, OutputError, UsageError
from eguot_sdk.spec import GoldenPair, IspSpec, Precision, TensorSpec
from eguot_train.checkpoint import LoadedRun, load_run
from eguot_train.isps.base import IspNet

from .contents import compare_scales
from .coreml import FLOAT32_COMPUTE
from .formats import FORMATS, FileFormat, Format, as_stored, by_onnx2tf, from_stored, require
from .tflite_onnx2tf import PRECISIONS as ONNX2TF_PRECISIONS

BITS: dict[Precision, Bits | None] = {"w8": None, "w8a8": 8, "w8a16": 16}
"""Bits of activations; None: float."""
TILE = 256
"""Preferred tile of the files written, packed pixels without the halo."""
GOLDEN_SIDE = 32
"""Side of the golden input, rounded up to what the network takes."""
WRITTEN_OUT_DB = 80.0
"""Least agreement of a network with its forms for conversion, rounding switched off."""

OWN_SCALES_DB = 1.0
"""What a converter that finds its own int8 scales may lose more than ours."""

Echo = Callable[[str], None]
Via = Literal["litert-torch", "onnx2tf"]
"""Ways to a .tflite."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """One file, or why there is none."""

    format: Format
    precision: Precision
    path: Path | None
    """None where the file fell short and was not kept."""
    bytes: int
    parity: Parity
    runtime: str
    """What ran the file for parity."""
    ops: dict[str, int]
    left_to_cpu: dict[Target, list[str]]
    """By target: the ops of the file that its delegate does not take, by published lists."""
    float_layers: tuple[str, ...]
    """Layers put back to float to meet the drop asked for."""
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
    via: Via = "litert-torch",
    echo: Echo | None = None,
) -> list[Converted]:
    """Write every format x precision of a run into `out`. Raises GateError when one fell short, after the others.

    `calibration`: folder of raws or pairs to learn activation ranges from; None: the run's own, else procedural scenes.
    `via`: which converter writes .tflite files; onnx2tf is there to check the other by.
    """
    results = list(convert_each(run, out, formats=formats, precisions=precisions, calibration=calibration,
                                max_drop_db=max_drop_db, via=via, echo=echo))  # fmt: skip
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
    via: Via = "litert-torch",
    echo: Echo | None = None,
) -> Iterator[Converted]:
    """Like `convert`, one result at a time; what fell short is a result with a `problem`, not an error."""
    jobs = plan(formats, precisions, via)
    require(via if via == "onnx2tf" else format_ for format_ in dict(jobs))
    loaded = load_run(run)
    say = echo or (lambda line: None)
    _refuse_unfit(loaded.net, loaded.config.isp, jobs)
    crops = load_calibration(loaded.config, calibration, multiple=loaded.net.multiple)
    subject = _Subject(loaded, run.resolve().name, crops, run)
    own_scales = subject.quantised is not None and "w8a8" in precisions
    if via == "onnx2tf" and own_scales:
        raise UsageError(f"onnx2tf cannot carry the scales of {run}: give the float run, or leave --via out")
    source = subject.calibration.source
    say(f"calibration and golden crops: {source['kind']} ({source['files']})")
    if own_scales:
        say("w8a8: with the run's own scales; the crops only check it")
    new = not out.exists()
    _make_folder(out)
    kinds = {**FORMATS, "tflite": by_onnx2tf(subject.calibration.tiles)} if via == "onnx2tf" else FORMATS
    try:
        for at, (format_, precision) in enumerate(jobs, 1):
            name = f"{subject.name}.{precision}.{FORMATS[format_].suffix}"
            say(f"{name}: converting ({at} of {len(jobs)})")
            result = _write_one(subject, out, format_, kinds[format_], precision, max_drop_db)
            say(f"{name}: {result.problem or 'written'} ({result.seconds:.1f} s)")
            yield result
    finally:
        if new and not any(out.iterdir()):  # nothing came of it
            out.rmdir()


def plan(
    formats: Sequence[str], precisions: Sequence[str], via: Via = "litert-torch"
) -> list[tuple[Format, Precision]]:
    """All pairs of format and precision. Raises UsageError for one that does not exist or cannot be held."""
    if via == "onnx2tf" and list(formats) != ["tflite"]:
        raise UsageError("--via onnx2tf writes TFLite: give --format tflite alone")
    known = list(get_args(Precision))
    for given, allowed, what in ((formats, list(FORMATS), "format"), (precisions, known, "precision")):
        for word in given:
            if word not in allowed:
                raise UsageError(f"unknown {what} {word!r}: use one of {', '.join(allowed)}")
        if not given:
            raise UsageError(f"no {what} given: use one of {', '.join(allowed)}")
    pairs: list[tuple[Format, Precision]] = []
    refused: list[str] = []
    for name, kind in FORMATS.items():
        for precision in get_args(Precision):
            if name in formats and precision in precisions:
                holds = ONNX2TF_PRECISIONS if via == "onnx2tf" else kind.precisions
                if precision not in holds:
                    by = " by onnx2tf" if via == "onnx2tf" else ""
                    refused.append(f"{name}{by} cannot hold {precision}: it holds {', '.join(holds)}")
                pairs.append((name, precision))
    if refused:
        more = "; convert what they hold together, and the rest apart" if len(pairs) > len(refused) else ""
        raise UsageError("; ".join(refused) + more)
    return pairs


TARGET_OF: dict[Format, Target] = {"tflite": "tflite-cpu", "coreml": "coreml-ane"}
"""The target whose refusals stop a conversion to a format."""


def _refuse_unfit(net: IspNet, isp: str, jobs: Sequence[tuple[Format, Precision]]) -> None:
    """Raises EguotError with the first thing that lint holds against the network in a format asked for."""
    errors = [f for f in lint_network(net) if f.severity == "error"]
    for format_, precision in jobs:
        for finding in errors:
            concerns_it = finding.where != INT8 or BITS.get(precision) is not None
            if concerns_it and (format_ not in TARGET_OF or TARGET_OF[format_] in finding.targets):
                if format_ == "onnx" and finding.where != INT8:  # onnxruntime takes what phones do not
                    continue
                raise EguotError(
                    f"{net.name} cannot become {format_} {precision}: {finding.where}: {finding.what} "
                    f"(`eguot-sdk lint --isp {isp}` lists all)"
                )


class _Subject:
    """What all files of one conversion share: the network, its golden renderings, its scales, its provenance."""

    def __init__(self, loaded: LoadedRun, name: str, calibration: Calibration, run: Path) -> None:
        self.net = float_form(loaded.net)
        self.integer_net = integer_form(self.net)
        self.loaded, self.name = loaded, name
        self.calibration = calibration.suited_to(self.net)
        self._compare(self.net, loaded.net.eval())
        self.provenance = _provenance(loaded, run) | {"golden": calibration.source}
        self.quantised = load_quantised(run, loaded.net)
        self._holdings: dict[Precision, Holding] = {}

    def holding(self, precision: Precision) -> Holding:
        """The network as a file of this precision holds it; the int8 form of a quantised run is taken as it is."""
        if precision == "fp32":
            return Holding(self.net, None)
        if precision not in self._holdings:
            if precision in BITS:
                body = quantise_body(self.integer_net, bits=BITS[precision])
                body.enable(False)
                self._compare(QuantIsp(body, self.net.shuffle), self.net)
            made: tuple[IspNet, QuantState | None]
            if precision == "fp16":
                made = half_weights(self.net, self.calibration.tiles), None
            elif precision == "w8a8" and self.quantised is not None:
                made = self.quantised
            else:
                made = post_train(self.integer_net, self.calibration.tiles, bits=BITS[precision])
            self._holdings[precision] = Holding(*made)
        return self._holdings[precision]

    def _compare(self, form: torch.nn.Module, network: torch.nn.Module) -> None:
        """Raises EguotError where a form of the network computes another picture than the network."""
        crop = self.calibration.golden[:1]
        if Difference.between(render(form, crop), render(network, crop)).psnr_db < WRITTEN_OUT_DB:
            raise EguotError(
                f"{self.net.name}: what is converted computes another picture; is a layer's forward its own?"
            )

    def _learned_from(self, precision: Precision) -> dict[str, Any]:
        """What the numbers of this precision were fitted on here; those of a quantised run were fitted before."""
        if precision == "fp32" or (precision == "w8a8" and self.quantised is not None):
            return {}
        return {"calibration": self.calibration.source}

    def spec(self, kind: FileFormat, precision: Precision) -> IspSpec:
        """The spec of a file, without golden pair and metrics."""
        multiple = self.net.multiple
        parameters = sum(p.numel() for p in self.net.parameters())
        fields = {**self.loaded.spec_fields, "name": self.name, "parameters": parameters}
        return IspSpec(
            **fields,
            tile=max(multiple, TILE // multiple * multiple),
            fixed_tile=kind.fixed_tile,
            layout=kind.layout,
            precision=precision,
            input=kind.inputs.get(precision, TensorSpec()),
            output=kind.outputs.get(precision, TensorSpec()),
            provenance={**self.provenance, **self._learned_from(precision), "tools": _versions(kind.tools)},
        )


@dataclass(frozen=True)
class Holding:
    """Weights and scales of one file; no scales for float files."""

    net: IspNet
    state: QuantState | None

    def render(self, planes: Tensor, *, kernels: Kernels | None = "xnnpack") -> Tensor:
        """What torch makes of `planes` with the rounding of the file; `kernels` as in `exact_picture`."""
        if self.state is None:
            return render(self.net, planes)
        body = quantise_body(self.net, bits=self.state.bits)
        body.load_state(self.state)
        return exact_picture(body, self.net.shuffle, planes, kernels=kernels)

    def with_float_layer(self, name: str, original: IspNet) -> Holding:
        """The same with one layer as it was before quantisation."""
        assert self.state is not None
        net = copy.deepcopy(self.net)
        net.get_submodule(name).load_state_dict(original.get_submodule(name).state_dict())
        return Holding(net, dataclasses.replace(self.state, float_layers=(*self.state.float_layers, name)))

    def _plain(self, name: str) -> bool:
        """Whether every format can keep the layer in float: a convolution of one group with a bias."""
        layer = self.net.get_submodule(name)
        return isinstance(layer, torch.nn.Conv2d) and layer.groups == 1 and layer.bias is not None

    def worst_layer(self, original: IspNet, network: Tensor, calibration: Calibration) -> tuple[str, Holding] | None:
        """The layer whose rounding costs most, and the holding with it in float; None where none can be kept so."""
        assert self.state is not None
        found = {name: self.with_float_layer(name, original) for name in self.state.weights if self._plain(name)}
        losses = {n: drop_db(h.render(calibration.golden), network, calibration.truths) for n, h in found.items()}
        worst = min(losses, key=lambda name: losses[name], default=None)
        return None if worst is None else (worst, found[worst])


def _write_one(
    subject: _Subject, out: Path, format_: Format, kind: FileFormat, precision: Precision, max_drop_db: float | None
) -> Converted:
    """Convert into a folder of its own beside the target, measure there, and only then give the file its name."""
    started = time.monotonic()
    spec = subject.spec(kind, precision)
    side = spec.tile + 2 * spec.halo
    check = subject.calibration.at_side(side) if spec.fixed_tile else subject.calibration
    network = render(subject.net, check.golden)
    holding, layers = subject.holding(precision), ()  # type: tuple[Holding, tuple[str, ...]]
    with _workshop(out) as folder:
        path = folder / f"{subject.name}.{precision}.{kind.suffix}"
        parity, spec = _write_and_measure(kind, spec, path, holding, network, check, side)
        fault = _fault(parity, kind, holding, precision)
        problem = fault or _drop_problem(parity, max_drop_db, precision)
        can_retry = problem and fault is None and holding.state is not None and kind.exact
        found = holding.worst_layer(subject.integer_net, network, check) if can_retry else None
        if found is not None:
            worst, retried = found
            parity, spec = _write_and_measure(kind, spec, path, retried, network, check, side)
            still = _fault(parity, kind, retried, precision) or _drop_problem(parity, max_drop_db, precision)
            problem = f"{problem}; worst layer is {worst}, with it in float: {still}" if still else None
            holding, layers = retried, (worst,)
        contents = kind.read(path)
        golden = _golden_input(check, spec, side if spec.fixed_tile else None)
        golden_in = as_stored(golden, spec)
        golden_out = kind.run(path, golden_in)
        metrics = (_metrics(parity, kind, layers),)
        kind.embed(path, spec.replace(golden=_golden(golden_in, golden_out), metrics=metrics))
        golden_path = path.with_name(_golden_name(path.name))
        np.savez_compressed(golden_path, input=golden_in, output=golden_out)
        size = sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())
        for made in (golden_path, path):
            _remove(out / made.name)  # where a file fell short, an older one would look like its result
            if problem is None:
                os.replace(made, out / made.name)
    final = out / f"{subject.name}.{precision}.{kind.suffix}"
    return Converted(
        format=format_, precision=precision, path=None if problem else final, bytes=size, parity=parity,
        runtime=kind.runtime, ops=contents.ops,
        left_to_cpu=left_to_cpu(
            format_, contents.ops, half=precision not in FLOAT32_COMPUTE, int16=precision == "w8a16"
        ),
        float_layers=layers, problem=problem, seconds=time.monotonic() - started,
    )  # fmt: skip


def _write_and_measure(
    kind: FileFormat, spec: IspSpec, path: Path, holding: Holding, network: Tensor, check: Calibration, side: int
) -> tuple[Parity, IspSpec]:
    """Parity of the file now at `path`, and its spec: the one given, with the file's own scales where it has some."""
    _remove(path)
    kind.write(holding.net, spec.precision, path, side=side, state=holding.state)
    if kind.ports is not None:
        entry, exit_ = kind.ports(path)
        spec = spec.replace(input=entry, output=exit_)
    kind.embed(path, spec)
    file = from_stored(kind.run(path, as_stored(check.golden, spec)), spec)
    if file.shape != network.shape:
        raise EguotError(
            f"{path.name} makes pictures of {list(file.shape[2:])}, the network of {list(network.shape[2:])}: an op is "
            "tied to a size (`eguot-sdk lint` may name it)"
        )
    if holding.state is None:
        return measure(file, network, network, check, None), spec
    scales = compare_scales(kind.read(path), holding.state) if kind.exact else None
    twin = holding.render(check.golden, kernels=kind.kernels)
    return measure(file, twin, network, check, scales), spec


def _fault(parity: Parity, kind: FileFormat, holding: Holding, precision: Precision) -> str | None:
    """What is wrong with the conversion itself. A file with scales of its own need not equal ours in integers."""
    if kind.exact or holding.state is None:
        return parity.problem(precision)
    more = parity.drop_db - parity.twin_drop_db
    if more <= OWN_SCALES_DB:
        return None
    return f"loses {more:.1f} dB more than with our scales, {OWN_SCALES_DB:g} allowed"


def _golden_input(check: Calibration, spec: IspSpec, side: int | None) -> Tensor:
    """[1, 4, h, w]: a small crop, or a whole one for a network that must see the whole frame.

    Where the file takes one size only, in the middle of a black tile of it.
    """
    wanted = check.golden.shape[-1] if spec.global_context else rounded_up(GOLDEN_SIDE, spec.multiple)
    crop = check.golden[:1, :, :wanted, :wanted]
    if side is None:
        return crop
    before = (side - crop.shape[-1]) // 2
    after = side - crop.shape[-1] - before
    return torch.nn.functional.pad(crop, (before, after, before, after))


def _golden_name(name: str) -> str:
    """NAME.PRECISION.golden.npz beside a .tflite, NAME.PRECISION.SUFFIX.golden.npz beside the others."""
    return f"{name.removesuffix('.tflite')}.golden.npz"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _drop_problem(parity: Parity, max_drop_db: float | None, precision: Precision) -> str | None:
    if max_drop_db is None or parity.drop_db <= max_drop_db:
        return None
    way_out = "allow a larger --max-drop-db" + (", or convert a run of `qat`" if precision == "w8a8" else "")
    if parity.drop_basis == "estimate":
        way_out = f"estimated, --calibration PAIRS measures it; {way_out}"
    return f"loses {parity.drop_db:.4f} dB, {max_drop_db:g} allowed ({way_out})"


def _golden(stored_in: np.ndarray, stored_out: np.ndarray) -> GoldenPair:
    return GoldenPair(
        input_shape=tuple(int(n) for n in stored_in.shape),
        input_sha256=hashlib.sha256(np.ascontiguousarray(stored_in).tobytes()).hexdigest(),
        output_sha256=hashlib.sha256(np.ascontiguousarray(stored_out).tobytes()).hexdigest(),
    )


def _metrics(parity: Parity, kind: FileFormat, float_layers: tuple[str, ...]) -> dict[str, Any]:
    return {
        "protocol": "golden-crops",
        "runtime": kind.runtime,
        "float_layers": list(float_layers),
        "psnr_to_network_db": round(parity.network.psnr_db, 3),
        "psnr_to_quantised_torch_db": round(parity.twin.psnr_db, 3),
        "drop_db": round(parity.drop_db, 4),
        "drop_basis": parity.drop_basis,
    }


def _provenance(loaded: LoadedRun, run: Path) -> dict[str, Any]:
    made_by = loaded.state.get("made_by")  # of `quantize`, `qat` and `distill`
    return {
        **({} if made_by is None else {"made_by": made_by}),
        "mode": loaded.config.mode,
        "step": loaded.step,
        "config_sha256": hashlib.sha256((run / "config.json").read_bytes()).hexdigest(),
        "data": dict(loaded.state.get("data", {})),
        "git_commit": _git_commit(),
    }


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed, and of this package and torch."""
    found = {}
    for package in ("eguot-sdk", "torch", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


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
