"""The commands of this package; found by `eguot-sdk` through the entry-point group `eguot_sdk.commands`.

Heavy imports happen inside the commands, so that `--help` stays quick.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eguot_sdk.cli import finite
from eguot_sdk.errors import GateError
from eguot_train import MAX_SEED

if TYPE_CHECKING:
    from .convert import Converted, Via
    from .lint import Finding

PAIRS_HELP = "Pairs, a data set or shards; default: the run's own data, else procedural scenes."
SHOWN = 3
"""Places of one fault that `lint` names; `--json` names all."""


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "formats", default="tflite", show_default=True, help="Comma list of tflite, coreml, onnx.")
@click.option("--precision", "precisions", default="fp32", show_default=True,
              help="Comma list of fp32, fp16, w8 (int8 weights), w8a8 (int8), w8a16 (int16; .tflite).")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write NAME.PRECISION.EXT into.")
@click.option("--calibration", type=click.Path(path_type=Path),
              help="Raws, pairs, a data set or shards to learn int8 ranges from; default: the run's own.")  # fmt: skip
@click.option("--max-drop-db", type=click.FloatRange(min=0), callback=finite("a number of dB"),
              help="Refuse a file that loses more PSNR against float than this: measured where there are pairs, else "
              "estimated for a picture of 30 dB.")  # fmt: skip
@click.option("--via", type=click.Choice(["litert-torch", "onnx2tf"]), default="litert-torch", show_default=True,
              help="What writes .tflite files; onnx2tf (float and own int8 ranges) is there to check by.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def convert(
    run: Path,
    formats: str,
    precisions: str,
    out: Path,
    calibration: Path | None,
    max_drop_db: float | None,
    via: Via,
    as_json: bool,
) -> None:
    """Write the ISP of RUN (or `default`) as files for phones and boards, each checked against torch."""
    from eguot_train.checkpoint import named_run

    from .convert import convert_each, refuse_failed

    results = list(
        convert_each(
            named_run(run), out, formats=_words(formats), precisions=_words(precisions), calibration=calibration,
            max_drop_db=max_drop_db, via=via, echo=lambda line: click.echo(line, err=True),
        )
    )  # fmt: skip
    summary = {"run": run.resolve().name, "files": [_as_json(r) for r in results]}
    click.echo(json.dumps(summary) if as_json else _table(results))
    refuse_failed(results)


def _folders(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say where to learn from."""
    for name, text in (
        ("--srgb", "Photos, sent back to raws like those of --raw."),
        ("--raw", "Raws; the teacher renders the targets."),
        ("--pairs", PAIRS_HELP),
    ):
        command = click.option(name, type=click.Path(path_type=Path), help=text)(command)
    return command


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--pairs", type=click.Path(path_type=Path), help=PAIRS_HELP)
@click.option("--raw", type=click.Path(path_type=Path), help="Raws, in the place of pairs.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder to create.")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, show_default=True, help="Seed of the crops.")
def quantize(run: Path, pairs: Path | None, raw: Path | None, out: Path, seed: int) -> None:
    """Quantise RUN (or `default`) to int8 without training, in seconds."""
    from eguot_train.checkpoint import named_run

    from .material import Folders
    from .ptq import quantize as run_quantize

    run_quantize(named_run(run), out, folders=Folders(pairs=pairs, raw=raw), seed=seed)
    click.echo(f"quantised {out}", err=True)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@_folders
@click.option("--teacher", type=click.Path(path_type=Path), help="Run that renders the targets; default: RUN itself.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder to create.")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps.  [default: 1500]")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, show_default=True, help="Seed of the crops.")
@click.option("--resume", is_flag=True, help="Go on with OUT.unfinished, what a run that was stopped has left.")
def qat(
    run: Path,
    pairs: Path | None,
    raw: Path | None,
    srgb: Path | None,
    teacher: Path | None,
    out: Path,
    steps: int | None,
    seed: int,
    resume: bool,
) -> None:
    """Quantise RUN (or `default`) to int8 and train it with the rounding in place."""
    from eguot_train.checkpoint import named_run

    from .material import Folders
    from .qat import STEPS
    from .qat import qat as run_qat

    folders = Folders(pairs=pairs, raw=raw, srgb=srgb)
    run_qat(named_run(run), out, folders=folders, teacher=teacher, steps=steps or STEPS, seed=seed, resume=resume)
    click.echo(f"trained {out}", err=True)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--isp", required=True, help="Architecture of the student: of `eguot-sdk isps`, or package.module:Class.")
