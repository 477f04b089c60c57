"""Pairs of two cameras: a shifted truth comes back into place, and what does not match teaches nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eguot_sdk.pairs import list_pairs, write_pair
from eguot_train.config import TrainConfig
from eguot_train.data import batches
from eguot_train.data.batches import Batch, Batches, load_sources
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera, dng_bytes
from eguot_train.reference import Alignment
from eguot_train.trainer import matched, train

SIZE = 160


def shifted_pairs(out: Path) -> None:
    """Truths two pixels down and one to the left of where they belong, with a patch of another scene."""
    camera = SynthCamera.from_seed(3)
    for i in range(2):
        scene = make_scene(i, SIZE + 8, SIZE + 8)
        truth = scene[2 : 2 + SIZE, 5 : 5 + SIZE].copy()
        truth[:64, :64] = make_scene(40 + i, 64, 64)
        write_pair(out, f"p{i}", camera.shoot(np.ascontiguousarray(scene[4 : 4 + SIZE, 4 : 4 + SIZE]), f"p{i}"), truth)


def test_a_shifted_truth_is_moved_and_foreign_content_masked(tmp_path: Path) -> None:
    shifted_pairs(tmp_path / "pairs")
    config = TrainConfig(mode="paired", pairs=str(tmp_path / "pairs"), crop=32, batch=16, register_pairs=True)
    batch = Batches(config, load_sources(config), Alignment()).at(0)
    assert batch.pair_truth is not None
    assert batch.pair_mask is not None
    assert batch.pair_truth.shape == (16, 3, 64, 64)
    assert batch.pair_mask.shape == (16, 1, 64, 64)
    assert set(batch.pair_mask.unique().tolist()) == {0.0, 1.0}
    right = {f"p{i}": make_scene(i, SIZE + 8, SIZE + 8)[4 : 4 + SIZE, 4 : 4 + SIZE] for i in range(2)}
    plain = Batches(
        TrainConfig(mode="paired", pairs=config.pairs, crop=32, batch=16), load_sources(config), Alignment()
    )
    before = plain.at(0).pair_truth
    assert before is not None
    # The same crops of the true pictures: as pairs of their own in the same order.
    for pair in list_pairs(tmp_path / "pairs"):
        write_pair(tmp_path / "right", pair.name, pair.frame(), right[pair.name])
    truth = Batches(
        TrainConfig(mode="paired", pairs=str(tmp_path / "right"), crop=32, batch=16),
        load_sources(TrainConfig(mode="paired", pairs=str(tmp_path / "right"))), Alignment(),
    ).at(0).pair_truth  # fmt: skip
    assert truth is not None
    mask = batch.pair_mask > 0.5
    errors = ((batch.pair_truth - truth).abs() * mask).sum() / (3 * mask.sum())
    unmoved = ((before - truth).abs() * mask).sum() / (3 * mask.sum())
    assert errors < 0.35 * unmoved
    assert 0.3 < float(mask.float().mean()) < 0.97


def test_pairs_are_registered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds a pair, and the costs are calibrated without."""
    shifted_pairs(tmp_path / "pairs")
    seen = []

    def counted(reference: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(truth)
        return truth, np.ones(truth.shape[:2], bool)

    monkeypatch.setattr(batches, "register", counted)
    Image.fromarray(make_scene(9, SIZE, SIZE)).save(tmp_path / "photo.png")
    folders = {role: str(tmp_path / role) for role in ("raw", "srgb", "pairs")}
    for role in ("raw", "srgb"):
        (tmp_path / role).mkdir()
    (tmp_path / "photo.png").rename(tmp_path / "srgb" / "photo.png")
    frame = SynthCamera.from_seed(3).shoot(make_scene(8, SIZE, SIZE), "x")
    (tmp_path / "raw" / "x.dng").write_bytes(dng_bytes(frame))
    config = TrainConfig(mode="mixed", **folders, crop=32, batch=2, steps=1, register_pairs=True)
    train(config, tmp_path / "run", echo=lambda line: None)
    assert len(seen) == 2


def test_masked_places_teach_nothing(tmp_path: Path) -> None:
    """The same loss and the same gradient whatever stands where the truth does not match."""
    generator = torch.manual_seed(0)
    truth, other = torch.rand(2, 2, 3, 32, 32, generator=generator)
    mask = torch.ones(2, 1, 32, 32)
    mask[:, :, :16, :10] = 0
    found = []
    for foreign in (truth, torch.where(mask > 0, truth, other)):
        rendered = torch.rand(2, 3, 32, 32, generator=torch.manual_seed(1)).requires_grad_(True)
        seen = matched(rendered, Batch(pair_truth=foreign, pair_mask=mask))
        loss = (seen - foreign).square().sum()
        (gradient,) = torch.autograd.grad(loss, rendered)
        assert gradient[:, :, :16, :10].abs().max() == 0
        found.append((loss, gradient))
    torch.testing.assert_close(found[0], found[1])
    assert found[0][1].abs().max() > 0
