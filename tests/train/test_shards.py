"""Shards: what goes in comes out, read as another library reads them; order, memory and damage."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.pairs import list_pairs
from eguot_sdk.raw import RawFrame
from eguot_train.config import TrainConfig
from eguot_train.data.batches import load_sources
from eguot_train.data.datasets import open_dataset
from eguot_train.data.scenes import make_scene
from eguot_train.data.shards import (
    Sample,
    ShardSample,
    ShardStream,
    is_shards,
    read_index,
    shard_files,
    write_shards,
)
from eguot_train.data.synth import SynthCamera
from eguot_train.data.window import Window
from eguot_train.evaluate import pairs_to_score

CAMERA = SynthCamera.from_seed(3, "GBRG")


def pair(index: int) -> Sample:
    scene, name = make_scene(index, 48, 64), f"scene.v{index}"
    return Sample(name, CAMERA.shoot(scene, name), scene)


def numbered(count: int) -> list[Sample]:
    """Pictures whose first pixel says which they are."""
    return [Sample(f"p{i:03d}", picture=np.full((4, 4, 3), i, np.uint8)) for i in range(count)]


def names(stream: ShardStream, positions: range) -> list[str]:
    return [stream.sample(position).name for position in positions]


def same_frame(a: RawFrame, b: RawFrame) -> bool:
    values = ("cfa", "black", "white", "white_balance", "orientation")
    equal = all(getattr(a, value) == getattr(b, value) for value in values)
    return equal and np.array_equal(a.mosaic, b.mosaic) and np.allclose(a.matrix, b.matrix)  # type: ignore[arg-type]


def test_an_untarred_shard_is_a_folder_of_pairs(tmp_path: Path) -> None:
    samples = [pair(i) for i in range(3)]
    (shard,) = write_shards(tmp_path / "set", samples)
    with tarfile.open(shard) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    found = list_pairs(tmp_path / "out")
    assert [p.name for p in found] == [s.name for s in samples]
    for on_disk, sample in zip(found, samples, strict=True):
        assert sample.frame is not None
        assert same_frame(on_disk.frame(), sample.frame)
        np.testing.assert_array_equal(on_disk.truth(), sample.picture)


def test_samples_come_back_as_they_went_in(tmp_path: Path) -> None:
    samples = [pair(i) for i in range(2)]
    index, problem = read_index(write_shards(tmp_path, samples)[0], "pairs")
    assert problem is None
    for read, sample in zip(index, samples, strict=True):
        assert sample.frame is not None
        assert read.name == sample.name
        assert same_frame(read.frame(), sample.frame)
        np.testing.assert_array_equal(read.truth(), sample.picture)


def test_webdataset_reads_the_same_bytes(tmp_path: Path) -> None:
    """The library's own reader, told how the members of a pair are called."""
    wds = pytest.importorskip("webdataset")
    samples = [pair(i) for i in range(3)]
    (shard,) = write_shards(tmp_path, samples)

    def key(path: str) -> tuple[str, str]:
        suffix = next(s for s in ("_raw.png", "_srgb.png", ".json") if path.endswith(s))
        return path.removesuffix(suffix), suffix

    with open(shard, "rb") as stream:
        files = wds.tariterators.tar_file_expander([{"url": str(shard), "stream": stream}])
        found = list(wds.tariterators.group_by_keys(files, keys=key, lcase=False))
    ours, _ = read_index(shard, "pairs")
    assert [s["__key__"] for s in found] == [s.name for s in ours]
    for theirs, mine in zip(found, ours, strict=True):
        for suffix in ("_raw.png", "_srgb.png", ".json"):
            assert theirs[suffix] == mine._read(suffix)


def test_bytes_of_a_picture_are_stored_as_they_are(tmp_path: Path) -> None:
    data = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(make_scene(0, 24, 32)).save(data, "JPEG", exif=exif)
    (sample,), _ = read_index(write_shards(tmp_path, [Sample("a", picture=data.getvalue())])[0], "srgb")
    assert sample._read("_srgb.jpg") == data.getvalue()
    assert sample.truth().shape == (24, 32, 3)
    assert sample.photo().shape == (32, 24, 3)
    with pytest.raises(UsageError, match="bytes of a JPEG or PNG"):
        write_shards(tmp_path / "bad", [Sample("a", picture=b"GIF89a")])
    assert not list((tmp_path / "bad").iterdir())


