"""Run folders of compressed networks: a run like training leaves, plus what a w8a8 file must hold.

Such a run is its float network, to whatever reads runs. Beside it lie the weights on int8 steps, as a part of their own
in the checkpoint, and their scales; `convert --precision w8a8` takes both as they are, and measures them against the
float network.

RUN/quantisation.json   version, bits, scale and zero point of every activation, scales of all weights, layers left
                        in float, and the checkpoint they belong to.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save
from torch import Tensor, nn

from eguot_sdk.errors import CheckpointError, EguotError, OutputError, UsageError
from eguot_train.checkpoint import (
    LoadedRun,
    checkpoints,
    load_weights,
    part,
    prefixed,
    read_checkpoint,
    save_checkpoint,
    write_file,
)
from eguot_train.config import TrainConfig
from eguot_train.isps.base import IspNet

from .fake_quant import QuantState
from .integer_form import float_form, integer_form

FILE = "quantisation.json"
VERSION = 2
PART = "quantised"
"""Of the checkpoint: the weights on int8 steps."""
PROGRESS = "progress"
"""Folder of the steps kept of a run that takes long, until it is whole."""
MAX_SCALES = 1 << 24
"""Characters read of quantisation.json; a scale takes some twenty."""


def refuse_existing(out: Path) -> None:
    """Raises UsageError where `out` is there already: results of hours are not overwritten."""
    if out.exists():
        raise UsageError(f"{out} exists already; give another --out or delete it")


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when all went well and is gone otherwise."""
    refuse_existing(out)
    with _refusing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)
        os.replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _refusing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{out} cannot be made a folder ({error.strerror}); give another --out") from error


