"""The commands for published rows, on small folders in the layouts of their data sets."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import dataset_fixtures
import numpy as np
import pytest
from click.testing import CliRunner, Result
from dataset_fixtures import make_ntire, make_zrr
from PIL import Image

from eguot_sdk.metrics import psnr
from eguot_train.data.datasets import open_dataset, pairs_of
from eguot_train.evaluate import evaluate_model, render_of

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "published" / "run.py"


@pytest.fixture(scope="module")
def published() -> Iterator[ModuleType]:
    if not SCRIPT.is_file():
        pytest.skip("this tree has no benchmarks")
    spec = importlib.util.spec_from_file_location("published_rows", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["published_rows"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["published_rows"]


@pytest.fixture(autouse=True)
def larger_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_fixtures, "SIDE", 80)


def call(module: ModuleType, *arguments: object) -> Result:
    return CliRunner().invoke(module.main, [str(a) for a in arguments], catch_exceptions=False)


def row_of(text: str, name: str) -> list[str]:
    (line,) = {line for line in text.splitlines() if line.startswith(f"| {name} |")}
    return [cell.strip() for cell in line.strip("| \n").split("|")]


def test_zrr_trains_and_stands_beside_the_published_figures(published: ModuleType, tmp_path: Path) -> None:
    root, out = make_zrr(tmp_path / "zrr"), tmp_path / "out"
    asked = ("zrr", "--data", root, "--out", out, "--steps", 2, "--crop", 32, "--modes", "unpaired,supervised")
    done = call(published, *asked, "--seeds", 2)
    assert done.exit_code == 0, done.output
    text = (out / "results.md").read_text()
    assert text.strip() in done.output
    assert "12 of 46,839 train pairs" in text
    assert "3 of 1,204 test pairs" in text
    assert "| *published:* PyNET in PyTorch | 21.17 |  | 0.8623 |" in text
    assert "aiff22/PyNET-PyTorch" in text
    plain, aligned = text.split("Protocol `aligned`:")
    pairs = pairs_of(open_dataset(root).part("test"))
    places = [out / "2-steps" / "qisp-s" / "supervised" / f"seed{seed}" for seed in (0, 1)]
    for protocol, part in (("plain", plain), ("aligned", aligned)):
        scores = [evaluate_model(place / "run", pairs, protocol=protocol) for place in places]  # type: ignore[arg-type]
        values = [evaluation.mean("psnr_db") for evaluation in scores]
        cells = row_of(part, "qisp-s, supervised, 2 steps")
        assert cells[1] == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
        assert cells[-1] == "3"
        assert (places[0] / f"{protocol}.csv").is_file()
    assert row_of(plain, "R(x)")[1] != row_of(plain, "aligned R(x)")[1]
    config = json.loads((out / "2-steps" / "qisp-s" / "unpaired" / "seed1" / "run" / "config.json").read_text())
    assert (config["raw"], config["srgb"], config["pairs"], config["find_pairs"]) == (str(root), str(root), None, False)

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert call(published, *asked, "--seeds", 2).exit_code == 0
    assert (out / "results.md").read_text() == text
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
    assert "are supervised, paired, unpaired, mixed, not best" in call(published, *asked, "--modes", "best").output

    one = call(published, "zrr", "--data", root, "--out", tmp_path / "model", "--model", places[0] / "run")
    alone = evaluate_model(places[0] / "run", pairs).mean("psnr_db")
    assert row_of(one.output.split("Protocol `aligned`:")[0], "run")[1] == f"{alone:.2f}"


def test_ntire_is_scored_where_there_is_a_truth_and_drawn_where_not(published: ModuleType, tmp_path: Path) -> None:
    root = make_ntire(tmp_path / "ntire")
    asked = ("ntire26", "--data", root, "--steps", 2, "--crop", 32)
    done = call(published, *asked, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    run = tmp_path / "out" / "2-steps" / "qisp-s" / "unpaired" / "seed0" / "run"
    pairs = pairs_of(open_dataset(root).part("test"))
    render = render_of(run)
    expected = np.mean([psnr(render(pair.frame()), pair.truth()) for pair in pairs])
    assert row_of(done.output, "qisp-s, unpaired, 2 steps")[1] == f"{expected:.2f}"
    assert "| 22.57 | 0.6750 |  | 8.07 |" in done.output
    assert "2605.07495" in done.output

    hidden = Path(shutil.copytree(root, tmp_path / "hidden"))
    shutil.rmtree(hidden / "test" / "jpegs")
    done = call(published, "ntire26", "--data", hidden, "--out", tmp_path / "drawn", "--model", run)
    assert done.exit_code == 0, done.output
    drawn = sorted((tmp_path / "drawn" / "models" / "run" / "pictures").iterdir())
    assert [path.name for path in drawn] == ["0000.png", "0001.png"]
    with Image.open(drawn[0]) as picture:
        assert np.array_equal(np.asarray(picture), render(pairs[0].frame()))
    wrong = call(published, "zrr", "--data", root, "--out", tmp_path / "wrong")
    assert wrong.exit_code == 2
    assert "not the folder of zrr" in wrong.output