def test_shards_close_at_their_size_and_are_made_alike(tmp_path: Path) -> None:
    taken: list[int] = []

    def samples() -> list[Sample]:
        return numbered(40)

    one = write_shards(tmp_path / "one", (taken.append(1) or s for s in samples()), shard_bytes=8000)
    other = write_shards(tmp_path / "other", samples(), shard_bytes=8000)
    assert len(one) > 3
    assert len(taken) == 40
    assert all(p.stat().st_size < 25_000 for p in one)
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in other]
    assert [s.name for p in one for s in read_index(p, "srgb")[0]] == [s.name for s in samples()]


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a\\b"])
def test_names_that_are_no_file_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="plain file name"):
        write_shards(tmp_path, [Sample(name, picture=np.zeros((4, 4, 3), np.uint8))])
    with pytest.raises(UsageError, match="two samples are called p000"):
        write_shards(tmp_path, numbered(1) * 2)


def test_a_set_is_a_folder_a_file_or_a_pattern(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, numbered(12), shard_bytes=1)
    assert len(paths) == 12
    assert shard_files(tmp_path) == paths
    assert shard_files(paths[3]) == [paths[3]]
    assert shard_files(tmp_path / "shard-00000*.tar") == paths[:10]
    assert shard_files(tmp_path / "shard-{000008..000011}.tar") == paths[8:]
    assert is_shards(tmp_path)
    assert is_shards(tmp_path / "shard-{000008..000011}.tar")
    (tmp_path / "empty").mkdir()
    assert not is_shards(tmp_path / "empty")
    for where, why in (
        ("shard-{000011..000012}.tar", "shard-000012.tar: no such shard"),
        ("none-*.tar", "no shards"),
        ("empty", "no shards"),
        ("{9..3}.tar", "expected a range"),
    ):
        with pytest.raises(UsageError, match=why):
            shard_files(tmp_path / where)


def test_every_epoch_is_the_whole_set_in_an_order_of_its_own(tmp_path: Path) -> None:
    files = write_shards(tmp_path, numbered(30), shard_bytes=8000)
    assert len(files) > 2
    first, second = (names(ShardStream(files, "srgb", seed=4), range(e * 30, e * 30 + 30)) for e in (0, 1))
    everything = sorted(s.name for s in numbered(30))
    assert sorted(first) == sorted(second) == everything
    assert first != second
    assert first != everything
    assert names(ShardStream(files, "srgb", seed=5), range(30)) != first
    stream = ShardStream(files, "srgb", seed=4)
    assert [stream.sample(p).name for p in (35, 3, 59, 0)] == [second[5], first[3], second[29], first[0]]


