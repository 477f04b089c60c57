"""`evaluate`: a run through torch, a file without torch, and the command around them."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from eguot_sdk.cli import main
from eguot_sdk.errors import CheckpointError, EguotError, UsageError
from eguot_sdk.ingest import Ingest
from eguot_sdk.isp import ISP
from eguot_sdk.ispfile import embed_spec, read_spec
from eguot_sdk.metrics import psnr
from eguot_sdk.pairs import list_pairs, write_pair
from eguot_sdk.paths import DEFAULT_ISP
from eguot_train.cli_data import evaluate as command
from eguot_train.data.crops import float_spec, load_photo
from eguot_train.data.prepare import prepare
from eguot_train.data.samples import samples_hash
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera
from eguot_train.evaluate import csv_path, evaluate_model, pairs_to_score, trained_on


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for i, cfa in enumerate(("RGGB", "RGGB", "BGGR")):
        scene = make_scene(i, 48, 64)
        write_pair(tmp_path / "pairs", f"scene{i}", SynthCamera.from_seed(1, cfa).shoot(scene, f"scene{i}"), scene)
    return tmp_path / "pairs"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose EMA weights differ from its last ones."""
    torch = pytest.importorskip("torch")
    from eguot_train.checkpoint import build_isp, prefixed, save_checkpoint
    from eguot_train.config import TrainConfig

    torch.manual_seed(0)
    weights = {}
    for which in ("net", "ema"):
        net = build_isp("qisp-s")
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, 0.0, (0.5 / max(parameter[0].numel(), 16)) ** 0.5)
        weights |= prefixed(which, net.state_dict())
    folder = tmp_path / "run"
    save_checkpoint(folder, 10, weights, {})
    (folder / "config.json").write_text(TrainConfig(mode="unpaired").to_json())
    return folder


def test_a_run_is_scored_by_its_ema_weights_on_whole_frames(run: Path, pairs: Path) -> None:
    """Against the network on planes reflected by NumPy, for the pairs that start with red."""
    import torch

    from eguot_train.checkpoint import part, read_checkpoint
    from eguot_train.isps import ISPS

    scores = {s.name: s for s in evaluate_model(run, pairs).scores}
    assert sorted(scores) == ["scene0", "scene1", "scene2"]
    net = ISPS["qisp-s"]()
    net.load_state_dict(part("ema", read_checkpoint(run / "checkpoints" / "000010.safetensors")[0]))
    for pair in list_pairs(pairs)[:2]:
        ingest = Ingest(pair.frame(), float_spec("srgb"))
        planes = np.empty((ingest.height, ingest.width, 4), np.float32)
        ingest.fill(planes, 0, 0)
        halo = net.halo
        padded = np.pad(unpacked(planes), 2 * halo, mode="reflect")
        planes = np.stack([padded[y::2, x::2] for y in (0, 1) for x in (0, 1)])
        with torch.no_grad():
            rgb = net.eval()(torch.from_numpy(planes)[None])[0].permute(1, 2, 0).numpy()
        picture = np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)[2 * halo : -2 * halo, 2 * halo : -2 * halo]
        assert scores[pair.name].psnr_db == pytest.approx(psnr(np.ascontiguousarray(picture), pair.truth()), abs=1e-3)


