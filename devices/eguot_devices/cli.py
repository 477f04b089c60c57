"""The command `profile`. Heavy imports happen inside it, so that `--help` stays quick."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--device", required=True, help="Where to measure: local, this machine.")
@click.option("--raw", type=click.Path(path_type=Path), help="Raw to develop.  [default: a synthetic one of 3 MP]")
@click.option("--pairs", type=click.Path(path_type=Path), help="Folder of pairs to score pictures on, in the same run.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for report.json and report.csv.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
def profile(
    models: tuple[str, ...], device: str, raw: Path | None, pairs: Path | None, out: Path | None, as_json: bool
) -> None:
    """Measure speed, memory and picture quality of ISP files, or of `default`.

    Each model gets a process of its own: one tile on one thread, raw to picture per megapixel, peak memory, and with
    --pairs PSNR, SSIM and CIEDE2000. The exit code is 1 where a model could not be measured.
    """
    from .profile import profile as run
    from .report import failure_line, to_json, to_table, write_report

    report = run(models, device=device, raw=raw, pairs=pairs)
    for path in write_report(report, out) if out is not None else []:
        click.echo(f"wrote {path}", err=True)
    click.echo(to_json(report) if as_json else to_table(report))
    if report.failed:
        if as_json:
            for failure in report.failed:
                click.echo(f"Error: {failure_line(failure)}", err=True)
        raise SystemExit(1)
