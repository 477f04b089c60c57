"""Scene-disjoint data for benchmarks: raws, target photos and test pairs, no scene on two sides.

Both functions write OUT/train/pairs (the raw scenes with their truths), OUT/photos/srgb (the target scenes) and
OUT/test/pairs; OUT is built beside and renamed, so a folder that exists is whole.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from eguot_sdk.errors import UsageError
from eguot_sdk.pairs import list_pairs

from .synth import synth_folder


def synthetic_split(photos: Path, out: Path, protocol: str, split: int) -> None:
    """Also OUT/train/raw: what a synthetic camera makes of the photos. Split 0 is the committed one; with the protocol
    `shuffled` raws and targets are of the same scenes.
    """
    names = json.loads((photos / "split.json").read_text())
    parts = {key: list(names[key]) for key in ("raw", "srgb", "test")}
    if split > 0:  # split 0 is the committed one
        pool = sorted(n for part in parts.values() for n in part)
        order = np.random.default_rng(split).permutation(len(pool))
        sizes = [len(parts["raw"]), len(parts["srgb"])]
        cut = np.split(order, np.cumsum(sizes))
        parts = {key: [pool[i] for i in index] for key, index in zip(parts, cut, strict=True)}
    if protocol == "shuffled":
        parts["raw"] = parts["srgb"] = parts["raw"] + parts["srgb"]
    building = out.with_name(out.name + ".part")
    shutil.rmtree(building, ignore_errors=True)
    for key, files in parts.items():
        folder = building / "photos" / key
        folder.mkdir(parents=True)
        for name in files:
            shutil.copy(photos / name, folder / name)
    synth_folder(building / "train", srgb=building / "photos" / "raw", seed=split)
    synth_folder(building / "test", srgb=building / "photos" / "test", seed=split)
    building.rename(out)


def real_split(folder: Path, out: Path, protocol: str, fold: int, folds: int = 4) -> None:
    """One fold of a small folder of real pairs: each scene is tested in exactly one fold; the others are raw or target
    scenes by turns, or with the protocol `shuffled` both. Names say the scene: one pair is one scene. Raises UsageError
    for fewer than 2 * folds pairs.
    """
    pairs = list_pairs(folder)
    if len(pairs) < 2 * folds:
        raise UsageError(f"{folder}: {len(pairs)} pairs are too few for {folds} folds")
    test = pairs[fold::folds]
    rest = [pair for pair in pairs if pair not in test]
    raws, targets = (rest, rest) if protocol == "shuffled" else (rest[::2], rest[1::2])
    building = out.with_name(out.name + ".part")
    shutil.rmtree(building, ignore_errors=True)
    for place, chosen in (("train/pairs", raws), ("test/pairs", test)):
        (building / place).mkdir(parents=True)
        for pair in chosen:
            for path in (pair.raw_path, pair.json_path, pair.truth_path):
                shutil.copy(path, building / place / path.name)
    (building / "photos" / "srgb").mkdir(parents=True)
    for pair in targets:
        shutil.copy(pair.truth_path, building / "photos" / "srgb" / pair.truth_path.name)
    building.rename(out)
