"""Batches: pure functions of seed, rank and step; folders named by their content."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from eguot_sdk.errors import UsageError
from eguot_train.config import TrainConfig
from eguot_train.data.batches import Batch, Batches, load_sources, pictures
from eguot_train.reference import Alignment

FIELDS = ("raw_v", "raw_t", "target", "pseudo", "pair_raw", "pair_truth")


def equal(a: Batch, b: Batch) -> bool:
    if a.target_index != b.target_index:
        return False
    for name in FIELDS:
        one, other = getattr(a, name), getattr(b, name)
        if (one is None) != (other is None) or (one is not None and not torch.equal(one, other)):
            return False
    return True


@pytest.mark.parametrize("mode", ["unpaired", "paired", "mixed", "supervised"])
def test_a_batch_depends_on_seed_rank_and_step_alone(mode: str, folders: dict[str, str]) -> None:
    config = TrainConfig(mode=mode, batch=2, crop=32, **folders)  # type: ignore[arg-type]
    sources = load_sources(config)
    one, other = Batches(config, sources, Alignment()), Batches(config, sources, Alignment())
    forward = [one.at(step) for step in range(4)]
    backward = [other.at(step) for step in reversed(range(4))][::-1]
    assert all(equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not equal(forward[0], forward[1])
    assert not equal(forward[0], Batches(config, sources, Alignment(), rank=1).at(0))
    reseeded = TrainConfig(mode=mode, batch=2, crop=32, seed=1, **folders)  # type: ignore[arg-type]
    assert not equal(forward[0], Batches(reseeded, sources, Alignment()).at(0))

    streamed = list(other.stream(1, 4))
    assert [step for step, _ in streamed] == [1, 2, 3]
    assert all(equal(batch, forward[step]) for step, batch in streamed)
    assert list(other.stream(3, 3)) == []


@pytest.mark.parametrize(
    ("mode", "present"),
    [
        ("unpaired", {"raw_v", "raw_t", "target", "pseudo"}),
        ("paired", {"pair_raw", "pair_truth"}),
        ("mixed", set(FIELDS)),
        ("supervised", {"pair_raw", "pair_truth"}),
    ],
)
def test_each_mode_draws_what_it_needs(mode: str, present: set[str], folders: dict[str, str]) -> None:
    config = TrainConfig(mode=mode, batch=3, crop=32, **folders)  # type: ignore[arg-type]
    batch = Batches(config, load_sources(config), Alignment()).at(0)
    for name in FIELDS:
        tensor = getattr(batch, name)
        assert (tensor is not None) == (name in present)
        if tensor is not None:
            planes = name in ("raw_v", "raw_t", "pseudo", "pair_raw")
            assert tensor.shape == ((3, 4, 32, 32) if planes else (3, 3, 64, 64))
            assert tensor.dtype == torch.float32
            assert float(tensor.min()) >= 0
            assert float(tensor.max()) <= 1
            assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert len(batch.target_index) == (3 if "target" in present else 0)
    if mode != "paired" and mode != "supervised":
        assert not torch.equal(batch.raw_v, batch.raw_t)  # type: ignore[arg-type]
        without = TrainConfig(mode=mode, batch=3, crop=32, pseudo=0.0, **folders)  # type: ignore[arg-type]
        assert Batches(without, load_sources(without), Alignment()).at(0).pseudo is None


def test_pictures_are_exact() -> None:
    crops = [np.random.default_rng(i).integers(0, 256, (4, 6, 3), dtype=np.uint8) for i in range(2)]
    stacked = pictures(crops)
    assert stacked.shape == (2, 3, 4, 6)
    np.testing.assert_array_equal((stacked * 255).round().permute(0, 2, 3, 1).numpy(), np.stack(crops))


def test_hashes_name_the_content(folders: dict[str, str], tmp_path: Path) -> None:
    """A copy elsewhere has the same hash; another byte or another name has another."""
    config = TrainConfig(mode="mixed", **folders)  # type: ignore[arg-type]
    hashes = load_sources(config).hashes
    assert set(hashes) == {"raw", "srgb", "pairs"}
    assert all(len(h) == 64 for h in hashes.values())
    copies = {role: str(shutil.copytree(folder, tmp_path / role)) for role, folder in folders.items()}
    copied = TrainConfig(mode="mixed", **copies)  # type: ignore[arg-type]
    assert load_sources(copied).hashes == hashes
    (tmp_path / "srgb" / "notes.txt").write_text("not a photo")
    assert load_sources(copied).hashes == hashes
    photo = sorted(Path(copies["srgb"]).glob("*.png"))[0]
    photo.rename(photo.with_name("renamed.png"))
    changed = load_sources(copied).hashes
    assert changed["srgb"] != hashes["srgb"]
    assert (changed["raw"], changed["pairs"]) == (hashes["raw"], hashes["pairs"])


def test_missing_folders_are_named() -> None:
    for mode, flags in (("unpaired", "--raw DIR and --srgb DIR"), ("mixed", "--raw DIR"), ("paired", "--pairs DIR")):
        with pytest.raises(UsageError, match=f"{mode} training needs {flags}"):
            load_sources(TrainConfig(mode=mode))  # type: ignore[arg-type]


def test_damaged_files_are_skipped_and_told(folders: dict[str, str], tmp_path: Path) -> None:
    raw, srgb = (Path(shutil.copytree(folders[role], tmp_path / role)) for role in ("raw", "srgb"))
    (raw / "bad.dng").write_bytes(b"II*\0 no raw")
    (srgb / "bad.jpg").write_bytes(b"\xff\xd8 no photo")
    sources = load_sources(TrainConfig(mode="unpaired", raw=str(raw), srgb=str(srgb)))
    assert len(sources.skipped) == 2
    assert sources.skipped[0].startswith("bad.dng: ")
    assert sources.skipped[1].startswith("bad.jpg ")
    assert len(sources.frames) == len(list(raw.iterdir())) - 1
    assert len(sources.photos) == len(sources.photo_names) == len(list(srgb.iterdir())) - 1
