"""Evaluation: means, CSV, order, and what the renderer is given."""

from __future__ import annotations

import csv
import dataclasses
import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eguot_sdk import evaluation as evaluation_module
from eguot_sdk.errors import EguotError, OutputError, RawError, UsageError
from eguot_sdk.evaluation import MAX_DB, Evaluation, ImageScore, Protocol, bootstrap_interval, evaluate, score_image
from eguot_sdk.metrics import delta_e_2000, psnr, ssim
from eguot_sdk.pairs import Pair, list_pairs, write_pair
from eguot_sdk.raw import RawFrame


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Seven pairs whose mosaic holds only the number of the pair; some lie turned."""
    rng = np.random.default_rng(0)
    for i in range(7):
        mosaic = np.full((16 + 2 * i, 24), 100 + i, np.uint16)
        frame = RawFrame.from_array(mosaic, cfa="RGGB", black=0, white=1000, orientation=1 + i)
        write_pair(tmp_path / "pairs", f"p{i}", frame, rng.integers(0, 200, (*mosaic.shape, 3), dtype=np.uint8))
    return list_pairs(tmp_path / "pairs")


def test_scores_are_those_of_the_metrics_in_the_order_of_the_pairs(pairs: list[Pair], tmp_path: Path) -> None:
    truths = [pair.truth() for pair in pairs]

    def render(frame: RawFrame) -> np.ndarray:
        assert frame.orientation == 1
        index = int(frame.mosaic[0, 0]) - 100
        return truths[index] + np.uint8(index)  # pair i is off by i levels everywhere

    evaluation = evaluate(render, pairs)
    assert [s.name for s in evaluation.scores] == [f"p{i}" for i in range(7)]
    assert evaluation.scores[0].psnr_db == MAX_DB
    for i, score in enumerate(evaluation.scores[1:], start=1):
        assert score.psnr_db == pytest.approx(20 * math.log10(255 / i))
        assert score.ssim == ssim(truths[i] + np.uint8(i), truths[i])
        assert score.de2000 == delta_e_2000(truths[i] + np.uint8(i), truths[i])
        assert score.psnr_affine_db == MAX_DB  # a constant offset is affine
    summary = evaluation.summary()
    assert list(summary) == ["protocol", "images", "psnr_db", "ssim", "de2000", "psnr_affine_db", "intervals_95"]
    low, high = summary["intervals_95"]["psnr_db"]
    assert low < summary["psnr_db"] < high
    assert evaluation.worst(2) == ["p6", "p5"]
    assert (summary["protocol"], summary["images"]) == ("plain", 7)
    expected = np.mean([MAX_DB] + [20 * math.log10(255 / i) for i in range(1, 7)])
    assert summary["psnr_db"] == pytest.approx(expected)

    path = evaluation.write_csv(tmp_path / "new" / "scores.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"p{i}" for i in range(7)]
    assert float(rows[3]["psnr_db"]) == pytest.approx(20 * math.log10(255 / 3), abs=1e-5)
    assert np.mean([float(row["ssim"]) for row in rows]) == pytest.approx(summary["ssim"], abs=1e-5)


def test_rendering_is_never_called_twice_at_once(pairs: list[Pair]) -> None:
    truths = {pair.truth().shape: pair.truth() for pair in pairs}
    busy = False

    def render(frame: RawFrame) -> np.ndarray:
        nonlocal busy
        assert not busy
        busy = True
        picture = np.clip(truths[(*frame.mosaic.shape, 3)] * 1.1, 0, 255).astype(np.uint8)
        busy = False
        return picture

    scores = evaluate(render, pairs).scores
    for pair, score in zip(pairs, scores, strict=True):
        picture = np.clip(pair.truth() * 1.1, 0, 255).astype(np.uint8)
        assert score.psnr_db == psnr(picture, pair.truth())


def test_failures_name_the_pair(pairs: list[Pair], tmp_path: Path) -> None:
    with pytest.raises(EguotError, match="pair p0: the picture is"):
        evaluate(lambda frame: np.zeros((4, 4, 3), np.uint8), pairs)
    with pytest.raises(UsageError, match="no pairs"):
        evaluate(lambda frame: np.zeros((4, 4, 3), np.uint8), [])
    pairs[2].truth_path.write_bytes(pairs[2].truth_path.read_bytes()[:60])
    with pytest.raises(RawError, match="p2_srgb"):
        evaluate(lambda frame: np.zeros((*frame.mosaic.shape, 3), np.uint8), pairs)
    black = evaluate(lambda frame: np.zeros((*frame.mosaic.shape, 3), np.uint8), pairs, skip_damaged=True)
    assert [score.name for score in black.scores] == ["p0", "p1", "p3", "p4", "p5", "p6"]
    assert len(black.skipped) == 1
    assert "p2_srgb" in black.skipped[0]
    small = np.zeros((8, 30, 3), np.uint8)
    cases: tuple[tuple[Protocol, int], ...] = (("plain", 11), ("aligned", 40))
    for protocol, least in cases:
        with pytest.raises(
            EguotError, match=rf"pair p9: \[8, 30, 3\], too small to score: {least} x {least}"
        ) as caught:
            score_image("p9", small, small, protocol)
        assert not isinstance(caught.value, UsageError)  # which would end an evaluation that skips what is damaged
    (tmp_path / "file").write_text("")
    good = evaluate(lambda frame: np.zeros((*frame.mosaic.shape, 3), np.uint8), pairs[:1])
    with pytest.raises(OutputError):
        good.write_csv(tmp_path / "file" / "scores.csv")


def test_the_interval_of_the_mean_is_that_of_the_normal_distribution() -> None:
    """Of many images the bootstrap's percentiles are mean +- 1.96 standard errors; of equal ones there is no spread."""
    values = np.random.default_rng(3).normal(30.0, 2.0, 400)
    low, high = bootstrap_interval(values)
    error = values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(np.full(5, 31.5)) == (31.5, 31.5)


