"""Develop a folder of raws on the emulated arm64 board and here, and say how far the pictures differ.

    python tests/board/compare_pictures.py .board RAWS [-m MODEL]

On the board: the wheels of the base install and this checkout's SDK. LiteRT's int8 kernels for arm64 round some sums
the other way than those for x86-64, so int8 pictures differ by a few codes here and there; float ones by rounding.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
from make_board import ROOT, make_board


def main() -> int:
    """Print a line a picture; the exit code is 1 where one is missing on one side, or all are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("board", type=Path)
    parser.add_argument("raws", type=Path)
    parser.add_argument("-m", "--model", type=Path)
    options = parser.parse_args()
    board = make_board(options.board)
    with tempfile.TemporaryDirectory() as scratch:
        here, there = Path(scratch) / "here", Path(scratch) / "there"
        here.mkdir()
        there.mkdir()
        command = ["-m", "eguot_sdk.cli", "process", "--format", "png", "--threads", "2"]
        local = [sys.executable, *command, str(options.raws), "-o", str(here)]
        remote = ["env", "PYTHONPATH=/opt/site:/src/sdk", "python3", *command, "/raws", "-o", "/out"]
        binds = {ROOT: "/src", options.raws.resolve(): "/raws", there: "/out"}
        if options.model:
            local += ["-m", str(options.model)]
            remote += ["-m", "/model.tflite"]
            binds[options.model.resolve()] = "/model.tflite"
        for run in (local, board.command(remote, binds=binds)):
            subprocess.run(run, check=False)
        names = sorted({p.name for p in (*here.iterdir(), *there.iterdir())})
        print("| picture | largest difference | share of values that differ | by more than 1 |\n|---|---|---|---|")
        missing = not names
        for name in names:
            if not ((here / name).is_file() and (there / name).is_file()):
                print(f"| {name} | missing on one side | | |")
                missing = True
                continue
            one, two = (np.asarray(Image.open(side / name)).astype(np.int16) for side in (here, there))
            off = np.abs(one - two)
            print(f"| {name} | {off.max()} | {np.mean(off > 0):.3%} | {np.mean(off > 1):.4%} |", flush=True)
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
