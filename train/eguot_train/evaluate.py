"""Scores of training runs and ISP files on a folder of pairs.

A run is scored by its EMA weights through torch, whole frame by whole frame with the halo reflected, which is what the
SDK's tiles add up to. A file is scored through the runtime that will run it, and torch is never imported for it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eguot_sdk.errors import MissingDependency, UsageError
from eguot_sdk.evaluation import Evaluation, Render, evaluate
from eguot_sdk.isp import ISP
from eguot_sdk.pairs import list_pairs

DEFAULT = "default"
"""Names the ISP inside the package."""


def evaluate_model(model: str | Path, pairs: Path) -> Evaluation:
    """Score a run folder, an ISP file or `default` on a pairs folder. Raises EguotError."""
    render = run_render(Path(model)) if Path(model).is_dir() else file_render(model)
    return evaluate(render, list_pairs(pairs), label=f"evaluate {Path(model).name}")


def run_render(run: Path) -> Render:
    """How a run folder renders: its EMA weights through torch. Raises CheckpointError, MissingDependency."""
    try:
        import torch  # noqa: F401 - only to say what is missing
    except ImportError as error:
        raise MissingDependency("torch", needed_for="scoring a run folder", pip="'eguot-sdk[train]'") from error
    from .checkpoint import load_run
    from .render import render_frame

    loaded = load_run(run)
    return lambda frame: render_frame(loaded.net, frame, loaded.config.color_input)


def file_render(model: str | Path) -> Render:
    """How an ISP file renders, through its real runtime. Raises UsageError, IspFileError."""
    if str(model) == DEFAULT and not Path(model).exists():
        return _eight_bits(ISP.load())
    if not Path(model).is_file():
        raise UsageError(f"{model}: no such run folder or ISP file; give a folder of `train`, a .tflite or `{DEFAULT}`")
    return _eight_bits(ISP.load(model))


def _eight_bits(isp: ISP) -> Render:
    return lambda frame: isp.process(frame).astype(np.uint8, copy=False)


def csv_path(model: str | Path, pairs: Path, out: Path | None) -> Path:
    """Where the per-image CSV goes: into `out`, else into the run, beside the file, or here for `default`."""
    path, folder = Path(model), pairs.resolve().name
    if path.is_dir():
        return (out or path) / f"evaluate-{folder}.csv"
    stem = path.name.removesuffix(path.suffix) if path.is_file() else DEFAULT
    return (out or (path.parent if path.is_file() else Path())) / f"{stem}-evaluate-{folder}.csv"