@dataclasses.dataclass(frozen=True, slots=True)
class Unfinished:
    """The folder OUT.unfinished of a run that takes long: what it will be, and steps kept on the way.

    FOLDER/progress/checkpoints/NNNNNN.safetensors, of which the two newest stay.
    """

    folder: Path
    asked: Mapping[str, Any]
    """All that the steps depend on, as JSON holds it."""

    def kept(self) -> tuple[int, dict[str, Tensor]]:
        """The last step kept and its tensors; 0 and none. Raises UsageError where something else was asked then."""
        found = checkpoints(self.folder / PROGRESS)
        if not found:
            return 0, {}
        tensors, state = read_checkpoint(found[-1])
        before = state.get("asked", {})
        for key, now in json.loads(json.dumps(self.asked)).items():
            if before.get(key) != now:
                raise UsageError(
                    f"{self.folder} was started with {key}={before.get(key)!r:.80}, which cannot become {now!r:.80}: "
                    "give what it was started with, or delete it and start anew"
                )
        return state["step"], tensors

    def keep(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a step. Raises OutputError."""
        save_checkpoint(self.folder / PROGRESS, step, tensors, {"asked": dict(self.asked)})


def refuse_begun(out: Path, resume: bool) -> None:
    """Raises UsageError where `out`, or an unfinished one, is in the way; CheckpointError: nothing to resume."""
    refuse_existing(out)
    begun = unfinished_name(out)
    if resume and not begun.is_dir():
        raise CheckpointError(f"{begun} does not exist, so there is nothing to resume: start without --resume")
    if not resume and begun.exists():
        raise UsageError(f"{begun} is left from a run that was stopped: go on with --resume, or delete it")


def unfinished_name(out: Path) -> Path:
    """Where a run that takes long lies until it is whole."""
    return out.with_name(f"{out.name}.unfinished")


@contextmanager
def resumable(out: Path, asked: Mapping[str, Any], resume: bool) -> Iterator[Unfinished]:
    """A folder OUT.unfinished that becomes `out` when all went well.

    It stays, for `resume`, after Ctrl-C, a full disk or a kill, where a step has been kept; it is gone after an error
    that another try would meet again.
    """
    refuse_begun(out, resume)
    folder = unfinished_name(out)
    with _refusing(out):
        folder.mkdir(parents=True, exist_ok=resume)  # of two that start at once, the second fails here
    unfinished = Unfinished(folder, asked)
    unfinished.kept()  # another run's steps are refused, and stay
    try:
        yield unfinished
        os.replace(folder, out)
    except BaseException as error:
        again = isinstance(error, EguotError) and not isinstance(error, OutputError)
        if again or not checkpoints(folder / PROGRESS):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(out / PROGRESS, ignore_errors=True)


def weights_hash(net: nn.Module) -> str:
    """SHA-256 of all weights and their names."""
    return hashlib.sha256(save({name: tensor.contiguous() for name, tensor in net.state_dict().items()})).hexdigest()


def save_derived(
    folder: Path,
    config: TrainConfig,
    net: nn.Module,
    source: LoadedRun,
    made_by: Mapping[str, Any],
    quantised: tuple[nn.Module, QuantState] | None = None,
) -> None:
    """Write the float `net` derived from `source` as a run into `folder`, and its int8 form where it has one.

    `made_by` says how and ends in its provenance.
    """
    kept = {"data": source.state.get("data", {}), "made_by": dict(made_by)}
    if "fixed" in source.state:
        kept["fixed"] = source.state["fixed"]
    write_file(folder / "config.json", config.to_json().encode())
    tensors = prefixed("ema", net.state_dict())
    if quantised is not None:
        tensors |= prefixed(PART, quantised[0].state_dict())
    checkpoint = save_checkpoint(folder, config.steps, tensors, kept)
    if quantised is not None:
        record = {"version": VERSION, "checkpoint": checkpoint.name, **dataclasses.asdict(quantised[1])}
        write_file(folder / FILE, json.dumps(record).encode())


def load_scales(run: Path) -> QuantState | None:
    """The scales of a quantised run; None for a float run. Raises CheckpointError where they are not usable."""
    path = run / FILE
    if not path.is_file():
        return None
    try:
        with open(path, encoding="utf-8") as file:
            record = json.loads(file.read(MAX_SCALES))
        activations = {str(n): (float(s), int(z)) for n, (s, z) in record["activations"].items()}
        weights = {str(n): tuple(float(s) for s in scales) for n, scales in record["weights"].items()}
        state = QuantState(
            bits=record["bits"], activations=activations, weights=weights, float_layers=tuple(record["float_layers"])
        )
        scales = [*(s for s, _ in activations.values()), *(s for channels in weights.values() for s in channels)]
        usable = record["version"] == VERSION and state.bits == 8
        with np.errstate(over="ignore", under="ignore"):
            held = np.array(scales, np.float32)  # as networks and files hold them
        usable &= bool(np.isfinite(held).all() and (held > 0).all())
        usable &= set(state.float_layers) <= set(weights)
        usable &= all(-128 <= z <= 127 for _, z in activations.values())
        checkpoint = record["checkpoint"]
    except (ValueError, TypeError, KeyError, AttributeError, OSError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: not scales that `eguot-sdk quantize` wrote ({error!r:.80})") from error
    if not usable:
        raise CheckpointError(f"{path}: a version or values this eguot-sdk does not know; quantise the run again")
    found = checkpoints(run)
    if not found or found[-1].name != checkpoint:
        raise CheckpointError(f"{path}: belongs to {checkpoint!r:.80}, which is not the newest; quantise again")
    return state


def load_quantised(run: Path, net: IspNet) -> tuple[IspNet, QuantState] | None:
    """The int8 form of a quantised run whose float network is `net`; None for a float run.

    Raises CheckpointError.
    """
    state = load_scales(run)
    if state is None:
        return None
    newest = checkpoints(run)[-1]
    rounded = copy.deepcopy(integer_form(float_form(net)))
    try:
        load_weights(rounded, part(PART, read_checkpoint(newest)[0]), newest.name)
    except CheckpointError as error:
        raise CheckpointError(
            f"{run}: its int8 form is not this eguot-sdk's; quantise the run again ({error})"
        ) from error
    return rounded.eval(), state
