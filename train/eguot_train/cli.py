"""The commands `train` and `isps`. Flags choose and locate; everything else is a key of TrainConfig (`--set`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from eguot_sdk.errors import STOPPED

from . import MAX_SEED

if TYPE_CHECKING:
    from .config import Mode

OPTIONS = {
    "init": "give --init, which also takes over the network and a gentler learning rate",
    "isp": "give --isp, which also takes over the architecture's recipe",
    "mode": "name it: `train MODE`, which also takes over the mode's recipe",
}
"""Keys that are more than their value, and what to give instead."""


@click.command()
@click.argument("mode", type=click.Choice(["unpaired", "paired", "mixed", "supervised"]))
@click.option("--raw", type=click.Path(path_type=Path), help="Folder of raws (unpaired, mixed).")
@click.option(
    "--srgb", type=click.Path(path_type=Path), help="Folder of photos with the look you want (unpaired, mixed)."
)
@click.option("--pairs", type=click.Path(path_type=Path), help="Folder of pairs (paired, mixed, supervised).")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder to create.")
@click.option(
    "--isp",
    help="Architecture of `eguot-sdk isps`, or package.module:Class.  "
    "[default: that of --init where `isps` has it, else qisp-s]",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Training steps; schedules are fractions of it.  [default: 3000 on a CPU, 100000 on a GPU]",
)
@click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Seed of weights and batches.  [default: 0]")
@click.option("--val", type=click.Path(path_type=Path), help="Pairs to score along the way, or a set with a test part.")
@click.option(
    "--init",
    help="Run to start from, or `default` for the network behind the default ISP. The learning rate is then 3e-4, "
    "rising over 20 steps.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any other key of the config; repeatable."
)
@click.option(
    "--resume", is_flag=True, help="Continue the run in --out with its own config, changed by what else is given."
)
def train(
    mode: Any,
    raw: Path | None,
    srgb: Path | None,
    pairs: Path | None,
    out: Path,
    isp: str | None,
    steps: int | None,
    seed: int | None,
    val: Path | None,
    init: str | None,
    settings: tuple[str, ...],
    resume: bool,
) -> None:
    """Train an ISP into the run folder --out.

    unpaired: raws and photos of different scenes. paired: aligned pairs, with transport. mixed: both.
    supervised: pairs and the architecture's own published loss, as a baseline.
    """
    _refuse_unread(mode, raw=raw, srgb=srgb, pairs=pairs)  # before the seconds that torch takes to load

    from dataclasses import replace

    from . import ranks
    from .checkpoint import read_config
    from .config import UNREAD
    from .recipes import for_machine
    from .runlog import to_stderr
    from .trainer import train as run

    keys = [setting.partition("=")[0] for setting in settings]
    flags = {"raw": raw, "srgb": srgb, "pairs": pairs, "steps": steps, "seed": seed, "val": val}
    for key in keys:
        if flags.get(key) is not None:
            raise click.UsageError(f"--{key} and --set {key}=... name the same: give one")
    for key in keys:
        if key in OPTIONS:
            raise click.UsageError(f"--set {key}: {OPTIONS[key]}")
    if ranks.speaks() and (unread := sorted(set(keys) & set(UNREAD[cast("Mode", mode)]))):
        to_stderr(f"{mode} training does not look at {', '.join(unread)}")
    given = {
        "raw": raw, "srgb": srgb, "pairs": pairs, "isp": isp, "steps": steps, "seed": seed, "val": val, "init": init,
    }  # fmt: skip
    fields: dict[str, Any] = {
        key: str(value) if isinstance(value, Path) else value for key, value in given.items() if value is not None
    }
    if resume and (out / "config.json").is_file():
        config = replace(read_config(out), mode=mode, **fields).with_settings(settings)
    else:
        if init is not None:
            fields = _like(init) | fields
        device = [setting.partition("=")[2] for setting in settings if setting.startswith("device=")]
        fields |= {"device": device[-1]} if device else {}  # on a CPU other defaults fit
        config = for_machine(mode, **fields).with_settings(settings)
    try:
        run(config, out, resume=resume)
    except KeyboardInterrupt as stop:
        if ranks.speaks() and not stop.args:  # one with a message has been told already
            to_stderr(_stopped(out))
        raise SystemExit(STOPPED) from None
    if ranks.speaks():
        click.echo(f"trained {out}", err=True)


def _stopped(out: Path) -> str:
    """What is left of a run that was stopped at once, and how to go on."""
    from .checkpoint import checkpoints

    found = checkpoints(out)
    if found:
        return f"stopped; step {int(found[-1].stem)} is kept; go on with --resume"
    begun = (out / "config.json").is_file()
    return f"stopped before a step was kept; {'go on with --resume' if begun else 'start again'}"


def _like(init: str) -> dict[str, str]:
    """Architecture and colour input of the run to start from; a class of one's own must be named, for it is code."""
    from .checkpoint import named_run, read_config
    from .isps import ISPS

    start = read_config(named_run(Path(init)))
    return {"color_input": start.color_input} | ({"isp": start.isp} if start.isp in ISPS else {})


def _refuse_unread(mode: str, **folders: Path | None) -> None:
    """Raises UsageError for a folder that the mode would not look into."""
    reads = {"unpaired": ("raw", "srgb"), "mixed": ("raw", "srgb", "pairs")}.get(mode, ("pairs",))
    for name, folder in folders.items():
        if folder is not None and name not in reads:
            raise click.UsageError(f"{mode} training does not read --{name}; leave it out, or train mixed")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def isps(as_json: bool) -> None:
    """List the architectures as they run: parameters, multiply-adds per output pixel, halo, whether mobile-safe.

    mobile-safe: no op that a phone's fast path refuses; what others lose and where, `eguot-sdk lint` says.
    """
    from .isps import ISPS

    rows = [_isp_row(name) for name in ISPS]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    click.echo(f"{'name':<14}{'parameters':>12}{'MAC/pixel':>12}{'halo':>6}  {'sees':<8}{'mobile-safe':<13}in training")
    for row in rows:
        sees, safe = "frame" if row["global_context"] else "window", "yes" if row["mobile_safe"] else "no"
        training = f"{row['training']['parameters']:,} parameters" if "training" in row else ""
        line = f"{row['name']:<14}{row['parameters']:>12,}{row['macs_per_pixel']:>12,.0f}{row['halo']:>6}  "
        click.echo(f"{line}{sees:<8}{safe:<13}{training}".rstrip())


def _isp_row(name: str) -> dict[str, Any]:
    """Facts of one architecture, counted on the built network; its shapes alone are built, without memory."""
    import torch

    from .checkpoint import build_isp
    from .isps.base import macs_per_pixel

    with torch.device("meta"):
        net = build_isp(name)
        deployed = net.deploy()
    row: dict[str, Any] = {
        "name": name,
        "parameters": deployed.parameter_count(),
        "macs_per_pixel": macs_per_pixel(deployed),
        "halo": deployed.halo,
        "global_context": deployed.global_context,
        "mobile_safe": deployed.mobile_safe,
    }
    if deployed is not net:
        row["training"] = {"parameters": net.parameter_count(), "macs_per_pixel": macs_per_pixel(net)}
    return row
