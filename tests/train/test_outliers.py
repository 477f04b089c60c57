"""Outlier weights by photo: means, resumption, the list and the picture."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eguot_train.outliers import MEMORY, PhotoWeights


def test_weights_are_means_of_what_was_seen() -> None:
    kept = PhotoWeights(["a", "b", "c"])
    kept.update([0, 1, 0, -1], torch.tensor([0.5, 1.2, 0.7, 9.0]))
    assert kept.means == pytest.approx([0.6, 1.2, 1.0])
    for _ in range(20 * MEMORY):
        kept.update([1], torch.tensor([0.1]))
    assert kept.means[1] == pytest.approx(0.1, abs=1e-6)


def test_state_goes_on_where_it_was() -> None:
    seen = torch.from_numpy(np.random.default_rng(0).random(40).astype(np.float32))
    whole, first, second = (PhotoWeights(["a", "b"]) for _ in range(3))
    for step, weight in enumerate(seen):
        whole.update([step % 2], weight[None])
        (first if step < 17 else second).update([step % 2], weight[None])
        if step == 16:
            second.restore(first.state())
    assert (second.means, second.counts) == (whole.means, whole.counts)


def test_the_list_starts_with_the_most_discounted(tmp_path: Path) -> None:
    kept = PhotoWeights([f"{i}.jpg" for i in range(20)])
    kept.update(list(range(20)), torch.linspace(0.2, 1.4, 20).flip(0))
    photos = [np.full((60 + i, 90, 3), 10 * i, np.uint8) for i in range(20)]
    kept.save(tmp_path, photos)
    with open(tmp_path / "outliers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["photo"] for row in rows] == [f"{i}.jpg" for i in reversed(range(20))]
    weights = [float(row["weight"]) for row in rows]
    assert weights == sorted(weights)
    assert all(row["typical"] == "1.0000" for row in rows)
    with Image.open(tmp_path / "outliers.jpg") as sheet:
        pixels = np.asarray(sheet.convert("L")).astype(int)
    # The most discounted photo is the brightest one, and comes first.
    assert abs(pixels[40, 40] - 190) < 4
    assert abs(pixels[pixels.shape[0] // 2 + 30, 40] - 0) < 4


def test_what_the_whole_photo_says_counts_as_well(tmp_path: Path) -> None:
    kept = PhotoWeights(["odd.png", "plain.png"], [0.25, 1.0])
    kept.update([0, 1], torch.tensor([1.2, 0.8]))
    assert kept.weights == pytest.approx([0.3, 0.8])
    kept.save(tmp_path, [np.zeros((60, 90, 3), np.uint8)] * 2)
    with open(tmp_path / "outliers.csv", newline="") as file:
        assert [row["photo"] for row in csv.DictReader(file)] == ["odd.png", "plain.png"]