def test_a_metric_that_an_image_lacks_is_in_no_summary(tmp_path: Path) -> None:
    """A mean over the others would be another protocol's. The table says which lack it; LPIPS has no empty column."""
    whole = ImageScore("a", 30.0, 0.9, 2.0, 31.0, ms_ssim=0.95)
    found = Evaluation((whole, dataclasses.replace(whole, name="b", ms_ssim=None)))
    assert "ms_ssim" not in found.summary()
    assert Evaluation((whole, whole)).summary()["ms_ssim"] == pytest.approx(0.95)
    text = found.write_csv(tmp_path / "a.csv").read_text().splitlines()
    assert text[0] == "name,psnr_db,ssim,de2000,psnr_affine_db,ms_ssim,matched"
    assert [line.split(",")[5] for line in text[1:]] == ["0.950000", "n/a"]
    scored = Evaluation((whole, dataclasses.replace(whole, lpips=0.25)))
    assert scored.write_csv(tmp_path / "b.csv").read_text().splitlines()[0].endswith(",lpips")


def test_a_truth_of_another_size_is_resized_as_pillow_does() -> None:
    """High and wide, so that rows and columns are told apart."""
    rng = np.random.default_rng(0)
    truth = np.asarray(Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).resize((180, 120)))
    small = np.asarray(Image.fromarray(truth).resize((90, 60), Image.Resampling.BICUBIC))
    assert score_image("a", small, truth, "ntire26").psnr_db == MAX_DB
    off = small.copy()
    off[:30] ^= 4
    assert score_image("a", off, truth, "ntire26").psnr_db == pytest.approx(psnr(off, small))
    with pytest.raises(EguotError, match="pair a: the picture is"):
        score_image("a", small, truth)


def test_every_aligned_score_is_of_what_matched() -> None:
    """The left half is the picture, a pixel further down; the right half shows something else."""
    rng = np.random.default_rng(1)
    scenes = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).resize((224, 224))) for _ in "ab"
    ]
    picture, truth = scenes[0][16:-16, 16:-16].copy(), scenes[0][15:-17, 16:-16].copy()
    same = score_image("a", picture, truth, "aligned")
    truth[:, 96:] = scenes[1][16:-16, 112:-16]
    aligned, plain = score_image("a", picture, truth, "aligned"), score_image("a", picture, truth)
    assert aligned.matched == pytest.approx(0.5, abs=0.1)
    for better, of in (("psnr_db", 8.0), ("psnr_affine_db", 8.0)):
        assert getattr(aligned, better) > getattr(plain, better) + of
    assert aligned.ssim > 0.95 > 0.8 > plain.ssim
    assert aligned.de2000 < 0.3 * plain.de2000
    assert aligned.psnr_db > same.psnr_db - 6


@dataclasses.dataclass(frozen=True)
class Stretched:
    """A pair whose pixels are not square, and which lies on its side."""

    name: str = "stretched"

    def frame(self) -> RawFrame:
        mosaic = np.full((16, 24), 100, np.uint16)
        frame = RawFrame.from_array(mosaic, cfa="RGGB", black=0, white=1000, orientation=6)
        return dataclasses.replace(frame, pixel_aspect=1.5)

    def truth(self) -> np.ndarray:
        return np.zeros((16, 24, 3), np.uint8)


def test_pictures_are_compared_as_the_sensor_lay_and_in_its_pixels() -> None:
    def render(frame: RawFrame) -> np.ndarray:
        assert (frame.orientation, frame.pixel_aspect) == (1, 1.0)
        return np.zeros((16, 24, 3), np.uint8)

    assert evaluate(render, [Stretched()]).scores[0].psnr_db == MAX_DB


def test_few_rendered_pictures_wait_for_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast the renderer is: a set of 48-megapixel pictures does not fit in memory."""
    monkeypatch.setattr(evaluation_module, "core_count", lambda: 2)
    lock, waiting, most = threading.Lock(), 0, 0

    def render(frame: RawFrame) -> np.ndarray:
        nonlocal waiting, most
        with lock:
            waiting += 1
            most = max(most, waiting)
        return np.zeros((16, 24, 3), np.uint8)

    def slow(picture: np.ndarray, truth: np.ndarray) -> None:
        nonlocal waiting
        time.sleep(0.02)
        with lock:
            waiting -= 1

    evaluate(render, [Stretched(f"p{i}") for i in range(24)], perceptual=slow)
    assert most <= 2 * 2 + 1