def test_ranks_share_an_epoch_out(tmp_path: Path) -> None:
    files = write_shards(tmp_path, numbered(30), shard_bytes=8000)
    whole = names(ShardStream(files, "srgb"), range(60))
    for world in (2, 3):
        parts = [names(ShardStream(files, "srgb", rank=r, world=world), range(60 // world)) for r in range(world)]
        assert [parts[i % world][i // world] for i in range(60)] == whole


def test_a_window_slides_and_decodes_each_sample_once(tmp_path: Path) -> None:
    files = write_shards(tmp_path, numbered(20), shard_bytes=8000)
    decoded: Counter[str] = Counter()

    def decode(sample: ShardSample) -> str:
        decoded[sample.name] += 1
        return sample.name

    order = names(ShardStream(files, "srgb"), range(20))
    window = Window(ShardStream(files, "srgb"), 6, decode)
    for first in range(15):
        assert window.at(first) == order[first : first + 6]
        assert len(window._held) == 6
    assert set(decoded.values()) == {1}
    resumed = Window(ShardStream(files, "srgb"), 6, decode)
    assert resumed.at(9) == order[9:15], "a window does not depend on what was asked before"
    assert resumed.at(7) == order[7:13], "nor on whether that came later"


def test_damage_is_left_out_and_named_once(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, [pair(i) for i in range(4)])
    index, _ = read_index(shard, "pairs")
    offset, size = index[1].members["_raw.png"]
    data = bytearray(shard.read_bytes())
    data[offset + size // 2 : offset + size // 2 + 40] = bytes(40)
    offset, size = index[2].members[".json"]
    data[offset : offset + size] = b"[" * size
    shard.write_bytes(data)
    window = Window(ShardStream([shard], "pairs"), 4, lambda s: (s.name, s.frame(), s.truth()))
    for first in (0, 4, 8):
        assert sorted(kept[0] for kept in window.at(first)) == ["scene.v0", "scene.v3"]
    assert len(window.stream.skipped) == 2
    assert all("\n" not in line for line in window.stream.skipped)
    assert {line.split(":")[0] for line in window.stream.skipped} == {
        "shard-000000.tar/scene.v1", "shard-000000.tar/scene.v2",
    }  # fmt: skip


@pytest.mark.parametrize("keep", [0.0, 0.4, 0.9])
def test_a_cut_shard_gives_what_is_whole(keep: float, tmp_path: Path) -> None:
    cut, whole = write_shards(tmp_path, [pair(i) for i in range(8)], shard_bytes=40_000)[:2]
    data = cut.read_bytes()
    cut.write_bytes(data[: int(keep * len(data))])
    stream = ShardStream([cut, whole], "pairs")
    window = Window(stream, len(read_index(whole, "pairs")[0]) * 2, lambda s: (s.frame(), s.truth()))
    assert window.at(0)
    assert any(line.startswith(cut.name) for line in stream.skipped)


def test_a_set_without_the_role_says_so(tmp_path: Path) -> None:
    files = write_shards(tmp_path, numbered(3))
    with pytest.raises(UsageError, match="no samples for --raw"):
        ShardStream(files, "raw").sample(0)
    (tmp_path / "text.tar").write_text("not a tar")
    with pytest.raises(UsageError, match=r"no samples for --srgb: text\.tar: damaged"):
        ShardStream([tmp_path / "text.tar"], "srgb").sample(0)


def test_members_that_are_no_samples_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "mixed.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("x_srgb.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name in ("readme.txt", "a.json"):
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
    assert read_index(path, "srgb") == ([], None)
    assert read_index(path, "raw") == ([], None)


def test_a_shard_that_lies_about_sizes_is_caught(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, numbered(1))
    sample = read_index(shard, "srgb")[0][0]
    for size in (1 << 40, -1):  # reading -1 bytes would read them all
        huge = ShardSample(sample.name, shard, {"_srgb.png": (0, size)})
        with pytest.raises(EguotError, match=f"{size} bytes are no size of a member"):
            huge.photo()
    beyond = ShardSample(sample.name, shard, {"_srgb.png": (512, 1 << 20)})
    with pytest.raises(EguotError, match="the shard ends inside it"):
        beyond.photo()


def test_reading_takes_samples_as_they_are_needed(tmp_path: Path) -> None:
    """A generator that never ends can be written up to a size, and only the window of a set is in memory."""

    def endless() -> object:
        index = 0
        while True:
            yield Sample(f"n{index}", picture=np.zeros((4, 4, 3), np.uint8))
            index += 1

    files = write_shards(tmp_path, islice(endless(), 500), shard_bytes=50_000)  # type: ignore[call-overload]
    stream = ShardStream(files, "srgb")
    for position in range(500):
        stream.sample(position)
    assert len(stream._indices) <= 2


def test_a_header_that_claims_to_be_huge_takes_no_memory(tmp_path: Path) -> None:
    """The name of the next member, 1.5 GB long by its header, in a sparse file."""
    path = tmp_path / "huge.tar"
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 3 << 29
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + (3 << 29))
    tracemalloc.start()
    found, problem = read_index(path, "srgb")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == []
    assert problem is not None
    assert "damaged" in problem
    assert peak < 20_000_000


def test_names_as_long_as_formats_allow_are_read(tmp_path: Path) -> None:
    name = "x" * 200
    for format_ in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{format_}.tar"
        with tarfile.open(path, "w", format=format_) as tar:
            info = tarfile.TarInfo(f"{name}_srgb.png")
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
        found, problem = read_index(path, "srgb")
        assert (problem, [sample.name for sample in found]) == (None, [name])


def test_shards_of_another_role_say_which(tmp_path: Path) -> None:
    files = write_shards(tmp_path, numbered(3))
    with pytest.raises(UsageError, match="no samples for --raw, but for --srgb"):
        ShardStream(files, "raw").sample(0)


def test_one_set_of_pairs_is_not_both_sides_of_an_unpaired_run(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", [pair(i) for i in range(4)])
    config = TrainConfig(mode="unpaired", raw=str(tmp_path / "set"), srgb=str(tmp_path / "set"), crop=32)
    with pytest.raises(UsageError, match="the same shards, so the same scenes: `data prepare --unpaired`"):
        load_sources(config)


def test_a_set_in_parts_says_which_to_name(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_shards(tmp_path / "set" / part, [pair(0)])
    with pytest.raises(
        UsageError, match=r"holds shards in test, train: `train --pairs` .* take one of these folders; `data check`"
    ):
        open_dataset(tmp_path / "set")


def test_samples_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for part in ("a", "b"):
        (made,) = write_shards(tmp_path / part, [pair(0)])
        made.rename(tmp_path / f"{part}.tar")
    found, _ = pairs_to_score(tmp_path)
    assert [sample.name for sample in found] == ["a.tar/scene.v0", "b.tar/scene.v0"]
