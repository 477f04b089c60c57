"""Benchmarks' data: no scene on two sides, each real scene tested once, and folders that exist are whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eguot_sdk.errors import UsageError
from eguot_sdk.pairs import list_pairs, write_pair
from eguot_train.data.scenes import make_scene
from eguot_train.data.splits import real_split, synthetic_split
from eguot_train.data.synth import SynthCamera


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    names = [f"p{i}.png" for i in range(9)]
    for i, name in enumerate(names):
        Image.fromarray(make_scene(i, 64, 64)).save(folder / name)
    (folder / "split.json").write_text(json.dumps({"raw": names[:4], "srgb": names[4:7], "test": names[7:]}))
    return folder


def scenes(split: Path) -> tuple[set[str], set[str], set[str]]:
    """Names of raws, of targets and of test pairs."""
    raws, tests = ({pair.name for pair in list_pairs(split / part / "pairs")} for part in ("train", "test"))
    return (
        raws,
        {path.name.split(".")[0].removesuffix("_srgb") for path in (split / "photos" / "srgb").iterdir()},
        tests,
    )


@pytest.mark.parametrize("number", [0, 1, 2])
def test_no_scene_of_a_synthetic_split_is_on_two_sides(photos: Path, tmp_path: Path, number: int) -> None:
    synthetic_split(photos, tmp_path / "split", "disjoint", number)
    raws, targets, tests = scenes(tmp_path / "split")
    assert (len(raws), len(targets), len(tests)) == (4, 3, 2)
    assert not raws & targets
    assert not raws & tests
    assert not targets & tests
    assert raws == {path.stem for path in (tmp_path / "split" / "train" / "raw").iterdir()}
    if number == 0:
        assert tests == {"p7", "p8"}, "of the committed file"
    assert not (tmp_path / "split.part").exists()


def test_splits_differ_by_their_number_and_shuffled_shows_the_same_scenes(photos: Path, tmp_path: Path) -> None:
    found = []
    for number in (1, 2, 3):
        synthetic_split(photos, tmp_path / str(number), "shuffled", number)
        raws, targets, tests = scenes(tmp_path / str(number))
        assert raws == targets
        assert not raws & tests
        found.append(frozenset(tests))
    assert len(set(found)) > 1


def test_each_real_scene_is_tested_in_one_fold(tmp_path: Path) -> None:
    camera = SynthCamera.from_seed(1)
    for i in range(9):
        scene = make_scene(i, 64, 64)
        write_pair(tmp_path / "real", f"s{i}", camera.shoot(scene, f"s{i}"), scene)
    tested: list[str] = []
    for fold in range(4):
        real_split(tmp_path / "real", tmp_path / str(fold), "disjoint", fold)
        raws, targets, tests = scenes(tmp_path / str(fold))
        assert raws | targets | tests == {f"s{i}" for i in range(9)}
        assert len(raws) + len(targets) + len(tests) == 9
        tested += tests
        (first, *_) = list_pairs(tmp_path / str(fold) / "test" / "pairs")
        whole = next(pair for pair in list_pairs(tmp_path / "real") if pair.name == first.name)
        np.testing.assert_array_equal(first.truth(), whole.truth())
    assert sorted(tested) == [f"s{i}" for i in range(9)]
    with pytest.raises(UsageError, match="9 pairs are too few for 5 folds"):
        real_split(tmp_path / "real", tmp_path / "more", "disjoint", 0, folds=5)
