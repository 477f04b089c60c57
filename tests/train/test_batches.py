"""Batches: pure functions of seed, rank and step; folders named by their content."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eguot_sdk.errors import UsageError
from eguot_sdk.pairs import list_pairs, write_pair
from eguot_train.config import TrainConfig
from eguot_train.data import batches as batches_module
from eguot_train.data.batches import Batch, Batches, Streamed, load_sources, pictures
from eguot_train.data.scenes import make_scene
from eguot_train.data.shards import Sample, write_shards
from eguot_train.data.synth import SynthCamera, dng_bytes
from eguot_train.reference import Alignment

TWO_RAWS = 2 * 72 * 88 * 2
"""Bytes of two of the raws of `folders`, which hold three: less than three of its photos, or one pair."""
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
    assert not equal(forward[0], Batches(config, sources, Alignment(), rank=1, world=2).at(0))
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


@pytest.mark.parametrize("held_bytes", [1 << 30, 1])
def test_pairs_serve_as_raws(held_bytes: int, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "HELD_BYTES", held_bytes)
    sources = load_sources(TrainConfig(mode="unpaired", raw=folders["pairs"], srgb=folders["srgb"], window=3))
    whole = {pair.frame().mosaic.tobytes() for pair in list_pairs(folders["pairs"])}
    frames = {frame.mosaic.tobytes() for frame in sources.frames}
    assert frames <= whole
    assert len(frames) == (3 if held_bytes > 1 else 2)


def test_missing_folders_are_named() -> None:
    for mode, flags in (("unpaired", "--raw DIR and --srgb DIR"), ("mixed", "--raw DIR"), ("paired", "--pairs DIR")):
        with pytest.raises(UsageError, match=f"{mode} training needs {flags}"):
            load_sources(TrainConfig(mode=mode))  # type: ignore[arg-type]


def test_a_folder_of_the_wrong_kind_is_told_by_what_it_holds(folders: dict[str, str], tmp_path: Path) -> None:
    raw, srgb = folders["raw"], folders["srgb"]
    with pytest.raises(UsageError, match=r"no usable raw files, but 3 photos: is it the folder for --srgb\?"):
        load_sources(TrainConfig(mode="unpaired", raw=srgb, srgb=raw))
    with pytest.raises(UsageError, match=r"no readable photos, but 3 raws: is it the folder for --raw\?"):
        load_sources(TrainConfig(mode="unpaired", raw=raw, srgb=str(shutil.copytree(raw, tmp_path / "copy"))))
    with pytest.raises(UsageError, match="no usable pairs, but 3 raws and 0 photos that are no pairs"):
        load_sources(TrainConfig(mode="paired", pairs=raw))


def test_damaged_files_are_skipped_and_told(folders: dict[str, str], tmp_path: Path) -> None:
    raw, srgb = (Path(shutil.copytree(folders[role], tmp_path / role)) for role in ("raw", "srgb"))
    (raw / "bad.dng").write_bytes(b"II*\0 no raw")
    (srgb / "bad.jpg").write_bytes(b"\xff\xd8 no photo")
    sources = load_sources(TrainConfig(mode="unpaired", raw=str(raw), srgb=str(srgb)))
    assert len(sources.skipped) == 2
    assert "bad.dng: " in sources.skipped[0]
    assert sources.skipped[1].startswith("bad.jpg ")
    assert len(sources.frames) == len(list(raw.iterdir())) - 1
    assert len(sources.photos) == len(sources.photo_names) == len(list(srgb.iterdir())) - 1


def test_what_is_smaller_than_the_crop_is_told(folders: dict[str, str], tmp_path: Path) -> None:
    """Raws are 72 x 88, photos 80 x 64, so that crops of 64 px fit all; one of each is smaller."""
    raw, srgb, pairs = (Path(shutil.copytree(folders[role], tmp_path / role)) for role in ("raw", "srgb", "pairs"))
    scene = make_scene(0, 64, 80)
    frame = SynthCamera.from_seed(3).shoot(scene, "small")
    (raw / "small.dng").write_bytes(dng_bytes(frame))
    write_pair(pairs, "small", frame, scene)
    Image.fromarray(scene[:63]).save(srgb / "small.png")
    config = TrainConfig(mode="mixed", crop=32, raw=str(raw), srgb=str(srgb), pairs=str(pairs), find_pairs=False)
    notes = load_sources(config).notes
    for kind in ("raws", "photos", "pairs"):
        assert (
            f"1 of 4 {kind} are smaller than the crop of 64 px and never drawn (--set crop takes a smaller one)"
            in notes
        )
    assert not load_sources(replace(config, **folders)).notes


@pytest.mark.parametrize("mode", ["unpaired", "mixed"])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_out_the_batch_of_one_process(mode: str, world: int, folders: dict[str, str]) -> None:
    config = TrainConfig(mode=mode, batch=4, crop=32, **folders)  # type: ignore[arg-type]
    sources = load_sources(config)
    whole = Batches(config, sources, Alignment()).at(7)
    parts = [Batches(config, sources, Alignment(), rank=r, world=world).at(7) for r in range(world)]
    joined = {name: torch.cat([getattr(p, name) for p in parts]) for name in FIELDS if getattr(whole, name) is not None}
    assert equal(Batch(target_index=sum((p.target_index for p in parts), ()), **joined), whole)
    with pytest.raises(UsageError, match="a batch of 4 cannot be shared by 3"):
        Batches(config, sources, Alignment(), world=3)


def test_micro_batches_are_the_batch(folders: dict[str, str]) -> None:
    config = TrainConfig(mode="mixed", batch=4, crop=32, **folders)  # type: ignore[arg-type]
    batch = Batches(config, load_sources(config), Alignment()).at(0)
    parts = batch.split(2)
    assert [len(p) for p in parts] == [2, 2]
    joined = {name: torch.cat([getattr(p, name) for p in parts]) for name in FIELDS}
    assert equal(Batch(target_index=parts[0].target_index + parts[1].target_index, **joined), batch)


def shards_of(folders: dict[str, str], out: Path) -> dict[str, str]:
    """The same pictures as shards of one sample each: raws, photos and pairs."""
    pairs = list_pairs(folders["pairs"])
    photos = sorted(Path(folders["srgb"]).iterdir())
    write_shards(out / "raw", [Sample(p.name, p.frame()) for p in pairs], shard_bytes=1)
    write_shards(out / "srgb", [Sample(p.stem, picture=p.read_bytes()) for p in photos], shard_bytes=1)
    write_shards(out / "pairs", [Sample(p.name, p.frame(), p.truth()) for p in pairs], shard_bytes=1)
    return {role: str(out / role) for role in ("raw", "srgb", "pairs")}


def streamed_of(folders: dict[str, str], out: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Sets that are read while training: shards, or copies of the folders, which are too large from now on."""
    if kind == "shards":
        return shards_of(folders, out)
    monkeypatch.setattr(batches_module, "HELD_BYTES", TWO_RAWS)
    return {role: str(shutil.copytree(folder, out / role)) for role, folder in folders.items()}


