"""The commands `profile`, `compare` and `devices`. Heavy imports happen inside them, so that `--help` stays quick."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eguot_sdk.cli import finite
from eguot_sdk.errors import STOPPED

if TYPE_CHECKING:
    from .profile import Asked

DEVICE_HELP = "Where to measure: local, ssh://[user@]host[:port][/path/to/python3], adb[:serial]. Repeatable."


def _threads(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in value.split(",")) if value else ()
    except ValueError:
        raise click.BadParameter(f"expected whole numbers such as 1,2,4, not {value!r}") from None


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--device", "devices", multiple=True, required=True, help=DEVICE_HELP)
@click.option("--raw", type=click.Path(path_type=Path), help="Raw to develop.  [default: a synthetic one of 3 MP]")
@click.option("--pairs", type=click.Path(path_type=Path), help="Folder of pairs to score pictures on, in the same run.")
@click.option("--threads", callback=_threads, metavar="N,N,...", help="Also measure with these numbers of threads.")
@click.option(
    "--sustained",
    type=click.FloatRange(0),
    default=0.0,
    callback=finite("a number"),
    metavar="SECONDS",
    help="Also develop so long on end.",
)
@click.option("--delegate", metavar="LIB", help="TFLite delegate library on the device; it is code and will run.")
@click.option(
    "--max-seconds",
    type=click.FloatRange(1),
    callback=finite("a number"),
    metavar="S",
    help="Longest time for one device, set-up included.",
)
@click.option(
    "--budget-ms",
    type=click.FloatRange(0, min_open=True),
    callback=finite("a number"),
    metavar="MS",
    help="Name the best model whose frame (adb: tile) takes at most this at the 90th percentile.",
)
@click.option("--benchmark-model", type=click.Path(path_type=Path), help="LiteRT's tool for Android, for adb devices.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for report.json, report.csv and report.html.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
def profile(
    models: tuple[str, ...],
    devices: tuple[str, ...],
    raw: Path | None,
    pairs: Path | None,
    threads: tuple[int, ...],
    sustained: float,
    delegate: str | None,
    max_seconds: float | None,
    budget_ms: float | None,
    benchmark_model: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure speed, memory and picture quality of ISP files, or of `default`.

    Each model gets a process of its own: one tile on one thread, raw to picture per megapixel, peak memory, operators,
    parity with a reference, and with --pairs PSNR, SSIM and CIEDE2000. An ssh board needs Python 3.11 and nothing else.
    The exit code is 1 where a model could not be measured, and 130 after Ctrl-C, which keeps what was measured.
    """
    from .compare import budget_lines
    from .profile import Asked, Interrupted
    from .profile import profile as run
    from .report import failure_line, to_json, to_table, write_report

    asked = Asked(
        raw=raw, pairs=pairs, threads=threads, sustained_s=sustained, delegate=delegate, max_seconds=max_seconds
    )
    stopped = False
    with tempfile.TemporaryDirectory() as pictures:
        try:
            report = run(
                models,
                device=devices,
                asked=asked,
                benchmark_model=benchmark_model,
                pictures=Path(pictures),
                out=out,
                command=_command(models, devices, asked),
            )
        except Interrupted as stop:
            report, stopped = stop.report, True
        # It took minutes to measure: where it cannot be written it is shown, where it cannot be shown it is written.
        try:
            if out is not None:
                for path in write_report(report, out, pictures=Path(pictures), pairs=pairs):
                    click.echo(f"wrote {path}", err=True)
        finally:
            click.echo(to_json(report) if as_json else to_table(report))
            if budget_ms is not None:
                for device in report.devices:
                    click.echo("\n" + "\n".join(budget_lines(device, budget_ms)), err=as_json)
    failed = [failure for device in report.devices for failure in device.failed]
    if failed:
        if as_json:
            for failure in failed:
                click.echo(f"Error: {failure_line(failure)}", err=True)
        raise SystemExit(STOPPED if stopped else 1)


def _command(models: tuple[str, ...], devices: tuple[str, ...], asked: Asked) -> str:
    """The command line with names instead of paths, for the report."""
    words = ["eguot-sdk", "profile", *(Path(model).name for model in models)]
    words += [word for device in devices for word in ("--device", device)]
    for option, path in (("--raw", asked.raw), ("--pairs", asked.pairs)):
        words += [option, path.resolve().name] if path is not None else []
    words += ["--threads", ",".join(map(str, asked.threads))] if asked.threads else []
    words += ["--sustained", f"{asked.sustained_s:g}"] if asked.sustained_s else []
    words += ["--delegate", Path(asked.delegate).name] if asked.delegate is not None else []
    words += ["--max-seconds", f"{asked.max_seconds:g}"] if asked.max_seconds is not None else []
    return shlex.join(words)


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--fail-slower",
    type=click.FloatRange(0),
    callback=finite("a number"),
    metavar="PCT",
    help="Exit 3 where a time grew by more, beyond noise.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def compare(before: Path, after: Path, fail_slower: float | None, as_json: bool) -> None:
    """Say what became faster, slower, better or worse between two reports, beyond noise.

    BEFORE and AFTER: report.json of `profile --out`, or its folder.
    With --fail-slower a time that only BEFORE has is an error (exit 1), and so is one that seems to have grown by more,
    but within noise: nobody could say that it did not grow.
    """
    import dataclasses
    import json

    from eguot_sdk.errors import EguotError, GateError

    from .compare import compare as run
    from .compare import comparison_lines, differences, missing_times, too_slow, undecided
    from .report import read_report

    earlier, later = read_report(before), read_report(after)
    changes = run(earlier, later)
    missing = missing_times(earlier, later)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(c) | {"percent": c.percent} for c in changes], indent=1))
    else:
        click.echo("\n".join(comparison_lines(changes)))
    for line in missing:
        click.echo(f"not compared: {line}", err=True)
    for line in differences(earlier, later):
        click.echo(f"note: {line}", err=True)
    slower = [] if fail_slower is None else too_slow(changes, fail_slower)
    if slower:
        worst = max(slower, key=lambda c: c.percent)
        raise GateError(
            f"{len(slower)} times grew by more than {fail_slower:g} %: {worst.model} on {worst.device}, {worst.what} "
            f"{worst.percent:+.1f} %"
        )
    doubtful = [] if fail_slower is None else missing + undecided(changes, fail_slower)
    if doubtful:
        raise EguotError(doubtful[0])


@click.command()
@click.argument("names", metavar="[DEVICE...]", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def devices(names: tuple[str, ...], as_json: bool) -> None:
    """Show this machine, phones that adb sees, and the boards named: processor, memory, runtimes, delegates.

    A board is named as for `profile`: ssh://[user@]host[:port]. The exit code is 1 where one named cannot be reached.
    """
    import json

    from .listing import as_text, look

    found = look(names)
    click.echo(json.dumps(found, indent=1) if as_json else as_text(found))
    if any("error" in device and device["device"] in names for device in found):
        raise SystemExit(1)
