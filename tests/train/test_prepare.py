"""Data sets as shards: the same bytes from one process, several, or a cluster; damaged files listed, scenes apart."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from dataset_fixtures import make_ntire, make_zrr, phone, shots
from PIL import Image

from eguot_sdk.errors import EguotError, MissingDependency, UsageError
from eguot_train.cli_data import data
from eguot_train.config import TrainConfig
from eguot_train.data import prepare as module
from eguot_train.data.batches import load_sources
from eguot_train.data.crops import load_photo
from eguot_train.data.datasets import Item, open_dataset
from eguot_train.data.prepare import BEGUN, SUMMARY, Task, prepare, write_task
from eguot_train.data.scenes import make_scene
from eguot_train.data.shards import is_shards, read_index, shard_files
from eguot_train.evaluate import pairs_to_score


def digests(out: Path) -> dict[str, str]:
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.rglob("*.tar"))}


def test_shards_hold_what_the_folder_held(tmp_path: Path) -> None:
    root, out = make_zrr(tmp_path / "zrr"), tmp_path / "out"
    result = prepare(root, out)
    assert result.samples == 15
    assert result.damaged == ()
    samples, problem = read_index(shard_files(out / "test")[0], "pairs")
    assert problem is None
    for sample, (mosaic, _), number in zip(samples, shots(phone(), 3, 20), range(3), strict=True):
        frame = sample.frame()
        assert np.array_equal(frame.mosaic, mosaic)
        assert (frame.cfa, frame.black, frame.white) == ("RGGB", (58, 60, 61, 62), (1023,) * 4)
        jpeg = (root / "test" / "canon" / f"{number}.jpg").read_bytes()
        assert jpeg in sample.shard.read_bytes()  # not encoded again
    assert json.loads((out / SUMMARY).read_text())["kind"] == "zrr"


def test_every_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[str] = Counter()

    def counted(name: str) -> None:
        method = getattr(Item, name)

        def once_more(item: Item) -> Any:
            read[f"{name} {item.files()}"] += 1
            return method(item)

        monkeypatch.setattr(Item, name, once_more)

    root = make_zrr(tmp_path / "zrr")
    dataset = open_dataset(root)
    counted("frame")
    counted("truth")
    write_task(Task(tmp_path / "out", "shard", dataset.parts["train"]))
    assert len(read) == 2 * len(dataset.parts["train"])
    assert set(read.values()) == {1}


def test_damaged_files_are_listed_and_left_out(tmp_path: Path) -> None:
    root, out = make_zrr(tmp_path / "zrr"), tmp_path / "out"
    (root / "train" / "canon" / "7.jpg").write_bytes(b"\xff\xd8 cut")
    result = CliRunner().invoke(data, ["prepare", str(root), "--out", str(out)])
    assert result.exit_code == 1
    assert "skipped: " in result.stderr
    assert "7.jpg" in result.stderr
    names = [s.name for s in read_index(shard_files(out / "train")[0], "pairs")[0]]
    assert names == [str(i) for i in range(12) if i != 7]
    assert "7.jpg" in json.loads((out / SUMMARY).read_text())["damaged"][0]


def test_photos_of_every_kind_go_into_shards_as_training_reads_them(tmp_path: Path) -> None:
    scene, exif = make_scene(0, 40, 60), Image.Exif()
    exif[274] = 6
    root = tmp_path / "photos"
    root.mkdir()
    Image.fromarray(scene).convert("RGBA").save(root / "alpha.webp", lossless=True)
    Image.fromarray(scene).save(root / "turned.webp", lossless=True, exif=exif)
    Image.fromarray(scene).convert("CMYK").save(root / "inks.tif")
    Image.fromarray(scene).save(root / "plain.png")
    Image.fromarray(scene).save(root / "back\\slash.png")
    assert prepare(root, tmp_path / "out").damaged == ()
    samples = {s.name: s.photo() for s in read_index(shard_files(tmp_path / "out", "srgb")[0], "srgb")[0]}
    for name, suffix in (("alpha", "webp"), ("turned", "webp"), ("inks", "tif"), ("plain", "png")):
        np.testing.assert_array_equal(samples.pop(name), load_photo(root / f"{name}.{suffix}"))
    np.testing.assert_array_equal(load_photo(root / "turned.webp"), np.rot90(scene, -1))
    assert set(samples) == {"back_slash"}


def test_unpaired_shards_share_no_scene(tmp_path: Path) -> None:
    root, out = make_zrr(tmp_path / "zrr"), tmp_path / "out"
    prepare(root, out, unpaired=True)
    raws = {s.name for s in read_index(shard_files(out / "raw")[0], "raw")[0]}
    photos = {s.name for s in read_index(shard_files(out / "srgb")[0], "srgb")[0]}
    assert (len(raws), len(photos)) == (6, 6)
    assert not raws & photos
    assert read_index(shard_files(out / "raw")[0], "pairs")[0] == []
    assert len(read_index(shard_files(out / "test")[0], "pairs")[0]) == 3
    assert is_shards(out, "raw")
    assert not is_shards(out, "pairs")  # the training pairs were taken apart


def test_a_prepared_folder_is_named_whole(folders: dict[str, str], tmp_path: Path) -> None:
    """Training reads its training part, scoring its test part; a folder without parts serves for both."""
    prepare(make_zrr(tmp_path / "zrr"), tmp_path / "out")
    sources = load_sources(TrainConfig(mode="paired", pairs=str(tmp_path / "out")))
    assert {pair.shard.parent.name for pair in sources.pairs} == {"train"}  # type: ignore[attr-defined]
    assert [pair.name for pair in pairs_to_score(tmp_path / "out")[0]] == ["0", "1", "2"]
    prepare(Path(folders["pairs"]), tmp_path / "plain")
    assert len(pairs_to_score(tmp_path / "plain")[0]) == 3
    assert load_sources(TrainConfig(mode="supervised", pairs=str(tmp_path / "plain"))).pairs


def test_wrong_levels_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    root = make_zrr(tmp_path / "zrr")
    (root / "dataset.json").write_text('{"white": 4095}')
    with pytest.raises(UsageError, match="end at 1023"):
        prepare(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_an_unfinished_set_is_written_over(tmp_path: Path) -> None:
    root, out = make_ntire(tmp_path / "ntire"), tmp_path / "out"
    (out / "train").mkdir(parents=True)
    (out / "train" / "shard-000009-000000.tar").write_bytes(b"of somebody else")
    with pytest.raises(UsageError, match=r"holds shard-000009-000000\.tar"):
        prepare(root, out)
    assert (out / "train" / "shard-000009-000000.tar").exists()
    (out / BEGUN).touch()  # so it is of a run that was killed
    (out / "train" / ".shard-000009-000001.tar.77-0123456789ab.part").touch()
    prepare(root, out)
    assert not [p.name for p in out.rglob("*") if "000009" in p.name or p.name == BEGUN]
    with pytest.raises(UsageError, match="holds a prepared set"):
        prepare(root, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"notes\.txt"):
        prepare(root, tmp_path / "mine")


def test_processes_and_a_cluster_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(module, "ITEMS_PER_SHARD", 4)
    root = make_zrr(tmp_path / "zrr")
    (root / "train" / "huawei_raw" / "2.png").write_bytes(b"\x89PNG cut")
    monkeypatch.setattr(module, "core_count", lambda: 1)
    alone = prepare(root, tmp_path / "alone")
    monkeypatch.setattr(module, "core_count", lambda: 2)
    prepare(root, tmp_path / "processes")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        there = prepare(root, tmp_path / "cluster", cluster=cluster.scheduler_address)
    expected = digests(tmp_path / "alone")
    assert len(expected) == 4
    assert digests(tmp_path / "processes") == digests(tmp_path / "cluster") == expected
    assert there.damaged == alone.damaged
    assert "2.png" in there.damaged[0]


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    from eguot_sdk import workers

    with pytest.raises(EguotError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        list(workers.map_cluster(str, [1], "tcp://127.0.0.1:9"))


def test_nothing_is_begun_for_a_cluster_that_cannot_be_reached_from_here(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependency):
        prepare(Path(folders["pairs"]), tmp_path / "set", cluster="tcp://127.0.0.1:9")
    assert not (tmp_path / "set").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file: is a file; name a folder"):
        prepare(Path(folders["pairs"]), tmp_path / "file")
