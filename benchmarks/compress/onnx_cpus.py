"""One int8 .onnx on two processors: this one, and one without VNNI, which qemu-user emulates.

    python benchmarks/compress/onnx_cpus.py FILE.w8a8.onnx [--cpu Haswell]

onnxruntime sums pairs of products of uint8 values and int8 weights in 16 bits where the processor has no VNNI, and
such sums saturate. Inputs, all seeded: procedural scenes, noise, and noise of black and white only. The processor
here must have VNNI; needs `qemu-x86_64` or `qemu-x86_64-static`. No times: an emulation has none.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import onnxruntime
import torch

from eguot_compress.calibration import load_calibration
from eguot_compress.convert.onnx_file import run_onnx
from eguot_compress.parity import Difference
from eguot_sdk.cli import Program
from eguot_sdk.errors import UsageError
from eguot_train.checkpoint import load_run, named_run

RUN = """
import sys, numpy as np, torch
from pathlib import Path
from eguot_compress.convert.onnx_file import run_onnx
np.save(sys.argv[3], run_onnx(Path(sys.argv[1]), torch.from_numpy(np.load(sys.argv[2]))).numpy())
"""


@click.command(cls=Program)
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--cpu", default="Haswell", show_default=True, help="A processor that qemu knows (`qemu-x86_64 -cpu help`)."
)
def main(file: Path, cpu: str) -> None:
    """Compare what FILE makes here with what it makes on --cpu."""
    emulator = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if emulator is None or "vnni" not in Path("/proc/cpuinfo").read_text():
        raise UsageError("needs a Linux machine whose processor has VNNI, and qemu-x86_64 (Debian: qemu-user-static)")
    run = load_run(named_run(Path("default")))
    scenes = load_calibration(run.config, None, multiple=run.net.multiple).golden[:6]
    noise = torch.rand(2, *scenes.shape[1:], generator=torch.Generator().manual_seed(0))
    click.echo(f"{file.name}, onnxruntime {onnxruntime.__version__}: {cpu} against this processor")
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "in.npy", Path(folder) / "out.npy"
        for name, planes in (("scenes", scenes), ("noise", noise), ("black and white", (noise > 0.5).float())):
            np.save(given, planes.numpy())
            command = [emulator, "-cpu", cpu, sys.executable, "-c", RUN, str(file.resolve()), str(given), str(made)]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            found = Difference.between(torch.from_numpy(np.load(made)), run_onnx(file, planes))
            over = f"{100 * found.over_2_lsb:.1f}% over 2 LSB"
            click.echo(f"{name:16} {found.psnr_db:6.1f} dB, at most {found.max_lsb:.0f} LSB, {over}")


if __name__ == "__main__":
    main()
