"""The command `eguot-sdk`: its group, and `process`, `inspect` and `doctor`.

Commands of the other packages come through the entry-point group `eguot_sdk.commands` and are imported only when one
is asked for; without its extra a command still shows in --help and answers with the pip line. Results go to stdout,
progress and errors to stderr. Exit codes: 0 ok, 1 failed, 2 usage, 3 a quality gate not met, 130 Ctrl-C, SIGTERM or
SIGHUP. This module imports nothing heavy, so that --help is quick.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.metadata
import io
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

import click

from . import __version__
from .bayer import CFA_PHASES
from .errors import STOPPED, EguotError, MissingDependency, OutputError
from .paths import AS_ON_DISK, named_isp

PLUGINS = "eguot_sdk.commands"
OUR_PACKAGES = ("eguot_sdk", "eguot_train", "eguot_compress", "eguot_devices")
# Command of another package -> the extra it needs and its line in --help, shown without importing it.
EXTRAS = {
    "train": ("train", "Train an ISP from unpaired or paired photos."),
    "evaluate": ("train", "Score a run or an ISP file on pairs."),
    "isps": ("train", "List the networks `train --isp` knows."),
    "data": ("train", "Make training data."),
    "convert": ("convert", "Convert a trained run to ISP files."),
    "quantize": ("convert", "Learn int8 ranges for a trained run."),
    "qat": ("convert", "Train a run on with int8 rounding in place."),
    "distill": ("train", "Train a smaller network to do what a run does."),
    "lint": ("train", "Name every op of a network or file that a target refuses."),
    "profile": ("devices", "Measure speed, memory and quality of ISP files."),
    "compare": ("devices", "Say what changed between two reports."),
    "devices": ("devices", "Show what can be measured on."),
}


class Ending:
    """Ends a command as all of ours end: an error is one line, and whatever stops it leaves nothing half-written."""

    def invoke(self, ctx: click.Context) -> Any:
        _ready_streams()
        try:
            with _stopped_as_by_ctrl_c():
                return super().invoke(ctx)  # type: ignore[misc]
        except EguotError as error:
            _show(ctx, error)
        except ModuleNotFoundError as error:
            # A command of another package may import its dependency only when it runs.
            _show(ctx, _missing(ctx.invoked_subcommand or "", error))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            if sys.stdout is sys.__stdout__:  # what it may still hold would fail once more at the end
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            _show(ctx, OutputError("no space left on the device that output goes to"))
        except KeyboardInterrupt as stop:
            if not stop.args:  # one with a message has been told already
                with contextlib.suppress(OSError):  # the terminal may be gone
                    click.echo("stopped", err=True)
            ctx.exit(STOPPED)


class Program(Ending, click.Command):
    """A command of its own, for programs beside this package: `@click.command(cls=Program)`."""


class Programs(Ending, click.Group):
    """Several of them under one name."""


class Commands(Programs):
    """Our own commands and, by entry point, those of the other packages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_plugins()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in _plugins():
            return own
        return _load(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            own = super().get_command(ctx, name)
            rows.append((name, own.get_short_help_str(100) if own else EXTRAS.get(name, ("", ""))[1]))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _ready_streams() -> None:
    """See to it that any text can be written to stdout, names of files above all, and that there is a stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=AS_ON_DISK)
    if sys.stderr is None:  # 2>&-: whatever is opened next would be descriptor 2 and get what C libraries print
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.set_inheritable(2, True)
        sys.stderr = os.fdopen(2, "w", closefd=False)


def ends_of_a_job() -> list[int]:
    """The signals of queues and closed terminals; Windows lacks the second."""
    return [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def _stopped_as_by_ctrl_c() -> Iterator[None]:
    """Within, what ends a job or closes a terminal does what Ctrl-C does: nothing is left half-written.

    Not under torchrun: a process that waits for others would not notice, and be killed only after half a minute. What
    can stop together there takes these signals by itself.
    """
    changed: list[int] = []
    if "TORCHELASTIC_RUN_ID" not in os.environ and threading.current_thread() is threading.main_thread():
        changed = [n for n in ends_of_a_job() if signal.getsignal(n) == signal.SIG_DFL]  # nohup ignores the second
    for number in changed:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _show(ctx: click.Context, error: EguotError) -> NoReturn:
    """One line on stderr, no traceback, and the error's exit code."""
    rank = os.environ.get("RANK", "0")  # torchrun's: each of its processes says what is wrong with it
    whose = "" if rank == "0" else f"process {rank}: "
    click.echo(f"Error: {whose}{' '.join(str(error).split())}", err=True)
    ctx.exit(error.exit_code)


@functools.cache
def _plugins() -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=PLUGINS)}