@_folders
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder to create.")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps.  [default: 3000]")
@click.option(
    "--seed", type=click.IntRange(0, MAX_SEED), default=0, show_default=True, help="Seed of weights and crops."
)
@click.option("--resume", is_flag=True, help="Go on with OUT.unfinished, what a run that was stopped has left.")
def distill(
    run: Path,
    isp: str,
    pairs: Path | None,
    raw: Path | None,
    srgb: Path | None,
    out: Path,
    steps: int | None,
    seed: int,
    resume: bool,
) -> None:
    """Train a small ISP to render what RUN (or `default`) renders."""
    from eguot_train.checkpoint import named_run

    from .distill import STEPS
    from .distill import distill as run_distill
    from .material import Folders

    folders = Folders(pairs=pairs, raw=raw, srgb=srgb)
    run_distill(named_run(run), out, isp=isp, folders=folders, steps=steps or STEPS, seed=seed, resume=resume)
    click.echo(f"trained {out}", err=True)


@click.command()
@click.option(
    "--isp",
    "subject",
    required=True,
    metavar="NAME|RUN|FILE",
    help="Architecture (package.module:Class too), run folder, `default` or .tflite.",
)
@click.option("--target", "targets", default="tflite-cpu,tflite-gpu,nnapi,coreml-ane", show_default=True,
              help="Comma list of runtimes.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def lint(subject: str, targets: str, as_json: bool) -> None:
    """Say what runtimes would refuse or run slowly, before anyone trains. Exit code 3 where something is refused."""
    from .lint import lint as run_lint

    findings = run_lint(subject, _words(targets))
    if as_json:
        click.echo(json.dumps({"isp": Path(subject).name, "findings": [dataclasses.asdict(f) for f in findings]}))
    else:
        for line in _grouped(findings):
            click.echo(line)
        count = f"{len(findings)} finding{'' if len(findings) == 1 else 's'}"
        click.echo(f"{Path(subject).name}: {count if findings else 'clean'}")
    refused = sum(f.severity == "error" for f in findings)
    if refused:
        raise GateError(f"{Path(subject).name}: {refused} of {len(findings)} findings are errors")


def _grouped(findings: Sequence[Finding]) -> Iterator[str]:
    """One line for all places that share a fault: a deep network has the same one in dozens of layers."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for f in findings:
        places.setdefault((f.severity, f.what, ", ".join(f.targets)), []).append(f.where)
    for (severity, what, targets), where in places.items():
        more = f" and {len(where) - SHOWN} more" if len(where) > SHOWN else ""
        yield f"{severity}: {', '.join(where[:SHOWN])}{more}: {what} ({targets})"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _as_json(result: Converted) -> dict[str, Any]:
    record = dataclasses.asdict(result)
    record["path"] = None if result.path is None else str(result.path)
    return record


def _table(results: list[Converted]) -> str:
    """One row per file: size, agreement with torch, loss against the float network."""
    head = ("file", "bytes", "vs torch dB", "max LSB", ">1 LSB", ">2 LSB", "vs float dB", "drop dB", "ramp LSB")
    rows = [head]
    for r in results:
        p = r.parity
        estimated = "~" if p.drop_basis == "estimate" else ""
        rows.append((
            r.path.name if r.path else f"(no {r.format} {r.precision})", f"{r.bytes:,}", f"{p.twin.psnr_db:.1f}",
            f"{p.twin.max_lsb:.2f}", f"{100 * p.twin.over_1_lsb:.3f}%", f"{100 * p.twin.over_2_lsb:.3f}%",
            f"{p.network.psnr_db:.1f}", f"{estimated}{p.drop_db:.3f}", f"{p.banding_lsb:.2f}",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    for r in results:
        lines.append(f"{r.format} {r.precision}: {_ops(r)}")
    lines += [f"Core ML files: {how}" for how in {r.runtime for r in results if r.format == "coreml"}]
    for r in results:
        if r.float_layers and r.problem is None:
            kept = ", ".join(r.float_layers)
            lines.append(f"{r.format} {r.precision}: {kept} kept in float to meet the drop asked for")
    checked = [r.parity.scales for r in results if r.parity.scales is not None]
    if checked:
        total, differing = sum(c.total for c in checked), sum(c.differing for c in checked)
        lines.append(f"scales read back from the files: {total - differing} of {total} are the network's")
    if any(r.format == "onnx" and r.precision == "w8a8" and r.path is not None for r in results):
        lines.append(
            "onnx w8a8: x86 processors without VNNI saturate its sums and give another picture (README, Limits)"
        )
    note = "~ estimated for a 30 dB picture; calibrate on pairs to measure it"
    return "\n".join([*lines, note] if any(r.parity.drop_basis == "estimate" for r in results) else lines)


def _ops(result: Converted) -> str:
    """The ops of a file, and what each target's delegate would leave to the CPU."""
    ops = ", ".join(f"{name} {count}" for name, count in result.ops.items())
    taken = [target for target, left in result.left_to_cpu.items() if not left]
    parts = [f"all taken by {', '.join(taken)}"] if taken else []
    leaving: dict[str, list[str]] = {}
    for target, left in result.left_to_cpu.items():
        if left:
            leaving.setdefault(", ".join(left), []).append(target)
    parts += [
        f"{', '.join(targets)} {'leaves' if len(targets) == 1 else 'leave'} {left}" for left, targets in leaving.items()
    ]
    return "; ".join([ops, *parts])