@pytest.mark.parametrize("kind", ["shards", "folders"])
@pytest.mark.parametrize("mode", ["unpaired", "paired", "mixed"])
def test_streamed_batches_depend_on_the_step_alone(
    mode: str, kind: str, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = streamed_of(folders, tmp_path, kind, monkeypatch)
    config = TrainConfig(mode=mode, batch=2, crop=24, transport=0.0, window=2, reuse=1, **sets)  # type: ignore[arg-type]
    sources = load_sources(config)
    one, other = (Batches(config, sources, Alignment()) for _ in range(2))
    forward = [one.at(step) for step in range(6)]
    assert equal(other.at(4), forward[4]), "a resumed run goes on where it was"
    assert equal(other.at(1), forward[1])
    assert not equal(forward[0], forward[1])
    assert [step for step, _ in other.stream(2, 5)] == [2, 3, 4]
    assert all(i == -1 for i in forward[0].target_index)
    ranks = [Batches(config, sources, Alignment(), rank=r, world=2).at(0) for r in range(2)]
    assert not equal(*ranks)


@pytest.mark.parametrize("kind", ["shards", "folders"])
def test_a_window_sees_the_whole_set_and_its_damage(
    kind: str, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every crop lies in one of the pairs; a damaged sample is told and left out."""
    sets = streamed_of(folders, tmp_path, kind, monkeypatch)
    if kind == "folders":
        monkeypatch.setattr(batches_module, "HELD_BYTES", 72 * 88 * 5)
    broken = sorted((tmp_path / "pairs").glob("*.tar" if kind == "shards" else "*_raw.png"))[1]
    data = bytearray(broken.read_bytes())
    data[600:1200] = bytes(600)
    broken.write_bytes(data)
    config = TrainConfig(mode="paired", batch=2, crop=24, transport=0.0, window=2, reuse=1, pairs=sets["pairs"])
    batches = Batches(config, load_sources(config), Alignment())
    truths = [pair.truth() for pair in list_pairs(folders["pairs"])]
    seen = set()
    for step in range(8):
        truth = batches.at(step).pair_truth
        assert truth is not None
        for crop in (truth * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8):
            colours = {tuple(c) for c in crop.reshape(-1, 3)}
            holders = [i for i, t in enumerate(truths) if colours <= {tuple(c) for c in t.reshape(-1, 3)}]
            assert holders
            seen.update(holders)
    assert seen == {0, 2}
    (line,) = batches.skipped()
    assert line.startswith(f"{broken.name}/scene1: " if kind == "shards" else "scene1: ")


def test_a_folder_too_large_for_memory_is_streamed(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same crops' pictures either way, no more in memory than the limit, and another hash for another size."""
    config = TrainConfig(mode="unpaired", batch=2, crop=24, transport=0.0, raw=folders["raw"], srgb=folders["srgb"])
    whole = load_sources(config)
    assert whole.streamed == {}
    monkeypatch.setattr(batches_module, "HELD_BYTES", TWO_RAWS)
    sources = load_sources(config)
    assert set(sources.streamed) == {"raw", "srgb"}
    assert {role: s.window for role, s in sources.streamed.items()} == {"raw": 2, "srgb": 2}
    assert any(line.startswith("raw: 3 take") for line in sources.notes)
    assert sources.photo_names == ["", ""]
    order = [sources.streamed["raw"].open(0, 1).sample(i).name for i in range(9)]
    assert all(sorted(order[e : e + 3]) == sorted({*order}) for e in (0, 3, 6))
    both = [sources.streamed["raw"].open(r, 2).sample(i).name for i in range(4) for r in range(2)]
    assert both == order[:8]
    copied = Path(shutil.copytree(folders["raw"], tmp_path / "raw"))
    same = replace(config, raw=str(copied))
    assert load_sources(same).hashes == sources.hashes
    (copied / "scene0.dng").write_bytes((copied / "scene0.dng").read_bytes() + b"\0")
    assert load_sources(same).hashes["raw"] != sources.hashes["raw"]


class Counted:
    """A stream of the pairs in turn that notes how far it was read."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.furthest = items, -1
        self.skipped: list[str] = []

    def sample(self, position: int) -> Any:
        self.furthest = max(self.furthest, position)
        return self.items[position % len(self.items)]


def test_a_window_moves_on_once_its_samples_were_used(folders: dict[str, str]) -> None:
    """Four crops of each sample: with two a step, one sample every other step."""
    config = TrainConfig(mode="paired", batch=2, crop=24, transport=0.0, window=3, reuse=4, pairs=folders["pairs"])
    sources = load_sources(config)
    stream = Counted(list(sources.pairs))
    sources.streamed["pairs"] = Streamed(lambda rank, world: stream, 3)  # type: ignore[arg-type, return-value]
    batches = Batches(config, sources, Alignment())
    seen = []
    for step in range(9):
        batches.at(step)
        seen.append(stream.furthest)
    assert seen == [2, 2, 3, 3, 4, 4, 5, 5, 6]


def test_raws_of_a_window_move_on_twice_as_fast_for_they_are_drawn_twice(folders: dict[str, str]) -> None:
    config = TrainConfig(
        mode="unpaired", batch=2, crop=24, transport=0.0, pseudo=0.0, window=3, reuse=4, find_pairs=False,
        raw=folders["raw"], srgb=folders["srgb"],
    )  # fmt: skip
    sources = load_sources(config)
    stream = Counted(list_pairs(folders["pairs"]))
    sources.streamed["raw"] = Streamed(lambda rank, world: stream, 3)  # type: ignore[arg-type, return-value]
    batches, seen = Batches(config, sources, Alignment()), []
    for step in range(6):
        batches.at(step)
        seen.append(stream.furthest)
    assert seen == [2, 3, 4, 5, 6, 7]


def test_large_samples_of_a_window_are_drawn_more_often(folders: dict[str, str]) -> None:
    """By the square root of the area, as among the pictures of a folder: 9 times as large, 3 times as often."""
    camera = SynthCamera.from_seed(3)
    pairs = [
        batches_module.HeldPair(name, camera.shoot(scene, name), scene)
        for name, side, level in (("small", 64, 0), ("large", 192, 255))
        for scene in [np.full((side, side, 3), level, np.uint8)]
    ]
    config = TrainConfig(mode="paired", batch=40, crop=24, transport=0.0, window=2, pairs=folders["pairs"])
    sources = load_sources(config)
    sources.streamed["pairs"] = Streamed(lambda rank, world: Counted(pairs), 2)  # type: ignore[arg-type, return-value]
    batches = Batches(config, sources, Alignment())
    truths = [truth for step in range(10) if (truth := batches.at(step).pair_truth) is not None]
    assert float(torch.cat(truths).mean()) == pytest.approx(0.75, abs=0.06)


def test_photos_are_drawn_by_their_weights(folders: dict[str, str]) -> None:
    config = TrainConfig(mode="unpaired", batch=8, crop=32, find_pairs=False, raw=folders["raw"], srgb=folders["srgb"])
    sources = load_sources(config)
    every = Batches(config, sources, Alignment())
    assert {i for step in range(4) for i in every.at(step).target_index} == {0, 1, 2}
    one = Batches(config, sources, Alignment(), photo_weights=[0.0, 1.0, 0.0])
    assert {i for step in range(4) for i in one.at(step).target_index} == {1}