def unpacked(planes: np.ndarray) -> np.ndarray:
    mosaic = np.empty((2 * planes.shape[0], 2 * planes.shape[1]), planes.dtype)
    for i in range(4):
        mosaic[i // 2 :: 2, i % 2 :: 2] = planes[..., i]
    return mosaic


def test_command_on_a_run(run: Path, pairs: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [str(run), "--pairs", str(pairs), "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert {"psnr_db", "ssim", "de2000", "psnr_affine_db", "intervals_95", "csv"} <= set(result)
    assert result["lpips"] is None
    assert result["protocol"] == "plain"
    assert Path(result["csv"]) == run / f"evaluate-{tmp_path.name}-pairs.csv"
    with Path(result["csv"]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert result["images"] == len(rows) == 3
    for metric in ("psnr_db", "ssim", "de2000", "psnr_affine_db"):
        assert result[metric] == pytest.approx(np.mean([float(row[metric]) for row in rows]), abs=1e-5)
    done = CliRunner().invoke(command, [str(run), "--pairs", str(pairs), "--out", str(tmp_path / "scores")])
    assert done.exit_code == 0, done.output
    assert f"{result['psnr_db']:.2f} dB" in done.stdout
    assert (tmp_path / "scores" / f"run-evaluate-{tmp_path.name}-pairs.csv").is_file()


def test_a_run_scored_on_what_it_learnt_from_is_told(run: Path, pairs: Path, tmp_path: Path) -> None:
    from eguot_train.config import TrainConfig

    def told(folder: Path) -> str | None:
        return trained_on(run, pairs_to_score(folder)[0], folder)

    assert told(pairs) is None
    assert trained_on("default", pairs_to_score(pairs)[0], pairs) is None
    (run / "config.json").write_text(TrainConfig(mode="paired", pairs=str(pairs)).to_json())
    done = CliRunner().invoke(command, [str(run), "--pairs", str(pairs), "--json"])
    assert "run was trained on these pairs: only others say what it is worth" in done.stderr
    others = Path(shutil.copytree(pairs, tmp_path / "others"))
    assert told(others) is None
    parts = tmp_path / "set"
    for part in ("train", "test"):
        shutil.copytree(pairs, parts / part)
    (run / "config.json").write_text(TrainConfig(mode="paired", pairs=str(parts)).to_json())
    assert told(parts) is None
    shards = tmp_path / "shards"
    prepare(parts, shards)
    (run / "config.json").write_text(TrainConfig(mode="paired", pairs=str(shards)).to_json())
    assert told(shards) is None, "the test part"
    assert told(shards / "train") == "run was trained on these pairs: only others say what it is worth"
    (run / "config.json").write_text(TrainConfig(mode="paired", pairs=str(tmp_path / "gone")).to_json())
    assert told(parts) is None


def test_a_file_scored_on_what_it_learnt_from_is_told(pairs: Path, tmp_path: Path) -> None:
    found, _ = pairs_to_score(pairs)
    spec = replace(read_spec(DEFAULT_ISP), provenance={"data": {"pairs": samples_hash(found, pairs)}})
    file = tmp_path / "own.tflite"
    file.write_bytes(embed_spec(DEFAULT_ISP.read_bytes(), spec))
    done = CliRunner().invoke(command, [str(file), "--pairs", str(pairs), "--json"])
    assert "own.tflite was trained on these pairs: only others say what it is worth" in done.stderr
    copied = Path(shutil.copytree(pairs, tmp_path / "copied"))
    assert trained_on(file, pairs_to_score(copied)[0], copied) is not None
    next(copied.glob("*_raw.png")).unlink()
    assert trained_on(file, pairs_to_score(copied)[0], copied) is None
    assert trained_on(DEFAULT_ISP, found, pairs) is None
    taught = replace(read_spec(DEFAULT_ISP), provenance={"made_by": {"data": {"pairs": samples_hash(found, pairs)}}})
    file.write_bytes(embed_spec(DEFAULT_ISP.read_bytes(), taught))
    assert trained_on(file, found, pairs) is not None
    next(pairs.glob("*_raw.png")).unlink()
    assert trained_on(file, found, pairs) is None, "a file that cannot be read is no reason to lose scores"


def test_a_file_is_scored_through_its_runtime(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`process` of the loaded ISP is what is scored, phase and all."""
    path = tmp_path / "look.w8a8.tflite"
    path.write_bytes(b"")
    fake = ISP.fake(threads=1)
    monkeypatch.setattr(ISP, "load", classmethod(lambda cls, given, threads=None: fake if given == path else None))
    evaluation = evaluate_model(path, pairs)
    for pair, score in zip(list_pairs(pairs), evaluation.scores, strict=True):
        assert score.psnr_db == psnr(fake.process(pair.frame()), pair.truth())
        assert score.psnr_db > 10
    assert csv_path(path, pairs, None) == tmp_path / f"look.w8a8-evaluate-{tmp_path.name}-pairs.csv"
    assert csv_path("default", pairs, None) == Path(f"default-evaluate-{tmp_path.name}-pairs.csv")
    assert csv_path("default", pairs, None, "aligned") == Path(f"default-evaluate-{tmp_path.name}-pairs-aligned.csv")


@pytest.mark.skipif(not DEFAULT_ISP.is_file(), reason="this tree has no default ISP")
def test_the_default_isp_is_scored_without_torch(pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    code = f"""
import sys
for name in ("torch", "tensorflow", "scipy", "skimage"):
    sys.modules[name] = None
from eguot_train.cli_data import evaluate
evaluate(["default", "--pairs", {str(pairs)!r}, "--out", {str(tmp_path / "out")!r}, "--json"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 3
    assert "delegate" not in done.stderr  # LiteRT's own lines


def test_importing_the_command_imports_no_torch() -> None:
    code = "import sys, eguot_train.cli_data, eguot_train.evaluate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_what_cannot_be_scored_is_refused(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such run folder or ISP file"):
        evaluate_model(tmp_path / "absent.tflite", pairs)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="not a run folder"):
        evaluate_model(tmp_path / "empty", pairs)


def test_processes_score_as_one_does(pairs: Path, tmp_path: Path) -> None:
    """Through the default ISP, spawned workers give the scores of this process, and name what cannot be read."""
    if not DEFAULT_ISP.is_file():
        pytest.skip("this tree has no default ISP")
    alone = evaluate_model("default", pairs)
    shared = evaluate_model("default", pairs, workers=2)
    assert [s.name for s in shared.scores] == [s.name for s in alone.scores]
    assert shared.mean("psnr_db") == pytest.approx(alone.mean("psnr_db"), abs=1e-9)
    assert shared.likeness == {}  # of pictures below 64 pixels there is no spectrum
    copy = Path(shutil.copytree(pairs, tmp_path / "copy"))
    (copy / "scene1_raw.png").write_bytes(b"\x89PNG cut")
    fewer = evaluate_model("default", copy, workers=2)
    assert [s.name for s in fewer.scores] == ["scene0", "scene2"]
    assert "scene1_raw.png" in fewer.skipped[0]


def test_worst_pictures_and_sets_without_pairs(pairs: Path, folders: dict[str, str], tmp_path: Path) -> None:
    if not DEFAULT_ISP.is_file():
        pytest.skip("this tree has no default ISP")
    refused = CliRunner().invoke(command, ["default", "--pairs", str(pairs), "--worst", str(tmp_path / "worst.gif")])
    assert refused.exit_code == 2
    sheet = tmp_path / "worst.png"
    done = CliRunner().invoke(
        command,
        ["default", "--pairs", str(pairs), "--out", str(tmp_path), "--worst", str(sheet), "--protocol", "aligned"],
    )
    assert done.exit_code == 0, done.output
    with Image.open(sheet) as drawn:
        assert drawn.format == "PNG"
    assert "pixels matched" in done.stdout
    done = CliRunner().invoke(command, ["default", "--raw", folders["raw"], "--srgb", folders["srgb"], "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["swd_lab"] > 0
    assert CliRunner().invoke(command, ["default", "--raw", folders["raw"]]).exit_code == 2


def test_scores_of_two_sets_have_two_names(tmp_path: Path) -> None:
    """ZRR/test and mine/test, synth/pairs and other/pairs: scores of one must not replace those of another."""
    for place, name in (
        ("zrr/test", "zrr-test"), ("mine/test", "mine-test"), ("mine/val/pairs", "mine-val-pairs"),
        ("synth/pairs", "synth-pairs"), ("street", "street"),
    ):  # fmt: skip
        (tmp_path / place).mkdir(parents=True)
        assert csv_path("default", tmp_path / place, None) == Path(f"default-evaluate-{name}.csv")
    for shards in ("zrr/test/shard-000000.tar", "zrr/test/shard-*.tar"):
        assert csv_path("default", tmp_path / shards, None) == Path("default-evaluate-zrr-test.csv")
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        there = csv_path(tmp_path / run, tmp_path / "street", tmp_path / "scores")
        assert there == tmp_path / "scores" / f"{run}-evaluate-street.csv"


def test_options_that_would_be_passed_over_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    sets = ["default", "--raw", folders["raw"], "--srgb", folders["srgb"]]
    for option, value in (("--worst", "w.png"), ("--out", str(tmp_path)), ("--protocol", "aligned"), ("--lpips", ".")):
        refused = CliRunner().invoke(command, [*sets, option, value])
        assert refused.exit_code == 2
        assert f"{option} needs --pairs" in refused.stderr
    for sides in (["--raw", folders["raw"]], ["--srgb", folders["srgb"]], sets[1:]):
        refused = CliRunner().invoke(command, ["default", "--pairs", folders["pairs"], *sides])
        assert refused.exit_code == 2
        assert "not both" in refused.stderr


def test_damaged_and_small_files_do_not_stop_the_comparison_of_sets(folders: dict[str, str], tmp_path: Path) -> None:
    if not DEFAULT_ISP.is_file():
        pytest.skip("this tree has no default ISP")
    raw, srgb = (Path(shutil.copytree(folders[role], tmp_path / role)) for role in ("raw", "srgb"))
    whole = CliRunner().invoke(command, ["default", "--raw", str(raw), "--srgb", str(srgb), "--json"])
    (raw / "bad.dng").write_bytes(b"II*\0 no raw")
    Image.new("RGB", (63, 90)).save(srgb / "small.png")
    done = CliRunner().invoke(command, ["default", "--raw", str(raw), "--srgb", str(srgb), "--json"])
    found = json.loads(done.stdout)
    assert {**found, "skipped": []} == json.loads(whole.stdout)
    assert len(found["skipped"]) == 2
    assert done.exit_code == 1
    assert "bad.dng" in done.stderr
    assert "small.png: summarise needs" in done.stderr
    for photo in srgb.glob("photo*"):
        photo.unlink()
    done = CliRunner().invoke(command, ["default", "--raw", str(raw), "--srgb", str(srgb)])
    assert isinstance(done.exception, EguotError)
    assert "none of the 1 photos can be used, first:" in str(done.exception)


def test_scores_are_shown_where_they_cannot_be_written(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["default", "--pairs", str(pairs), "--out", str(tmp_path / "file")]
    text = CliRunner().invoke(main, ["evaluate", *arguments])
    assert text.exit_code == 1
    assert "CIEDE2000" in text.stdout
    assert "file" in text.stderr
    facts = json.loads(CliRunner().invoke(main, ["evaluate", *arguments, "--json"]).stdout)
    assert facts["csv"] is None
    assert facts["psnr_db"] > 10


def test_an_eps_named_like_a_photo_is_not_handed_to_ghostscript(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    with pytest.raises(UsageError, match="cannot identify image file"):
        load_photo(path)
