"""Scores of training runs and ISP files on a folder of pairs.

A run is scored by its EMA weights through torch, whole frame by whole frame with the halo reflected, which is what the
SDK's tiles add up to. A file is scored through the runtime that will run it, and torch is never imported for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from eguot_sdk.chatter import quiet
from eguot_sdk.errors import MissingDependency, UsageError
from eguot_sdk.evaluation import Evaluation, Protocol, Render, evaluate, evaluate_each
from eguot_sdk.isp import ISP
from eguot_sdk.likeness import PictureSet, summarise
from eguot_sdk.pairs import PairLike
from eguot_sdk.progress import progress_bar
from eguot_sdk.raw import RawFrame

from .data.datasets import open_dataset, pairs_of, photos_of, raws_of
from .data.shards import is_shards, read_index, shard_files
from .lpips import Lpips

DEFAULT = "default"
"""Names the ISP inside the package."""
MANY = 24
"""From so many pairs on processes share the work: starting them costs seconds."""


def pairs_to_score(folder: str | Path) -> tuple[list[PairLike], list[str]]:
    """The pairs to score on: of shards, or the test part of a data set; and notes. Raises UsageError."""
    if is_shards(folder, "test"):
        found: list[PairLike] = []
        notes = []
        for shard in shard_files(folder, "test"):
            samples, problem = read_index(shard, "pairs")
            found += samples
            notes += [problem] if problem else []
    else:
        dataset = open_dataset(folder)
        found, notes = list(pairs_of(dataset.part("test"))), list(dataset.notes)
    if not found:
        raise UsageError(f"{folder}: no pairs to score on")
    return found, notes


def evaluate_model(
    model: str | Path,
    pairs: Path | Sequence[PairLike],
    *,
    protocol: Protocol = "plain",
    lpips: Lpips | None = None,
    workers: int | None = None,
) -> Evaluation:
    """Score a run folder, an ISP file or `default` on pairs or the folder of some. Raises EguotError.

    Pairs that cannot be read are left out and named in `skipped`. Many pairs are shared out to processes, a few are
    scored here. `lpips`: among the metrics where it is given.
    """
    if isinstance(pairs, Path):
        pairs, _ = pairs_to_score(pairs)
    label = f"evaluate {Path(model).name}"
    open_render = partial(render_of, model)
    render = open_render()  # a model that cannot be opened is told before processes start
    if len(pairs) >= MANY or workers is not None:
        return evaluate_each(
            partial(render_of, model, threads=1),
            pairs,
            label=label,
            protocol=protocol,
            perceptual=lpips,
            workers=workers,
        )
    return evaluate(render, pairs, label=label, protocol=protocol, perceptual=lpips, skip_damaged=True)


def render_of(model: str | Path, threads: int | None = None) -> Render:
    """How a run folder, an ISP file or `default` renders. `threads`: of the runtime; None: its own choice."""
    if not Path(model).is_dir():
        return file_render(model, threads)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return run_render(Path(model))


def compare_sets(model: str | Path, raws: Path, photos: Path) -> tuple[dict[str, float], int, int]:
    """How alike renderings of raws are to photos of other scenes, and how many of each there were."""
    from .data.crops import load_photo

    render = render_of(model)
    rendered, wanted = PictureSet(), PictureSet()
    items, others = raws_of(open_dataset(raws).part("test")), photos_of(open_dataset(photos).part("test"))
    if not items or not others:
        raise UsageError(f"{len(items)} raws and {len(others)} photos: both are needed")
    for item in progress_bar(items, label="render"):
        rendered.add(summarise(render(replace(item.frame(), orientation=1, pixel_aspect=1.0))))
    for item in progress_bar(others, label="photos"):
        assert item.photo is not None
        wanted.add(summarise(load_photo(item.photo)))
    return rendered.distances(wanted), len(items), len(others)


def worst_sheet(
    path: Path, model: str | Path, pairs: Sequence[PairLike], evaluation: Evaluation, count: int = 10
) -> None:
    """A sheet of the worst pictures: rendering, truth, four times their difference, each at most 400 pixels wide."""
    from .sheet import save_sheet

    render = render_of(model)
    named = {pair.name: pair for pair in pairs}
    rows = []
    for name in evaluation.worst(count):
        picture = render(replace(named[name].frame(), orientation=1, pixel_aspect=1.0))
        truth = named[name].truth()
        panels = [picture, truth]
        if picture.shape == truth.shape:
            gap = np.abs(picture.astype(np.int16) - truth)
            panels.append(np.minimum(4 * gap, 255).astype(np.uint8))
        rows.append([_thumbnail(panel) for panel in panels])
    save_sheet(path, rows)


def _thumbnail(picture: np.ndarray) -> np.ndarray:
    image = Image.fromarray(picture)
    image.thumbnail((400, 400))
    return np.asarray(image)


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


def file_render(model: str | Path, threads: int | None = None) -> Render:
    """How an ISP file renders, through its real runtime. Raises UsageError, IspFileError."""
    if str(model) == DEFAULT and not Path(model).exists():
        return _eight_bits(ISP.load(threads=threads))
    if not Path(model).is_file():
        raise UsageError(f"{model}: no such run folder or ISP file; give a folder of `train`, a .tflite or `{DEFAULT}`")
    return _eight_bits(ISP.load(model, threads=threads))


def _eight_bits(isp: ISP) -> Render:
    started = False

    def render(frame: RawFrame) -> np.ndarray:
        nonlocal started
        with nullcontext() if started else quiet():  # LiteRT presents itself with its first picture
            started = True
            return isp.process(frame).astype(np.uint8, copy=False)

    return render


def csv_path(model: str | Path, pairs: Path, out: Path | None, protocol: Protocol = "plain") -> Path:
    """Where the per-image CSV goes: into `out`, else into the run, beside the file, or here for `default`."""
    path, folder = Path(model), pairs.resolve().name + ("" if protocol == "plain" else f"-{protocol}")
    if path.is_dir():
        return (out or path) / f"evaluate-{folder}.csv"
    stem = path.name.removesuffix(path.suffix) if path.is_file() else DEFAULT
    return (out or (path.parent if path.is_file() else Path())) / f"{stem}-evaluate-{folder}.csv"
