"""How near the files of every format are to torch, for the runs given.

    python benchmarks/compress/formats.py RUN... --out runs/formats

Writes every file that `convert` writes for fp32, fp16, int8 weights and int8, and prints what parity measured on the
golden crops: PSNR to torch (integer files: to the torch network with the same rounding), the largest difference, and
the share of values beyond 2 LSB. Core ML is evaluated op by op, on one tile of the size in the file. A run that has
its figures in OUT is not converted again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import click

from eguot_compress.convert import convert_each
from eguot_sdk.cli import Program
from eguot_train.checkpoint import load_run

FORMATS = ("tflite", "coreml", "onnx")
PRECISIONS = ("fp32", "fp16", "w8", "w8a8")


def measure(run: Path, out: Path) -> dict[str, list[float]]:
    """By "FORMAT PRECISION": dB to torch, largest difference in LSB, share beyond 2 LSB, scales that differ, bytes."""
    kept = out / "figures.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    found = {}
    for r in convert_each(
        run, out, formats=FORMATS, precisions=PRECISIONS, echo=lambda line: click.echo(line, err=True)
    ):
        p = r.parity.twin
        differing = r.parity.scales.differing if r.parity.scales is not None else 0
        found[f"{r.format} {r.precision}"] = [p.psnr_db, p.max_lsb, p.over_2_lsb, differing, r.bytes]
    kept.write_text(json.dumps(found, indent=1))
    return found


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    """One row a network and format."""
    lines = ["| | fp32 dB | fp16 dB | int8 weights dB | int8 dB | int8: max LSB, over 2 LSB | scales equal |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, found in rows.items():
        for format_ in FORMATS:
            cells = [f"{min(found[f'{format_} {p}'][0], 200):.1f}" for p in PRECISIONS]
            _, largest, beyond, _, _ = found[f"{format_} w8a8"]
            differing = sum(found[f"{format_} {p}"][3] for p in ("w8", "w8a8"))
            equal = "all" if differing == 0 else f"{differing:.0f} differ"
            apart = f"{largest:.1f}, {100 * beyond:.4f}%"
            lines.append(f"| {name}, {format_} | {' | '.join(cells)} | {apart} | {equal} |")
    return "\n".join(lines)


@click.command(cls=Program)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(runs: tuple[Path, ...], out: Path) -> None:
    """Convert the runs and print the table."""
    loaded = {run: load_run(run) for run in runs}
    count = Counter(found.net.name for found in loaded.values())
    rows = {}
    for run, found in loaded.items():
        name = found.net.name
        place = hashlib.sha256(f"{run.resolve()} {found.step}".encode()).hexdigest()[:8]
        rows[name if count[name] == 1 else f"{name} ({run})"] = measure(run, out / f"{name}-{place}")
    click.echo(table(rows))


if __name__ == "__main__":
    main()
