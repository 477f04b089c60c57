"""What a device's own pictures and outputs are worth: against the truth, and against a reference runtime.

The reference is the golden pair that `convert` wrote beside the file; without one, what LiteRT's reference kernels make
of a fixed input on the asking machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eguot_sdk.errors import EguotError
from eguot_sdk.evaluation import MAX_DB, Evaluation, score_image
from eguot_sdk.ingest import dequantise, quantise
from eguot_sdk.ispfile import read_spec
from eguot_sdk.pairs import Pair
from eguot_sdk.paths import encoded
from eguot_sdk.spec import IspSpec

from .measure import GOLDEN_OUTPUT, Job
from .schema import Accuracy, Parity, to_dict
from .targets.conversation import ask
from .targets.local import WORKER

GOLDEN_SIDE = 32
MAX_GOLDEN_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True, slots=True)
class Golden:
    """One input and the output it should give, both as the model stores them."""

    input_path: Path
    """A .npy of [1, h, w, 4]."""
    output: NDArray[Any]
    """[1, H, W, 3]"""
    reference: str


def make_golden(job: Job, folder: Path) -> Golden:
    """The golden pair of an ISP file, its input written into `folder`. Raises EguotError where it does not run."""
    model = Path(job.model)
    spec = read_spec(model)
    where = folder / hashlib.sha256(encoded(job.model)).hexdigest()[:16]
    where.mkdir()
    path = where / "input.npy"
    beside = _golden_beside(model, spec)
    if beside is not None:
        np.save(path, beside[0], allow_pickle=False)
        return Golden(input_path=path, output=beside[1], reference="golden pair")
    side = spec.tile + 2 * spec.halo if spec.fixed_tile else -(-GOLDEN_SIDE // spec.multiple) * spec.multiple
    planes = np.random.default_rng(0).random((1, side, side, 4), np.float32)
    np.save(path, quantise(planes, spec.input), allow_pickle=False)
    request = dataclasses.replace(job, golden=str(path), outputs=str(where))
    ask(WORKER, {"op": "reference", "job": to_dict(request)}, lambda words: None)
    output = np.load(where / GOLDEN_OUTPUT, allow_pickle=False)
    return Golden(input_path=path, output=output, reference="LiteRT's reference kernels on the asking machine")


def _golden_beside(model: Path, spec: IspSpec) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """What lies beside the file, where it is the pair whose hashes are inside the file."""
    path = model.with_suffix(".golden.npz")
    if spec.golden is None or not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:  # before NumPy, which believes what a member says of its size
            if sum(member.file_size for member in archive.infolist()) > MAX_GOLDEN_BYTES:
                return None
        with np.load(path, allow_pickle=False) as arrays:
            given, made = np.ascontiguousarray(arrays["input"]), np.ascontiguousarray(arrays["output"])
    except (OSError, ValueError, KeyError, MemoryError, zipfile.BadZipFile):
        return None
    hashes = tuple(hashlib.sha256(values.tobytes()).hexdigest() for values in (given, made))
    return (given, made) if hashes == (spec.golden.input_sha256, spec.golden.output_sha256) else None


def parity(golden: Golden, outputs: Path, spec: IspSpec) -> Parity | None:
    """The device's output of the golden input against the reference's; None where it could not give one."""
    path = outputs / GOLDEN_OUTPUT
    if not path.is_file():
        return None
    try:
        made = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise EguotError(f"the device's output of the golden input cannot be read ({error})") from error
    if made.shape != golden.output.shape or made.dtype != golden.output.dtype:
        raise EguotError(
            f"the device's output of the golden input is {made.dtype} {list(made.shape)}, the reference's "
            f"{golden.output.dtype} {list(golden.output.shape)}"
        )
    difference = 255.0 * np.abs(
        dequantise(made, spec.output).astype(np.float64) - dequantise(golden.output, spec.output).astype(np.float64)
    )
    mean_square = float(np.mean(difference**2))
    if not np.isfinite(mean_square):
        raise EguotError(
            "the device's output of the golden input, or the reference's, holds values that are no numbers"
        )
    return Parity(
        reference=golden.reference,
        max_levels=float(difference.max()),
        beyond_one_level=float(np.mean(difference > 1.001)),
        psnr_db=min(10 * np.log10(255.0**2 / mean_square), MAX_DB) if mean_square > 0 else MAX_DB,
    )


def accuracy(pictures: Path, pairs: Sequence[Pair]) -> Accuracy:
    """Scores of NAME.png for every pair. Raises EguotError where one is missing or of another size."""
    evaluation = Evaluation(
        tuple(score_image(pair.name, read_picture(pictures, pair.name), pair.truth()) for pair in pairs)
    )
    return Accuracy(
        protocol=evaluation.protocol,
        images=len(evaluation.scores),
        psnr_db=evaluation.mean("psnr_db"),
        ssim=evaluation.mean("ssim"),
        de2000=evaluation.mean("de2000"),
        psnr_affine_db=evaluation.mean("psnr_affine_db"),
    )


def read_picture(folder: Path, name: str) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] that a device made of a pair."""
    from PIL import Image

    try:
        with Image.open(folder / f"{name}.png", formats=("PNG",)) as image:
            return np.array(image.convert("RGB"), np.uint8)
    except OSError as error:
        raise EguotError(f"the device's picture of {name} cannot be read ({error})") from error
