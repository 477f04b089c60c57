"""Data sets: each layout is recognised by what lies in it, levels and CFA come back, wrong ones are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from dataset_fixtures import SIDE, make_ispw, make_mai, make_ntire, make_zrr, phone, shots, write_matched
from PIL import Image

from eguot_sdk.errors import CorruptRaw, EguotError, OutputError, UsageError
from eguot_sdk.ingest import unpack
from eguot_sdk.pairs import write_pair
from eguot_train.cli_data import data, evaluate
from eguot_train.config import TrainConfig
from eguot_train.data.batches import load_sources
from eguot_train.data.datasets import Dataset, Item, open_dataset, pairs_of, split_scenes
from eguot_train.data.datasets.base import read_npy
from eguot_train.data.datasets.check import check
from eguot_train.data.datasets.levels import RawStatistics, contradictions, detect
from eguot_train.data.prepare import prepare
from eguot_train.data.samples import list_samples
from eguot_train.data.scenes import make_scene
from eguot_train.data.shards import read_index, shard_files
from eguot_train.data.synth import SynthCamera, dng_bytes


def sizes(dataset: Dataset) -> dict[str, int]:
    return {name: len(items) for name, items in dataset.parts.items()}


def test_zrr_has_parts_and_the_published_levels(tmp_path: Path) -> None:
    root = make_zrr(tmp_path / "anything")
    found = open_dataset(root)
    assert (found.kind, sizes(found)) == ("zrr", {"train": 12, "test": 3})
    assert found.values is not None
    assert (found.values.black, found.values.white) == ((58, 60, 61, 62), 1023)
    drawn = shots(phone(), 3, 20)
    for item, (mosaic, scene) in zip(found.part("test"), drawn, strict=True):
        assert np.array_equal(item.frame().mosaic, mosaic)
        assert np.abs(item.truth().astype(int) - scene).mean() < 6  # JPEG
    assert sizes(open_dataset(root / "test")) == {"test": 3}


def test_raws_of_a_set_share_one_white_balance(tmp_path: Path) -> None:
    """Grey world over all counts below clipping, against NumPy on the mosaics; a crop alone would show its content."""
    root = make_zrr(tmp_path / "zrr")
    drawn = [mosaic.astype(float) for mosaic, _ in shots(phone(), 12)]
    means = []
    for (y, x), black in zip(((0, 0), (0, 1), (1, 0), (1, 1)), (58, 60, 61, 62), strict=True):
        plane = np.concatenate([mosaic[y::2, x::2].ravel() for mosaic in drawn])
        means.append(np.maximum(plane[plane < int(0.95 * 1023)] - black, 0).mean())
    green = (means[1] + means[2]) / 2
    frames = [item.frame() for part in ("train", "test") for item in open_dataset(root).part(part)]  # type: ignore[arg-type]
    assert len({frame.white_balance for frame in frames}) == 1
    assert frames[0].white_balance == pytest.approx((green / means[0], 1, green / means[3]), rel=1e-6)
    (root / "dataset.json").write_text('{"white_balance": [2.0, 1, 1.5]}')
    assert open_dataset(root).items()[0].frame().white_balance == (2.0, 1.0, 1.5)
    assert "white balance of all raws: red 2.00, blue 1.50" in CliRunner().invoke(data, ["check", str(root)]).output


@pytest.mark.parametrize(
    ("bits", "black"), [(10, (58, 60, 61, 62)), (12, (240, 241, 242, 243)), (12, (0, 0, 0, 0)), (14, (512,) * 4)]
)
def test_levels_of_mai_come_from_the_data(tmp_path: Path, bits: int, black: tuple[int, int, int, int]) -> None:
    found = open_dataset(make_mai(tmp_path / "mai", bits, black))
    assert (found.kind, sizes(found)) == ("mai", {"train": 12, "val": 2, "test": 2})
    assert found.values is not None
    assert found.values.white == 2**bits - 1
    # The darkest of the noise lies a little below black.
    assert found.values.black == pytest.approx(black, abs=0.004 * 2**bits)
    # A part opened alone has the levels of the training part, not its own guess.
    assert open_dataset(tmp_path / "mai" / "raw_images" / "test").values == found.values


@pytest.mark.parametrize(
    "kind", [np.asarray, lambda planes: planes.astype(np.float32), lambda planes: planes.astype(np.float64)]
)
def test_ntire_planes_become_the_mosaic_they_came_from(tmp_path: Path, kind: object) -> None:
    found = open_dataset(make_ntire(tmp_path / "ntire", kind))  # type: ignore[arg-type]
    assert (found.kind, sizes(found)) == ("ntire26", {"train": 20, "test": 2})
    assert len(pairs_of(found.part("train"))) == 0
    assert len(pairs_of(found.part("test"))) == 2
    for item, (mosaic, _) in zip(found.part("test"), shots(phone(), 2, 40), strict=True):
        assert np.array_equal(item.frame().mosaic, mosaic)


def test_arrays_in_0_to_1_are_stretched_to_16_bits(tmp_path: Path) -> None:
    planes = np.random.default_rng(0).uniform(0, 1, (16, 16, 4))
    planes[0, 0, 0] = 1.0
    np.save(tmp_path / "a.npy", planes.astype(np.float32))
    found = open_dataset(tmp_path)
    frame = found.items()[0].frame()
    assert frame.white == (65535,) * 4
    assert frame.mosaic[0, 0] == 65535
    assert frame.mosaic[1::2, 1::2] == pytest.approx(planes[..., 3] * 65535, abs=1)


def test_an_array_file_that_holds_a_pickle_is_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(Exception, match=r"evil\.npy"):
        open_dataset(tmp_path)


def test_an_archive_called_npy_is_one_damaged_file(tmp_path: Path) -> None:
    root = make_ntire(tmp_path / "ntire")
    with (root / "train" / "raws" / "0003.npy").open("wb") as file:
        np.savez(file, a=np.zeros((8, 8, 4)))
    result = CliRunner().invoke(data, ["check", str(root)])
    assert isinstance(result.exception, EguotError)
    assert result.stdout.count("cannot be used: ") == 1
    assert "0003.npy: not a readable .npy" in result.stdout


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_planes_of_every_float_are_read(dtype: str, tmp_path: Path) -> None:
    """Numbers in 0..1 of any precision, and whole counts; what is neither is not guessed at."""
    counts = np.random.default_rng(0).integers(0, 1024, (6, 8, 4))
    np.save(tmp_path / "unit.npy", (counts / 1023).astype(dtype))
    expected = unpack((counts / 1023).astype(dtype).astype(np.float64) * 65535)
    assert np.abs(read_npy(tmp_path / "unit.npy") - expected).max() <= 0.51
    np.save(tmp_path / "counts.npy", counts.astype(dtype))
    np.testing.assert_array_equal(read_npy(tmp_path / "counts.npy"), unpack(counts))
    np.save(tmp_path / "neither.npy", (1.02 * counts / 1023).astype(dtype))
    with pytest.raises(CorruptRaw, match=r"neither\.npy: values 0\.00\d+\.\.1\.0[12]\d* are neither whole counts nor"):
        read_npy(tmp_path / "neither.npy")


def test_what_was_found_is_told_before_it_is_drawn(folders: dict[str, str], tmp_path: Path) -> None:
    """No picture is drawn of nothing, and one that cannot be written costs none of the findings."""
    (tmp_path / "file").touch()
    result = CliRunner().invoke(data, ["check", folders["srgb"], "--out", str(tmp_path / "file" / "sheet.png")])
    assert isinstance(result.exception, OutputError)
    assert "0 pairs, 0 raws, 3 photos" in result.stdout
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "a.jpg").write_bytes(b"\xff\xd8 cut")
    arguments = ["check", str(tmp_path / "damaged"), "--json", "--out", str(tmp_path / "sheet.png")]
    result = CliRunner().invoke(data, arguments)
    assert isinstance(result.exception, EguotError)
    assert "a.jpg" in json.loads(result.stdout)["damaged"][0]
    assert "picture" not in json.loads(result.stdout)
    assert not (tmp_path / "sheet.png").exists()


def test_ispw_pairs_raws_and_pictures_by_name(tmp_path: Path) -> None:
    root = make_ispw(tmp_path / "wild")
    shutil.copy(root / "phone" / "IMG_0.dng", root / "phone" / "lonely.dng")
    found = open_dataset(root)
    assert (found.kind, len(pairs_of(found.items())), found.values) == ("ispw", 4, None)
    assert found.notes == ("1 raws without a picture, in no pair: phone/lonely.dng",)
    assert found.items()[0].frame().mosaic.shape == found.items()[0].truth().shape[:2]


def test_raws_and_pictures_are_paired_by_folder_before_name(tmp_path: Path) -> None:
    """Cameras count from IMG_0001 again; a picture of another shot must never be the truth of a raw."""
    camera = SynthCamera.from_seed(3)
    scenes = {}
    for i, place in enumerate(("100/IMG_1", "101/IMG_1", "raw/A", "x/B", "y/B", "102/IMG_1", "one/C")):
        scenes[place] = make_scene(i, SIDE, SIDE)
        path = tmp_path / f"{place}.dng"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(dng_bytes(camera.shoot(scenes[place], place)))
    for raw, place in (
        ("100/IMG_1", "100/IMG_1.png"), ("101/IMG_1", "101/IMG_1.png"), ("raw/A", "jpg/A.png"), ("x/B", "z/B.png"),
        ("one/C", "one/C.png"), ("one/C", "one/C.jpg"),
    ):  # fmt: skip
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.fromarray(scenes[raw]).save(tmp_path / place)
    found = open_dataset(tmp_path)
    pairs = {item.name: item for item in pairs_of(found.items())}
    assert set(pairs) == {"100_IMG_1", "101_IMG_1", "A"}
    for name, place in (("100_IMG_1", "100/IMG_1"), ("101_IMG_1", "101/IMG_1"), ("A", "raw/A")):
        np.testing.assert_array_equal(pairs[name].truth(), scenes[place])
        np.testing.assert_array_equal(pairs[name].frame().mosaic, camera.shoot(scenes[place], place).mosaic)
    assert found.notes == (
        "1 raws without a picture, in no pair: 102/IMG_1.dng",
        "6 files of like names in several places, in no pair: one/C.dng, x/B.dng, y/B.dng, one/C.jpg, one/C.png, ...",
    )
    # All of it is there for unpaired training, each under a name of its own; no scene is on both sides.
    assert len({item.name for item in found.items()}) == len(found.items()) == 3 + 7
    raws, photos, _ = split_scenes(found.items())
    assert not {item.raw.stem for item in raws if item.raw} & {item.photo.stem for item in photos if item.photo} - {
        "IMG_1"
    }
    evaluation = CliRunner().invoke(
        evaluate, ["default", "--pairs", str(tmp_path), "--out", str(tmp_path / "csv"), "--json"]
    )
    assert json.loads(evaluation.stdout)["images"] == 3
    prepare(tmp_path, tmp_path / "shards")
    assert len(read_index(shard_files(tmp_path / "shards", "pairs")[0], "pairs")[0]) == 3


def test_a_stray_picture_beside_its_raw_leaves_unpaired_training_its_raws(
    folders: dict[str, str], tmp_path: Path
) -> None:
    raw = Path(shutil.copytree(folders["raw"], tmp_path / "raw"))
    Image.fromarray(make_scene(0, 72, 88)).save(raw / "scene0.jpg")
    sources = load_sources(TrainConfig(mode="unpaired", raw=str(raw), srgb=folders["srgb"]))
    assert len(sources.frames) == 3
    assert "2 raws without a picture, in no pair: scene1.dng, scene2.dng" in sources.notes
    assert len(list_samples(raw, "raw")[0]) == 3


def test_plain_folders(folders: dict[str, str], tmp_path: Path) -> None:
    assert open_dataset(folders["raw"]).kind == "raws"
    assert open_dataset(folders["srgb"]).kind == "photos"
    assert open_dataset(folders["pairs"]).kind == "pairs"
    with pytest.raises(UsageError, match="no raws, no photos"):
        open_dataset(tmp_path)
    phone = tmp_path / "phone"
    phone.mkdir()
    (phone / "IMG_1.HEIC").touch()
    with pytest.raises(UsageError, match="no photos \\(1 in HEIC, which is not read: convert them to JPEG"):
        open_dataset(phone)
    both = tmp_path / "both"
    shutil.copytree(folders["raw"], both / "raw")
    shutil.copytree(folders["srgb"], both / "srgb")
    assert open_dataset(both).kind == "unpaired"
    shutil.copytree(folders["pairs"], both / "pairs")
    with pytest.raises(UsageError, match=r"folder of their own, .*/pairs, among other files"):
        open_dataset(both)


def test_shards_are_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "train" / "shard-000000.tar").touch()
    for folder in ("out", "out/train"):
        with pytest.raises(UsageError, match="holds shards"):
            open_dataset(tmp_path / folder)


def test_a_set_with_parts_is_never_tested_on_what_it_was_trained_on(tmp_path: Path) -> None:
    root = make_zrr(tmp_path / "zrr")
    shutil.rmtree(root / "test")
    with pytest.raises(UsageError, match="no test part"):
        open_dataset(root).part("test")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"white": 4095}, "counts pile up and end at 1023"),
        ({"white": 900}, "above it, up to 1023"),
        ({"black": 300}, "far below"),
        ({"black": 0}, "no count is below"),
        ({"cfa": "GRBG"}, r"greens, are \[0,1\] and \[1,0\]"),
        ({"cfa": "BGGR"}, "red and blue are the other way round"),
    ],
)
def test_check_refuses_what_the_data_contradict(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    root = make_zrr(tmp_path / "zrr")
    (root / "dataset.json").write_text(json.dumps(settings))
    result = CliRunner().invoke(data, ["check", str(root)], catch_exceptions=True)
    assert result.exit_code == 1
    assert any(message.replace("\\", "") in line for line in check(root).wrong), check(root).wrong
    for place in (root, root / "train"):
        assert check(place).remedy == f"correct it in {root / 'dataset.json'}"


@pytest.mark.parametrize("cfa", ["RGGB", "GRBG", "GBRG", "BGGR"])
def test_the_phase_is_seen_in_pairs(cfa: str) -> None:
    statistics = RawStatistics()
    for mosaic, scene in shots(phone(cfa=cfa), 8):
        statistics.add(mosaic, scene)
    assert statistics.phase() == cfa
    assert contradictions(statistics, detect(statistics, cfa))[0] == []


def test_grey_pictures_tell_no_phase() -> None:
    statistics = RawStatistics()
    rng = np.random.default_rng(0)
    for _ in range(8):
        grey = np.repeat(np.repeat(rng.integers(70, 900, (16, 16)), 4, 0), 4, 1).astype(np.uint16)
        statistics.add(grey, (grey[..., None] >> 2).astype(np.uint8).repeat(3, 2))
    assert statistics.phase() is None


def test_check_says_what_it_found_with_a_picture(tmp_path: Path) -> None:
    root = make_zrr(tmp_path / "zrr")
    (root / "train" / "huawei_raw" / "3.png").write_bytes(b"\x89PNG cut")
    Image.new("RGB", (10, 10)).save(root / "train" / "canon" / "4.jpg")
    picture = tmp_path / "found.jpg"
    result = CliRunner().invoke(data, ["check", str(root), "--json", "--out", str(picture)])
    assert result.exit_code == 1  # two files are damaged
    found = json.loads(result.stdout)
    assert found["kind"] == "zrr"
    assert found["parts"]["train"] == {"raws": 12, "photos": 12, "pairs": 12}
    assert found["wrong"] == []
    assert found["phase_seen"] == "RGGB"
    assert found["clips_at"] == 1023
    assert len(found["damaged"]) == 2
    assert "3.png" in found["damaged"][0]
    assert "10 x 10" in found["damaged"][1]
    with Image.open(picture) as drawn:
        assert drawn.width > 1000
        assert np.asarray(drawn).std() > 20


def test_check_says_that_nothing_is_wrong(shipped: Path, tmp_path: Path) -> None:
    root = make_zrr(tmp_path / "zrr")
    assert (
        "15 raws looked at: nothing contradicts levels or CFA phase"
        in CliRunner().invoke(data, ["check", str(root)]).output
    )
    picture = tmp_path / "found.jpg"
    result = CliRunner().invoke(data, ["check", str(shipped), "--out", str(picture)])
    assert "levels and CFA phase: those of each raw\n  2 raws looked at: nothing contradicts" in result.stdout
    assert result.stderr.endswith(f"wrote {picture}\n")


def test_unpaired_halves_share_no_scene() -> None:
    items = [Item(f"s{i // 3}_{i % 3}", Path("r"), Path("p"), scene=f"s{i // 3}") for i in range(30)]
    raws, photos, how = split_scenes(items)
    assert {i.scene for i in raws}.isdisjoint(i.scene for i in photos)
    assert len(raws) == len(photos) == 15
    assert "5 scenes are raws" in how
    unknown = [Item(str(i), Path("r"), Path("p")) for i in range(10)]
    raws, photos, how = split_scenes(unknown)
    assert [i.name for i in raws] == ["0", "1", "2", "3", "4"]
    assert [i.name for i in photos] == ["5", "6", "7", "8", "9"]
    assert all(i.photo is None for i in raws)
    assert all(i.raw is None for i in photos)
    with pytest.raises(UsageError, match=r"too few scenes .* 0 raws and 1 photos$"):
        split_scenes(unknown[:1])
    with pytest.raises(UsageError, match=r"0 raws and 2 photos; `train` takes a folder of each"):
        split_scenes([Item(name, None, Path("p")) for name in "ab"])


def test_scenes_come_from_names_where_the_folder_says_how(tmp_path: Path) -> None:
    write_matched(tmp_path / "train", "huawei_raw", "canon", ".jpg", shots(phone(), 12))
    for folder, suffix in (("huawei_raw", ".png"), ("canon", ".jpg")):
        for i in range(12):
            path = tmp_path / "train" / folder / f"{i}{suffix}"
            path.rename(path.with_name(f"scene{i // 4}-{i % 4}{suffix}"))
    (tmp_path / "dataset.json").write_text('{"scene_separator": "-"}')
    scenes = [item.scene for item in open_dataset(tmp_path).part("train")]
    assert scenes == ["scene0"] * 4 + ["scene1"] * 4 + ["scene2"] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON object"),
        ('{"levels": 1}', "expected a JSON object with keys"),
        ('{"black": [1, 2]}', "one number or four"),
        ('{"cfa": "RGBW"}', "cfa must be one of"),
        ('{"white": 10}', "are no levels"),
        ('{"white_balance": 2}', "three numbers R, G, B"),
        ('{"white_balance": [2, 0, 1]}', "must be three gains"),
        ('{"cfa": ["RGGB"]}', "cfa must be one of"),
        ('{"white": "high"}', "white must be a number"),
        ('{"white": [1023]}', "white must be a number"),
        ('{"white": NaN}', "white must be a number"),
        ('{"black": [0, NaN, 0, 0]}', "one number or four"),
        pytest.param('{"black": 1' + 400 * "0" + "}", "one number or four", id="black beyond any float"),
        ('{"white_balance": [1, NaN, 1]}', "three numbers R, G, B"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, text: str, message: str) -> None:
    root = make_zrr(tmp_path / "zrr")
    (root / "dataset.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        open_dataset(root)


@pytest.mark.parametrize("kind", ["pairs", "raws"])
def test_levels_for_raws_that_carry_their_own_are_refused(tmp_path: Path, kind: str) -> None:
    """They would change nothing."""
    scene = make_scene(0, SIDE, SIDE)
    frame = SynthCamera.from_seed(3).shoot(scene, "a")
    if kind == "pairs":
        write_pair(tmp_path, "a", frame, scene)
    else:
        (tmp_path / "a.dng").write_bytes(dng_bytes(frame))
    (tmp_path / "dataset.json").write_text('{"cfa": "GRBG", "scene_separator": "_"}')
    advice = "take it out, and correct it in each NAME.json$" if kind == "pairs" else "take it out$"
    with pytest.raises(UsageError, match=f"dataset.json gives cfa, which only sets without metadata .*: {advice}"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"scene_separator": "_"}')
    assert open_dataset(tmp_path).kind == kind


def test_levels_of_a_set_do_not_stop_pairs_inside_it(tmp_path: Path) -> None:
    zrr = make_zrr(tmp_path / "zrr")
    (zrr / "dataset.json").write_text('{"white": 1023}')
    scene = make_scene(0, SIDE, SIDE)
    write_pair(zrr / "mine", "a", SynthCamera.from_seed(3).shoot(scene, "a"), scene)
    assert open_dataset(zrr / "mine").kind == "pairs"


def test_training_reads_data_set_folders(tmp_path: Path) -> None:
    zrr, ntire = make_zrr(tmp_path / "zrr"), make_ntire(tmp_path / "ntire")
    paired = load_sources(TrainConfig(mode="paired", pairs=str(zrr)))
    assert [pair.name for pair in paired.pairs] == [str(i) for i in range(12)]
    unpaired = load_sources(TrainConfig(mode="unpaired", raw=str(ntire), srgb=str(ntire)))
    assert (len(unpaired.frames), len(unpaired.photos)) == (10, 10)
    halves = load_sources(TrainConfig(mode="unpaired", raw=str(zrr), srgb=str(zrr)))
    assert (len(halves.frames), len(halves.photos)) == (6, 6)
    assert any("the first 6 pairs are raws, the last 6 photos: a scene may be on both" in line for line in halves.notes)
    (zrr / "dataset.json").write_text('{"scene_separator": "-"}')
    known = load_sources(TrainConfig(mode="unpaired", raw=str(zrr), srgb=str(zrr)))
    assert any("6 scenes are raws, 6 other ones photos: no scene is on both" in line for line in known.notes)
    (zrr / "train" / "canon" / "5.jpg").write_bytes(b"\xff\xd8 cut")
    fewer = load_sources(TrainConfig(mode="paired", pairs=str(zrr)))
    assert len(fewer.pairs) == 11
    assert any("5.jpg" in line for line in fewer.skipped)


def test_another_rendering_of_a_pairs_scene_stays_on_its_side(tmp_path: Path) -> None:
    """IMG_0.dng with its IMG_0.jpg among the raws: edited/IMG_0.jpg shows that scene too."""
    for folder in ("raw", "edited"):
        (tmp_path / folder).mkdir()
    camera = SynthCamera.from_seed(3)
    for i in range(4):
        scene = make_scene(i, SIDE, SIDE)
        (tmp_path / "raw" / f"IMG_{i}.dng").write_bytes(dng_bytes(camera.shoot(scene, f"s{i}")))
        for folder in ("raw", "edited"):
            Image.fromarray(scene).save(tmp_path / folder / f"IMG_{i}.jpg")
    raws, photos, _ = split_scenes(open_dataset(tmp_path).part("train"))
    assert {item.raw.stem for item in raws if item.raw} == {"IMG_0", "IMG_1"}
    assert {item.photo.stem for item in photos if item.photo} == {"IMG_2", "IMG_3"}
    config = TrainConfig(mode="unpaired", raw=str(tmp_path), srgb=str(tmp_path))
    assert "edited/IMG_2.jpg" in load_sources(config).photo_names
