"""What places hold for a role: folders, data sets and shards give the same samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_fixtures import make_ntire, make_zrr
from PIL import Image

from eguot_sdk.errors import UsageError
from eguot_train.data import samples as module
from eguot_train.data.crops import PHOTO_SUFFIXES, find_files
from eguot_train.data.datasets import open_dataset
from eguot_train.data.prepare import prepare
from eguot_train.data.samples import (
    frame_of,
    list_samples,
    photo_of,
    read_held,
    read_pair,
    samples_hash,
    there,
)
from eguot_train.data.scenes import make_scene
from eguot_train.data.shards import shard_files
from eguot_train.data.synth import SynthCamera, dng_bytes


def test_a_data_set_and_its_shards_hold_the_same_training_pairs(tmp_path: Path) -> None:
    root, out = make_zrr(tmp_path / "zrr"), tmp_path / "out"
    prepare(root, out)
    both = [read_held(list_samples(where, "pairs")[0], read_pair) for where in (root, out, out / "train")]
    assert [len(found) for found, _ in both] == [12, 12, 12]
    for (frame, truth), (other, picture) in zip(both[0][0], both[1][0], strict=True):
        np.testing.assert_array_equal(frame.mosaic, other.mosaic)
        np.testing.assert_array_equal(truth, picture)
    pattern = f"{out}/train/shard-{{000000..000000}}-000000.tar"
    assert len(list_samples(pattern, "pairs")[0]) == 12
    assert there(pattern, "pairs")
    assert not there(tmp_path / "gone-*.tar", "pairs")
    assert not there(tmp_path / "gone", "pairs")
    assert samples_hash(list_samples(out, "pairs")[0], out) != samples_hash(list_samples(root, "pairs")[0], root)


def test_only_what_fits_in_memory_is_read_and_that_from_all_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = list_samples(make_zrr(tmp_path / "zrr"), "pairs")[0]
    frame, truth = read_pair(listed[0])
    monkeypatch.setattr(module, "HELD_BYTES", 4 * (frame.mosaic.nbytes + truth.nbytes))
    found, _ = read_held(listed, read_pair)
    assert len(found) == 4
    np.testing.assert_array_equal(found[3][1], read_pair(listed[9])[1])


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.png", "a.PNG", "sub/c.png"):
        Image.fromarray(np.full((8, 8, 3), ord(Path(name).name[0].lower()), np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no photo")
    (folder / "notes.txt").write_text("no photo either")
    (folder / "folder.png").mkdir()
    (folder / "._a.PNG").write_bytes(b"a system's own")  # as macOS leaves beside every file on other disks
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "a.png").write_bytes((folder / "b.png").read_bytes())
    photos, skipped = read_held(list_samples(folder, "srgb")[0], photo_of)
    assert [chr(p[0, 0, 0]) for p in photos] == ["a", "b", "c"]
    assert len(skipped) == 1
    assert skipped[0].startswith("broken.jpg is not a readable photo")
    assert [p.name for p in find_files(folder, PHOTO_SUFFIXES)] == ["a.PNG", "b.png", "broken.jpg", "c.png"]
    hidden = folder.rename(tmp_path / ".photos")  # a folder that is named may have any name
    assert len(find_files(hidden, PHOTO_SUFFIXES)) == 4

    raws = tmp_path / "raws"
    raws.mkdir()
    with pytest.raises(UsageError, match="no raws"):
        list_samples(raws, "raw")
    (raws / "broken.dng").write_bytes(b"no raw")
    frame = SynthCamera.from_seed(0).shoot(make_scene(0, 32, 32), "x")
    (raws / "x.DNG").write_bytes(dng_bytes(frame))
    frames, skipped = read_held(list_samples(raws, "raw")[0], frame_of)
    np.testing.assert_array_equal(frames[0].mosaic, frame.mosaic)
    assert len(frames) == len(skipped) == 1
    assert "broken.dng" in skipped[0]
    assert list_samples(raws, "pairs")[0] == []
    with pytest.raises(UsageError, match="is not a folder"):
        list_samples(tmp_path / "absent", "raw")


def test_what_a_system_leaves_beside_files_is_no_data(tmp_path: Path) -> None:
    """macOS writes ._NAME beside every NAME on disks of others; all layouts pass over it."""
    root = make_ntire(tmp_path / "ntire")
    whole = open_dataset(root)
    prepare(root, tmp_path / "out")
    for folder in (root, tmp_path / "out"):
        for path in [p for p in folder.rglob("*") if p.is_file()]:
            path.with_name(f"._{path.name}").write_bytes(b"a system's own")
    assert open_dataset(root).parts == whole.parts
    for role in ("raw", "srgb"):
        samples, notes = list_samples(tmp_path / "out" / "train", role)
        assert (len(samples), list(notes)) == (10, [])
    assert not any(path.name.startswith(".") for path in shard_files(tmp_path / "out" / "train"))
    for name in ("._0.npy", "._a_raw.png", "._s.tar", "._a.dng"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "empty" / name).touch()
    with pytest.raises(UsageError, match="no data set"):
        open_dataset(tmp_path / "empty")
