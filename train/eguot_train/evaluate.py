"""Scores of training runs and ISP files on a folder of pairs.

A run is scored by its EMA weights through torch, whole frame by whole frame with the halo reflected, which is what the
SDK's tiles add up to. A file is scored through the runtime that will run it, and torch is never imported for it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eguot_sdk.chatter import quiet
from eguot_sdk.errors import EguotError, MissingDependency, UsageError
from eguot_sdk.evaluation import Evaluation, Protocol, Render, evaluate, evaluate_each
from eguot_sdk.isp import ISP
from eguot_sdk.ispfile import read_spec
from eguot_sdk.likeness import PictureSet, PictureSummary, summarise
from eguot_sdk.pairs import PairLike
from eguot_sdk.paths import DEFAULT, named_isp
from eguot_sdk.progress import progress_bar
from eguot_sdk.raw import RawFrame

from .data.datasets import PARTS, Item, open_dataset, pairs_of, photos_of, raws_of
from .data.samples import samples_hash
from .data.shards import ShardSample, is_shards, read_index, shard_files
from .lpips import Lpips

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
        count = Counter(sample.name for sample in found)  # shards may have samples of one name
        found = [replace(s, name=s.label) if isinstance(s, ShardSample) and count[s.name] > 1 else s for s in found]
    else:
        dataset = open_dataset(folder)
        found, notes = list(pairs_of(dataset.part("test"))), list(dataset.notes)
    if not found:
        raise UsageError(f"{folder}: no pairs to score on; give pairs (NAME_raw.png, ...), a data set or shards")
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


@dataclass(frozen=True, slots=True)
class Compared:
    """How alike two sets of pictures look, how many were in each, and a line for each file left out."""

    distances: dict[str, float]
    raws: int
    photos: int
    skipped: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"raws": self.raws, "photos": self.photos} | self.distances | {"skipped": list(self.skipped)}


def compare_sets(model: str | Path, raws: Path, photos: Path) -> Compared:
    """Renderings of raws against photos of other scenes. Raises EguotError where nothing of one side can be used."""
    from .data.crops import load_photo

    render = render_of(model)
    items, others = raws_of(open_dataset(raws).part("test")), photos_of(open_dataset(photos).part("test"))
    if not items or not others:
        raise UsageError(
            f"{raws} holds {len(items)} raws and {photos} {len(others)} photos: some of each are needed"
            + ("; are the two the other way round?" if not items and not others else "")
        )
    skipped: list[str] = []

    def gathered(label: str, some: Sequence[Item], picture: Callable[[Item], np.ndarray]) -> tuple[PictureSet, int]:
        found, count = PictureSet(), 0
        for item in progress_bar(some, label=label):
            try:
                found.add(_summary(item, picture(item)))
                count += 1
            except EguotError as error:
                skipped.append(str(error))
        if not count:
            raise EguotError(f"none of the {len(some)} {label} can be used, first: {skipped[-len(some)]}")
        return found, count

    def photo(item: Item) -> np.ndarray:
        assert item.photo is not None
        return load_photo(item.photo)

    rendered, raw_count = gathered("raws", items, lambda i: render(replace(i.frame(), orientation=1, pixel_aspect=1.0)))
    wanted, photo_count = gathered("photos", others, photo)
    return Compared(rendered.distances(wanted), raw_count, photo_count, tuple(skipped))


def _summary(item: Item, picture: np.ndarray) -> PictureSummary:
    try:
        return summarise(picture)
    except EguotError as error:
        raise UsageError(f"{item.files()[0]}: {error}") from error


def trained_on(model: str | Path, scored: Sequence[PairLike], folder: Path) -> str | None:
    """A warning where a run or an ISP file is scored on pairs that it learnt from, else None.

    `folder`: which the pairs are of. A file knows its own by a hash, so only all of them together are recognised, and
    not those of a folder too large to be held.
    """
    run = Path(model)
    if run.is_file():
        provenance = read_spec(run).provenance
        made_by = provenance.get("made_by")  # of `quantize`, `qat` and `distill`
        places = [provenance.get("data"), made_by.get("data") if isinstance(made_by, dict) else None]
        known = {text for hashes in places if isinstance(hashes, dict) for text in hashes.values()}
        try:
            return _own_pairs(run, "these pairs") if known and samples_hash(scored, folder) in known else None
        except OSError:  # what cannot be read was not scored either, and said
            return None
    if not (run / "config.json").is_file():
        return None
    from .checkpoint import read_config

    source = read_config(run).pairs
    if source is None:
        return None
    try:
        learnt = (
            shard_files(source) if is_shards(source) else _raws_on_disk(pairs_of(open_dataset(source).part("train")))
        )
    except EguotError:  # moved or gone
        return None
    known = {os.path.realpath(path) for path in learnt}
    count = sum(os.path.realpath(path) in known for path in _raws_on_disk(scored))
    if not count:
        return None
    which = "these pairs" if count == len(scored) else f"{count} of these {len(scored)} pairs"
    return _own_pairs(run, which)


def _own_pairs(model: Path, which: str) -> str:
    return f"{model.name} was trained on {which}: only others say what it is worth"


def _raws_on_disk(pairs: Iterable[PairLike]) -> list[Path]:
    """The file that holds each pair's raw; of shards the shard."""
    found = []
    for pair in pairs:
        if isinstance(pair, ShardSample):
            found.append(pair.shard)
        elif isinstance(pair, Item) and pair.raw is not None:
            found.append(pair.raw)
    return found


