"""Makes examples/report/report.*: six networks x three precisions on two devices, from shipped photos alone.

    make board && python examples/report/make.py --out runs/report

Five networks of `eguot-sdk isps` and one class of one's own are trained supervised for a few hundred steps on what one
synthetic camera makes of the photos of the `raw` side (examples/photos/split.json), and scored on crops of the `test`
side, which no training saw. So short a training ranks networks by how quickly they learn, not by how good they get.
What exists in --out is used again.

The devices are this machine and the emulated arm64 board behind a loopback sshd, as the tests use it. The board says
what its pictures, parity and memory are; its times are no latency, and the page keeps them off its axis.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from eguot_compress.convert import convert
from eguot_devices.profile import Asked, profile
from eguot_devices.report import to_table, write_report
from eguot_sdk.pairs import list_pairs, write_pair
from eguot_sdk.raw import RawFrame
from eguot_train.data.synth import synth_folder
from eguot_train.recipes import for_machine
from eguot_train.trainer import train

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests/board", "tests/devices", "benchmarks/front")]
os.environ["EGUOT_TRUST_RUN"] = "1"  # of the runs made here, one names a class outside the package

from make_board import find_board  # noqa: E402
from ssh_boards import ssh_board  # noqa: E402

PHOTOS = ROOT / "examples" / "photos"
NETWORKS = {
    "robustisp": "robustisp",
    "efficientisp": "efficientisp",
    "qisp-32x1": "candidates:Q32x1",
    "qisp-s": "qisp-s",
    "qisp-m": "qisp-m",
    "qisp-l": "qisp-l",
}
"""Names in the report, and what `--isp` builds; one is a class of one's own, in benchmarks/front/candidates.py."""
PRECISIONS = ("fp32", "fp16", "w8a8")
STEPS = 400
DEVICES = ("local", "ssh://board")
MAX_SECONDS = 420.0
"""For each device: the speed runs of eighteen files share it."""
TEST_IMAGES, TEST_HEIGHT, TEST_WIDTH = 6, 96, 128
"""Few and small: the second device may be an emulated one."""


def main() -> None:
    """Train, convert, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for data, runs and files")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of each network")
    parser.add_argument("--board", type=Path, default=ROOT / ".board", help="the emulated board: `make board`")
    parser.add_argument("--report", type=Path, default=ROOT / "examples" / "report", help="folder for report.*")
    arguments = parser.parse_args()
    out: Path = arguments.out
    pairs = make_data(out)
    files = [path for name in NETWORKS for path in make_files(name, out, arguments.steps)]
    measure(files, pairs, arguments.board, arguments.report)


def make_data(out: Path) -> Path:
    """Raws of one synthetic camera under out/train, and the small test pairs; returns the folder of the latter."""
    split: dict[str, list[str]] = json.loads((PHOTOS / "split.json").read_text(encoding="utf-8"))
    test = out / "test-crops"
    if test.is_dir():
        return test
    for side in ("raw", "test"):
        shutil.rmtree(out / side, ignore_errors=True)
        (out / "photos" / side).mkdir(parents=True, exist_ok=True)
        for name in split[side]:
            shutil.copy(PHOTOS / name, out / "photos" / side / name)
        synth_folder(out / side, srgb=out / "photos" / side)
    beside = out / "test-crops.unfinished"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    for pair in list_pairs(out / "test" / "pairs")[:TEST_IMAGES]:
        frame, truth = pair.frame(), pair.truth()
        # The middle of the picture, on even pixels so that the Bayer phase stays.
        top, left = ((size - crop) // 4 * 2 for size, crop in zip(truth.shape, (TEST_HEIGHT, TEST_WIDTH), strict=False))
        rows, columns = slice(top, top + TEST_HEIGHT), slice(left, left + TEST_WIDTH)
        crop = RawFrame.from_array(
            frame.mosaic[rows, columns].copy(), cfa=frame.cfa, black=frame.black, white=frame.white,
            white_balance=frame.white_balance, matrix=frame.matrix,
        )  # fmt: skip
        write_pair(beside, pair.name, crop, truth[rows, columns].copy())
    beside.rename(test)
    return test


def make_files(name: str, out: Path, steps: int) -> list[Path]:
    """The ISP files of one network, trained and converted unless they are there."""
    run, files = out / "runs" / name, out / "files"
    paths = [files / f"{name}.{precision}.tflite" for precision in PRECISIONS]
    if not all(path.is_file() for path in paths):
        if not (run / "checkpoints" / f"{steps:06}.safetensors").is_file():
            shutil.rmtree(run, ignore_errors=True)
            print(f"== train {name}", file=sys.stderr, flush=True)
            train(for_machine("supervised", pairs=str(out / "raw" / "pairs"), isp=NETWORKS[name], steps=steps), run)
        print(f"== convert {name}", file=sys.stderr, flush=True)
        convert(run, files, precisions=PRECISIONS, echo=lambda line: print(line, file=sys.stderr, flush=True))
    return paths


def measure(files: list[Path], pairs: Path, board_folder: Path, report_folder: Path) -> None:
    """Both devices into one report."""
    board = find_board(board_folder)
    words = ["eguot-sdk profile", *(path.name for path in files), *(f"--device {name}" for name in DEVICES)]
    command = " ".join([*words, f"--pairs {pairs.name}", f"--max-seconds {MAX_SECONDS:g}"])
    with tempfile.TemporaryDirectory() as work:
        folder, pictures = Path(work) / "board", Path(work) / "pictures"
        pictures.mkdir()
        shell = board.command(["/bin/sh"], binds={folder / "tmp": "/tmp"}, with_wheels=True)
        with ssh_board(folder, shell) as server:
            os.environ["PATH"] = f"{server.bin_folder}:{os.environ['PATH']}"
            report = profile(
                files,
                device=DEVICES,
                asked=Asked(pairs=pairs, max_seconds=MAX_SECONDS),
                pictures=pictures,
                command=command,
            )
        write_report(report, report_folder, pictures=pictures, pairs=pairs)
    print(to_table(report))


if __name__ == "__main__":
    main()
