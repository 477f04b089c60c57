"""What is fuzzed: any bytes must end in a result that holds its promises or in one of our errors of one line.

Shared by `run.py`, which looks for bytes that do not, and by `test_findings.py`, which tries all that were ever found.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np

from eguot_sdk import IspSpec, RawFrame, read_raw
from eguot_sdk.errors import EguotError, IspFileError, RawError
from eguot_sdk.ingest import Ingest
from eguot_sdk.ispfile import describe_bytes, find_spec
from eguot_sdk.shading import shaded
from eguot_sdk.spec import TensorSpec

TESTS = Path(__file__).resolve().parent.parent
SPEC = IspSpec(
    name="fuzz",
    architecture="none",
    parameters=0,
    halo=0,
    input=TensorSpec(dtype="int8", scale=1 / 255, zero_point=-128),
)
MAX_PIXELS = 4_000_000
"""A valid file may be larger, but takes a fuzzer too long."""


def raw(data: bytes) -> None:
    """`read_raw`, lens shading and ingest."""
    with _one_line(RawError):
        frame = read_raw(data)
        _develop(frame)


def _develop(frame: RawFrame) -> None:
    if frame.mosaic.size > MAX_PIXELS:
        return
    frame = shaded(frame, "auto")
    tile = np.empty((16, 16, 4), np.int8)
    ingest = Ingest(frame, SPEC)
    for top, left in ((-3, -3), (ingest.height - 8, ingest.width - 8)):
        ingest.fill(tile, top, left)
    assert all(1.0 <= gain < np.inf for gain in ingest.gains), ingest.gains
    assert ingest.matrix is not None
    assert np.isfinite(ingest.matrix).all()


def ispfile(data: bytes) -> None:
    """A spec as JSON, the spec in a .tflite, and what `inspect` shows of one."""
    with _one_line(IspFileError):
        spec = IspSpec.from_json(data)
        assert IspSpec.from_json(spec.to_json()) == spec
    with _one_line(IspFileError):
        find_spec(data, "fuzz")
        json.dumps(describe_bytes(data, "fuzz"))


@contextmanager
def _one_line(kind: type[EguotError]) -> Iterator[None]:
    """Within: errors of this kind are fine if they are one line."""
    try:
        yield
    except kind as error:
        if "\n" in str(error):
            raise AssertionError(f"more than a line: {error}") from error


TARGETS: dict[str, Callable[[bytes], None]] = {"raw": raw, "ispfile": ispfile}


def seeds(target: str) -> Iterator[bytes]:
    """Good files to begin with."""
    if target == "ispfile":
        yield SPEC.to_json().encode()
        for name in ("tiny.w8a8", "tiny.fp32", "tiny.w8a16"):
            yield (TESTS / "data" / f"{name}.tflite").read_bytes()
        return
    makers = _load(TESTS / "sdk" / "conftest.py"), _load(TESTS / "sdk" / "test_shading.py")
    dng, shading = makers[0].dng_bytes, makers[1]
    counts = np.random.default_rng(7).integers(64, 4000, (32, 48)).astype(np.uint16)
    maps = [shading.opcode(np.ones((3, 3)), site) for site in shading.SITES]
    matrix = tuple(v for x in (9020, -2890, -715, -4535, 12436, 2348, -934, 1919, 7086) for v in (x, 10000))
    for order in "<>":
        for cfa in ("RGGB", "BGGR"):
            yield dng(counts, cfa=cfa, order=order)
    yield dng(counts, t51009=(1, tuple(shading.opcode_list(*maps))))
    yield dng(counts, t50722=(10, matrix), t50779=(3, 17), t50964=(10, matrix), t50965=(10, matrix))
    yield dng(counts, t50723=(10, matrix), t50727=(5, (1, 1, 1, 1, 1, 1)), t50829=(4, (1, 2, 31, 47)))
    # Whole numbers as fractions and floats, which can be no numbers at all.
    yield dng(counts, t33421=(11, (2, 2)), t50829=(12, (0, 0, 32, 48)), t50778=(5, (21, 1)), t279=(11, counts.nbytes))
    yield (TESTS / "data" / "kodak_dc50_0012L.kdc").read_bytes()
    yield (TESTS / "data" / "canon_s40_0117.crw").read_bytes()[:60000]


def _load(path: Path) -> ModuleType:
    """A module of the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(f"fuzz_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