def worst_sheet(
    path: Path, model: str | Path, pairs: Sequence[PairLike], evaluation: Evaluation, count: int = 10
) -> None:
    """A sheet of the worst pictures, each with its name and score: rendering, truth, four times their difference.

    Panels are at most 400 pixels a side.
    """
    from .sheet import captioned, save_sheet

    render = render_of(model)
    named = {pair.name: pair for pair in pairs}
    scores = {score.name: score.psnr_db for score in evaluation.scores}
    rows = []
    for name in evaluation.worst(count):
        picture = render(replace(named[name].frame(), orientation=1, pixel_aspect=1.0))
        truth = named[name].truth()
        panels = [picture, truth]
        if picture.shape == truth.shape:
            gap = np.abs(picture.astype(np.int16) - truth)
            panels.append(np.minimum(4 * gap, 255).astype(np.uint8))
        texts = (f"{name}  {scores[name]:.2f} dB", "truth", "difference x 4")
        rows.append([captioned(_thumbnail(panel), text) for panel, text in zip(panels, texts, strict=False)])
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
    path = named_isp(model)
    if not path.is_file():
        raise UsageError(f"{model}: no such run folder or ISP file; give a folder of `train`, a .tflite or `{DEFAULT}`")
    return _eight_bits(ISP.load(path, threads=threads))


def _eight_bits(isp: ISP) -> Render:
    started = False

    def render(frame: RawFrame) -> np.ndarray:
        nonlocal started
        with nullcontext() if started else quiet():  # LiteRT presents itself with its first picture
            started = True
            return isp.process(frame).astype(np.uint8, copy=False)

    return render


def _set_name(pairs: Path) -> str:
    """The folder's name, after those above it where it says only which part of a set it is.

    Of a .tar or a pattern of shards it is that of their folder.
    """
    place = pairs.resolve()
    if not place.is_dir():
        place = place.parent
    name = place.name
    while place.name in ("pairs", *PARTS) and place.parent.name:
        place = place.parent
        name = f"{place.name}-{name}"
    return name


def csv_path(model: str | Path, pairs: Path, out: Path | None, protocol: Protocol = "plain") -> Path:
    """Where the per-image CSV goes: into `out`, else into the run, beside the file, or here for `default`.

    Anywhere but in the run the model's name stands before.
    """
    path, folder = Path(model), _set_name(pairs) + ("" if protocol == "plain" else f"-{protocol}")
    if path.is_dir():
        return path / f"evaluate-{folder}.csv" if out is None else out / f"{path.resolve().name}-evaluate-{folder}.csv"
    stem = path.name.removesuffix(path.suffix) if path.is_file() else DEFAULT
    return (out or (path.parent if path.is_file() else Path())) / f"{stem}-evaluate-{folder}.csv"