def _load(name: str) -> click.Command:
    """The command of another package, or one that says what is not installed."""
    try:
        command = _plugins()[name].load()
    except ModuleNotFoundError as error:
        return _absent(name, _missing(name, error))
    except EguotError as error:
        return _absent(name, error)
    if not isinstance(command, click.Command):
        raise TypeError(f"entry point {name!r} of group {PLUGINS} must be a click.Command, not {type(command)}")
    return command


def _missing(name: str, error: ModuleNotFoundError) -> MissingDependency:
    module = (error.name or "").split(".")[0]
    if not module or module in OUR_PACKAGES or name not in {*EXTRAS, *_plugins()}:
        raise error
    extra = EXTRAS.get(name, ("dev", ""))[0]
    return MissingDependency(module, needed_for=f"`eguot-sdk {name}`", pip=f'"eguot-sdk[{extra}]"')


def _absent(name: str, error: EguotError) -> click.Command:
    def fail(arguments: tuple[str, ...]) -> NoReturn:
        raise error

    return click.Command(
        name,
        callback=fail,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        help=f"{EXTRAS.get(name, ('', ''))[1]}\n\nNot available here: {error}",
        context_settings={"ignore_unknown_options": True},
    )


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"eguot-sdk {__version__}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def main() -> None:
    """Train a camera ISP (raw Bayer in, sRGB out) from unpaired photos, convert it, run it, and measure it."""


# What cannot be read is said by what reads it; access() is wrong on network drives and in emulations.
PATH = click.Path(path_type=Path, readable=False)


def _tile(ctx: click.Context, param: click.Parameter, value: str | None) -> int | Literal["whole"] | None:
    if value is None:
        return None
    if value == "whole":
        return "whole"
    if value.isdecimal() and 0 < int(value) <= 1 << 16:
        return int(value)
    raise click.BadParameter(f"expected a number of packed pixels or the word whole, not {value!r}")


