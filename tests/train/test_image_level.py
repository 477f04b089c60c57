"""Unpaired training on pictures from a known camera (METHOD.md T8 a). What it reached is in train/LOG.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eguot_sdk.metrics import delta_e_2000, psnr
from eguot_sdk.pairs import list_pairs, write_pair
from eguot_sdk.raw import RawFrame
from eguot_train.checkpoint import load_run
from eguot_train.config import TrainConfig
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera, dng_bytes
from eguot_train.fits import alignment_from_state
from eguot_train.reference import Alignment, Reference
from eguot_train.render import frame_planes, render_frame, to_uint8
from eguot_train.trainer import train

SIZE = (192, 256)
SCENES = 24


def make_data(root: Path) -> None:
    """Raws of some scenes, exact pictures of others, and pairs of a third kind to test on; one camera."""
    camera = SynthCamera.from_seed(5)
    for folder in ("raw", "srgb"):
        (root / folder).mkdir(parents=True)
    for i in range(SCENES):
        frame = camera.shoot(make_scene(i, *SIZE), f"r{i}")
        (root / "raw" / f"{i:02d}.dng").write_bytes(dng_bytes(frame))
        Image.fromarray(make_scene(1000 + i, *SIZE)).save(root / "srgb" / f"{i:02d}.png")
    for i in range(8):
        scene = make_scene(2000 + i, *SIZE)
        write_pair(root / "test", f"t{i}", camera.shoot(scene, f"t{i}"), scene)


def scores(render: Callable[[RawFrame], np.ndarray], pairs: Path) -> tuple[float, float]:
    """Mean PSNR in dB and CIEDE2000."""
    rendered = [(render(pair.frame()), pair.truth()) for pair in list_pairs(pairs)]
    return float(np.mean([psnr(a, b) for a, b in rendered])), float(np.mean([delta_e_2000(a, b) for a, b in rendered]))


def reference_renderer(alignment: Alignment) -> Callable[[RawFrame], np.ndarray]:
    def render(frame: RawFrame) -> np.ndarray:
        planes, (y, x) = frame_planes(frame, "srgb", 0, 2)
        return to_uint8(Reference(alignment)(planes)[0][:, y : y + frame.height, x : x + frame.width])

    return render


@pytest.mark.slow
def test_unpaired_training_beats_the_reference_rendering(tmp_path: Path) -> None:
    """Two decibels over R(x); better than R(x) with its alignment, which the run itself fitted, in both metrics."""
    make_data(tmp_path)
    config = TrainConfig(
        mode="unpaired", raw=str(tmp_path / "raw"), srgb=str(tmp_path / "srgb"), steps=400, batch=4, crop=32
    )
    loaded = load_run(train(config, tmp_path / "run", echo=lambda line: None))
    alignment = alignment_from_state(loaded.state["fixed"])
    net_db, net_error = scores(lambda frame: render_frame(loaded.net, frame, "srgb"), tmp_path / "test")
    plain_db, plain_error = scores(reference_renderer(Alignment()), tmp_path / "test")
    aligned_db, aligned_error = scores(reference_renderer(alignment), tmp_path / "test")
    assert net_db >= plain_db + 2
    assert aligned_db > plain_db
    assert aligned_error < plain_error
    assert net_db > aligned_db + 1
    assert net_error < aligned_error
