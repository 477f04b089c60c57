"""Every kind of .tflite through tflite-runtime 2.14, the last of its line, in an environment of its own.

It wants NumPy 1 and Python 3.11 at most, so the tests make a virtual environment for it and skip where that fails.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from eguot_compress.convert import Converted, convert
from eguot_compress.convert.formats import as_stored
from eguot_compress.parity import run_tflite
from eguot_sdk.ispfile import read_spec

PRECISIONS = ("fp32", "fp16", "w8", "w8a8", "w8a16")
SIZES = ((16, 16), (34, 50), (96, 20))
SCRIPT = """
import sys
import numpy as np
from tflite_runtime.interpreter import Interpreter

model, *tiles = sys.argv[1:]
for tile in tiles:
    stored = np.load(tile)
    interpreter = Interpreter(model, num_threads=1)
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], stored.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], stored)
    interpreter.invoke()
    np.save(tile + ".out.npy", interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
"""


@pytest.fixture(scope="session")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has tflite-runtime 2.14."""
    if sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime 2.14 has no wheels for Python 3.12 and later")
    folder = tmp_path_factory.mktemp("tflite-runtime")
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "tflite-runtime==2.14.0", "numpy<2"], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        pytest.skip(f"pip cannot install tflite-runtime 2.14: {done.stderr.strip().splitlines()[-1:]}")
    return python


@pytest.fixture(scope="module")
def files(run: Path, make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Converted]:
    """All precisions of a plain network, integer ones of one with tanh, int8 of one with transposed convolutions."""
    out, runs = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("runs")
    tanh, transposed = make_run(runs / "tanh", "efficientisp"), make_run(runs / "transposed", "unet32")
    others = convert(tanh, out, precisions=["w8a8", "w8a16"]) + convert(transposed, out, precisions=["w8a8"])
    return convert(run, out, precisions=PRECISIONS) + others


def test_every_file_runs_at_any_tile(old_python: Path, files: list[Converted], tmp_path: Path) -> None:
    assert len(files) == 8
    generator = torch.Generator().manual_seed(0)
    for result in files:
        assert result.path is not None, result.problem
        spec = read_spec(result.path)
        tiles = []
        sizes = [tuple(-(-side // spec.multiple) * spec.multiple for side in size) for size in SIZES]
        for i, size in enumerate(sizes):
            planes = torch.rand(1, 4, *size, generator=generator) * 0.4 + 0.3
            tiles.append(tmp_path / f"{result.path.stem}-{i}.npy")
            np.save(tiles[-1], as_stored(planes, spec))
        command = [str(old_python), "-c", SCRIPT, str(result.path), *map(str, tiles)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{result.path.name}: {done.stderr[-600:]}"
        for tile, size in zip(tiles, sizes, strict=True):
            old, new = np.load(f"{tile}.out.npy"), run_tflite(result.path, np.load(tile))
            assert old.shape == new.shape == (1, 2 * size[0], 2 * size[1], 3)
            apart = np.abs(old.astype(np.float64) - new)
            if spec.output.dtype == "int8":  # the two round differently
                deep = spec.name == "transposed"  # every layer spreads the differences of those before it
                assert apart.max() <= (10 if deep else 3), result.path.name
                assert (apart > 2).mean() <= (0.1 if deep else 0.002), result.path.name
            else:
                assert apart.max() <= (1e-2 if spec.precision == "w8a16" else 1e-4), result.path.name