def finite(what: str) -> Callable[[click.Context, click.Parameter, float | None], float | None]:
    """Callback of an option that is finite, `what` in words: click's ranges let nan and inf pass."""

    def check(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise click.BadParameter(f"expected {what}, not {value}")
        return value

    return check


def _gains(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | Literal["auto"] | None:
    if value is None:
        return None
    if value == "auto":
        return "auto"
    gains = _numbers(value)
    if len(gains) != 3 or min(gains) <= 0:
        raise click.BadParameter(f"expected auto or three gains above 0 such as 2.1,1,1.6, not {value!r}")
    return gains


def _levels(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    levels = _numbers(value)
    if len(levels) not in (1, 4):
        raise click.BadParameter(f"expected one number or four (R,Gr,Gb,B), not {value!r}")
    return levels * (4 // len(levels))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        return ()
    return numbers if all(math.isfinite(n) for n in numbers) else ()


@main.command()
@click.argument("inputs", nargs=-1, required=True, metavar="IN...", type=PATH)
@click.option("-m", "--model", type=PATH, help="ISP file (.tflite).  [default: the default ISP]")
@click.option(
    "-o",
    "--output",
    metavar="FILE|DIR",
    help="Picture for one input, or a folder, made if absent; DIR/ is always one.  [default: the current folder]",
)
@click.option("--threads", type=click.IntRange(1, 256), help="Tiles in parallel.  [default: number of CPU cores]")
@click.option(
    "--tile",
    metavar="N|whole",
    callback=_tile,
    help="Side of a tile in packed pixels, or the whole frame at once.  [default: by caches and free memory]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["jpg", "png", "tiff"]),
    help="Of pictures in a folder.  [default: jpg, png with --bits 16]",
)
@click.option(
    "--bits", type=click.Choice(["8", "16"]), default="8", show_default=True, help="16: float ISPs, png and tiff."
)
@click.option("--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="Of JPEG pictures.")
@click.option(
    "--exposure",
    type=click.FloatRange(-16, 16),
    default=0.0,
    metavar="EV",
    callback=finite("a number of stops"),
    help="Brighter by so many stops.",
)
@click.option(
    "--wb", metavar="auto|R,G,B", callback=_gains, help="White balance: estimated, or gains.  [default: as shot]"
)
@click.option(
    "--black-level", metavar="N|R,Gr,Gb,B", callback=_levels, help="Raw counts without light.  [default: the file's]"
)
@click.option(
    "--white-level", metavar="N|R,Gr,Gb,B", callback=_levels, help="Raw counts at clipping.  [default: the file's]"
)
@click.option(
    "--cfa",
    type=click.Choice(CFA_PHASES),
    help="Colours of the first 2 x 2 pixels that are visible.",
)
@click.option(
    "--lens-shading",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Gain maps of a DNG: used where there are some, demanded, or not used.",
)
@click.option(
    "--delegate",
    type=PATH,
    metavar="LIB",
    help="TFLite delegate library; it is code and will run.",
)
@click.option(
    "--cluster", metavar="ADDRESS", help="Develop on a Dask cluster, such as tcp://HOST:8786, that sees these paths."
)
@click.option("--overwrite", is_flag=True, help="Replace pictures that exist.")
@click.option("--skip-existing", is_flag=True, help="Leave out inputs whose picture exists, by its name.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written, skipped and failed as JSON on stdout.")
def process(
    inputs: tuple[Path, ...],
    model: Path | None,
    output: str | None,
    threads: int | None,
    tile: int | Literal["whole"] | None,
    format_: str | None,
    bits: str,
    quality: int,
    exposure: float,
    wb: tuple[float, float, float] | Literal["auto"] | None,
    black_level: tuple[float, float, float, float] | None,
    white_level: tuple[float, float, float, float] | None,
    cfa: str | None,
    lens_shading: Literal["auto", "on", "off"],
    delegate: Path | None,
    cluster: str | None,
    overwrite: bool,
    skip_existing: bool,
    as_json: bool,
) -> None:
    """Develop raw files, and those that lie directly in folders, to pictures.

    A file that fails is named on stderr and does not stop the others; the exit code is then 1.

    A picture is named after its raw, IMG.dng becoming IMG.jpg, without the folder that the raw lies in: with
    --skip-existing and one -o, b/IMG.dng counts as done where a/IMG.dng was developed before.
    """
    from . import develop

    if overwrite and skip_existing:
        raise click.UsageError("--overwrite and --skip-existing exclude each other")
    if output == "-":
        raise click.UsageError("-o -: pictures are not written to stdout; name a file or a folder")
    folder = output is not None and output.endswith(("/", os.sep))
    where = None if output is None else Path(output)
    jobs = develop.plan(inputs, where, format_=format_, bits=int(bits), to_folder=folder)
    overrides = None
    if any(value is not None for value in (wb, black_level, white_level, cfa)):
        from .raw import Overrides

        overrides = Overrides(cfa=cfa, black=black_level, white=white_level, white_balance=wb)
    settings = develop.Settings(
        model=None if model is None else named_isp(model),
        threads=threads,
        tile=tile,
        delegate=delegate,
        bits=8 if bits == "8" else 16,
        quality=quality,
        exposure=exposure,
        lens_shading=lens_shading,
        overrides=overrides,
        existing="overwrite" if overwrite else "skip" if skip_existing else "fail",
    )
    result = develop.run(jobs, settings, cluster=cluster)
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=2))
    if len(jobs) > 1 or not result.failed:
        click.echo(result.summary(), err=True)
    if result.failed:
        raise SystemExit(1)


@main.command()
@click.argument("file", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def inspect(file: Path, as_json: bool) -> None:
    """Show what a raw holds and the ISP will use, or what an ISP file is.

    Of a raw: every value and where it came from. Of an ISP file, or `default`: its spec, operators and sizes.
    """
    from . import inspection

    facts = inspection.inspect_file(named_isp(file))
    click.echo(json.dumps(facts, indent=2) if as_json else inspection.as_text(facts))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def doctor(as_json: bool) -> None:
    """Show what is installed, what works, and the pip line for what does not.

    The exit code is 1 where raws cannot be read or the default ISP does not run.
    """
    from . import checkup

    facts = checkup.examine()
    click.echo(json.dumps(facts, indent=2) if as_json else checkup.as_text(facts))
    if not all(check["ok"] for check in facts["checks"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
