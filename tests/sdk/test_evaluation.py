"""Evaluation: means, CSV, order, and what the renderer is given."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from eguot_sdk.errors import EguotError, OutputError, RawError, UsageError
from eguot_sdk.evaluation import MAX_DB, Protocol, evaluate, score_image
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
