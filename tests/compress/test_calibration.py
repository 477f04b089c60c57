"""Where crops come from, and what happens where they cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from eguot_compress.calibration import CALIBRATION_CROPS, GOLDEN_CROPS, MAX_FRAMES, _some, load_calibration
from eguot_sdk.errors import UsageError
from eguot_sdk.pairs import list_pairs, write_pair
from eguot_train.config import TrainConfig
from eguot_train.data.prepare import prepare
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera, dng_bytes
from eguot_train.isps import ISPS

CONFIG = TrainConfig(mode="supervised")


def test_procedural_scenes_where_nothing_is_given() -> None:
    found = load_calibration(CONFIG, None)
    assert found.source["kind"] == "procedural scenes"
    assert found.tiles.shape[0] == CALIBRATION_CROPS
    assert found.golden.shape[0] == GOLDEN_CROPS + 1
    assert found.tiles.dtype == torch.float32
    assert float(found.tiles.min()) >= 0
    assert float(found.tiles.max()) <= 1
    assert float(found.tiles.std()) > 0.1
    again = load_calibration(CONFIG, None)
    assert torch.equal(found.golden, again.golden)


def test_the_ramp_is_grey_and_whole() -> None:
    ramp = load_calibration(CONFIG, None).ramp
    assert torch.equal(ramp[0, 0], ramp[0, 3])
    assert float(ramp[0, 0, 5, 0]) == 0
    assert float(ramp[0, 0, 5, -1]) == 1


def test_pairs_bring_their_truth_aligned(pairs: Path) -> None:
    found = load_calibration(CONFIG, pairs)
    assert found.source["kind"] == "pairs"
    assert len(found.source["sha256"]) == 64
    assert found.truths is not None
    assert found.truths.shape[-1] == 2 * found.golden.shape[-1]
    # brightness of a crop and of its truth go together
    planes, truths = found.golden[:-1].mean((1, 2, 3)), found.truths.mean((1, 2, 3))
    assert float(torch.corrcoef(torch.stack([planes, truths]))[0, 1]) > 0.9
    assert str(pairs) not in str(found.source)


def test_the_runs_own_folder_is_taken_and_a_vanished_one_is_not(pairs: Path, tmp_path: Path) -> None:
    own = TrainConfig(mode="supervised", pairs=str(pairs))
    assert load_calibration(own, None).source["kind"] == "pairs"
    gone = TrainConfig(mode="supervised", pairs=str(tmp_path / "gone"))
    assert load_calibration(gone, None).source["kind"] == "procedural scenes"


def test_a_run_on_a_data_set_or_shards_is_calibrated_on_them(pairs: Path, tmp_path: Path) -> None:
    """A set in parts, of which the training part is taken, and its shards; crops are those of the plain folder."""
    (tmp_path / "set").mkdir()
    shutil.copytree(pairs, tmp_path / "set" / "train")
    prepare(tmp_path / "set", tmp_path / "shards")
    plain = load_calibration(CONFIG, pairs)
    for where in (tmp_path / "set", tmp_path / "shards"):
        own = load_calibration(TrainConfig(mode="supervised", pairs=str(where)), None)
        assert own.source["kind"] == "pairs"
        assert torch.equal(own.golden, plain.golden)
        assert torch.equal(load_calibration(CONFIG, where).tiles, plain.tiles)


def test_damaged_pairs_are_left_out_and_named(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(pairs, tmp_path / "some"))
    cut = sorted(folder.glob("*_raw.png"))[0]
    cut.write_bytes(cut.read_bytes()[:80])
    found = load_calibration(CONFIG, folder)
    assert found.source["files"] == len(list_pairs(pairs)) - 1
    assert cut.name in capsys.readouterr().err


def test_a_folder_of_damaged_raws_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.dng").write_bytes(b"II*\0" + b"\0" * 64)
    with pytest.raises(UsageError, match="no readable raws"):
        load_calibration(CONFIG, tmp_path)


def test_joined_crops_are_the_same_crops_on_larger_pictures(pairs: Path) -> None:
    found = load_calibration(CONFIG, pairs)
    joined = found.joined()
    side = found.golden.shape[-1]
    assert joined.golden.shape == (GOLDEN_CROPS // 4 + 1, 4, 2 * side, 2 * side)
    assert joined.tiles.shape[0] == CALIBRATION_CROPS // 4
    assert torch.equal(joined.golden[1, :, side:, :side], found.golden[6])
    assert joined.truths is not None
    assert found.truths is not None
    assert torch.equal(joined.truths[1, :, 2 * side :, : 2 * side], found.truths[6])
    assert float(joined.ramp[0, 0, 0, -1]) == 1


@pytest.mark.parametrize(("multiple", "side"), [(1, 64), (16, 64), (6, 66), (64, 64), (100, 100)])
def test_crops_and_joined_pictures_are_multiples_of_the_networks(multiple: int, side: int) -> None:
    found = load_calibration(CONFIG, None, multiple=multiple)
    assert found.tiles.shape[-2:] == found.golden.shape[-2:] == (side, side)
    assert found.joined(multiple).golden.shape[-1] % multiple == 0


def test_crops_of_small_raws_are_multiples_too(tmp_path: Path) -> None:
    scene = make_scene(0, 90, 90)
    write_pair(tmp_path, "small", SynthCamera.from_seed(1).shoot(scene, "small"), scene)
    found = load_calibration(CONFIG, tmp_path, multiple=6)
    assert found.tiles.shape[-1] == 42  # 44 fit
    assert found.joined(6).tiles.shape[-1] == 132
    with pytest.raises(UsageError, match="smaller than 130 px"):
        load_calibration(CONFIG, tmp_path, multiple=64)


@pytest.mark.parametrize("side", [50, 58, 98])
def test_crops_of_small_raws_suit_every_network(side: int, tmp_path: Path) -> None:
    scene = make_scene(0, side, side)
    write_pair(tmp_path, "small", SynthCamera.from_seed(1).shoot(scene, "small"), scene)
    crop = load_calibration(CONFIG, tmp_path).tiles.shape[-1]
    with torch.device("meta"):
        multiples = {make().multiple for make in ISPS.values()}
    assert max(multiples) > 8
    assert all(crop % multiple == 0 for multiple in multiples)
    assert crop > side / 4


def test_laid_on_one_tile_every_crop_keeps_its_truth(pairs: Path) -> None:
    """Also past the sixteenth place, where they come again."""
    found = load_calibration(CONFIG, pairs)
    crop = found.golden.shape[-1]
    tiled = found.at_side(5 * crop - 3)
    assert found.truths is not None
    assert tiled.truths is not None
    for place in range(25):
        row, column = crop * (place // 5), crop * (place % 5)
        planes = tiled.golden[0, :, row : row + crop, column : column + crop]
        truth = tiled.truths[0, :, 2 * row : 2 * (row + crop), 2 * column : 2 * (column + crop)]
        which = place % GOLDEN_CROPS
        assert torch.equal(planes, found.golden[which, :, : planes.shape[1], : planes.shape[2]])
        assert torch.equal(truth, found.truths[which, :, : truth.shape[1], : truth.shape[2]])


def test_of_many_raws_some_from_all_over_the_folder_are_taken() -> None:
    """Folders are in the order of shooting: the first hundred may show one evening."""
    assert _some(range(10)) == list(range(10))
    chosen = _some(range(1000))
    assert len(chosen) == len(set(chosen)) == MAX_FRAMES
    assert (chosen[0], chosen[-1]) == (0, 999)
    assert max(np.diff(chosen)) < 2 * 1000 / MAX_FRAMES


def test_files_are_checked_on_other_crops_than_ranges_were_learned_from(pairs: Path) -> None:
    found = load_calibration(CONFIG, pairs)
    learned = {tile.numpy().tobytes() for tile in found.tiles}
    assert len(learned) > CALIBRATION_CROPS // 2
    assert not learned & {crop.numpy().tobytes() for crop in found.golden}
    other = load_calibration(CONFIG, pairs, seed=1)
    assert not torch.equal(other.tiles, found.tiles)


def test_raws_without_truths_have_none(pairs: Path, tmp_path: Path) -> None:
    for pair in list_pairs(pairs):
        (tmp_path / f"{pair.name}.dng").write_bytes(dng_bytes(pair.frame()))
    found = load_calibration(CONFIG, tmp_path)
    assert (found.source["kind"], found.source["files"]) == ("raws", 3)
    assert found.truths is None
    assert found.at_side(40).truths is None
    assert found.joined().truths is None
