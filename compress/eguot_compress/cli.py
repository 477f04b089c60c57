"""The commands of this package; found by `eguot-sdk` through the entry-point group `eguot_sdk.commands`.

Heavy imports happen inside the commands, so that `--help` stays quick.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .convert import Converted


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "formats", default="tflite", show_default=True, help="Comma list of tflite.")
@click.option("--precision", "precisions", default="fp32", show_default=True,
              help="Comma list of fp32, fp16, w8 (int8 weights), w8a8 (int8), w8a16 (int16 activations).")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write NAME.PRECISION.EXT into.")
@click.option("--calibration", type=click.Path(path_type=Path),
              help="Folder of raws or pairs to learn int8 ranges from; default: the run's own.")  # fmt: skip
@click.option("--max-drop-db", type=float, help="Refuse a file that loses more PSNR than this.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def convert(
    run: Path,
    formats: str,
    precisions: str,
    out: Path,
    calibration: Path | None,
    max_drop_db: float | None,
    as_json: bool,
) -> None:
    """Write the ISP of RUN as files for phones and boards, each checked against torch."""
    from .convert import convert_each, refuse_failed

    results = list(
        convert_each(
            run, out, formats=_words(formats), precisions=_words(precisions), calibration=calibration,
            max_drop_db=max_drop_db, echo=lambda line: click.echo(line, err=True),
        )
    )  # fmt: skip
    summary = {"run": run.resolve().name, "files": [_as_json(r) for r in results]}
    click.echo(json.dumps(summary) if as_json else _table(results))
    refuse_failed(results)


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
            r.path.name if r.path else f"(no {r.precision}.{r.format})", f"{r.bytes:,}", f"{p.twin.psnr_db:.1f}",
            f"{p.twin.max_lsb:.2f}", f"{100 * p.twin.over_1_lsb:.3f}%", f"{100 * p.twin.over_2_lsb:.3f}%",
            f"{p.network.psnr_db:.1f}", f"{estimated}{p.drop_db:.3f}", f"{p.banding_lsb:.2f}",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    note = "~ estimated for a 30 dB picture; calibrate on pairs to measure it"
    return "\n".join([*lines, note] if any(r.parity.drop_basis == "estimate" for r in results) else lines)
