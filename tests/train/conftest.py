"""What the tests of the training package share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from eguot_sdk.pairs import write_pair
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera, dng_bytes

# `toy_transport` is a module beside the tests, not a test itself.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders `raw`, `srgb` and `pairs` of small scenes; photos and raws show different ones. Read only."""
    root = tmp_path_factory.mktemp("folders")
    camera = SynthCamera.from_seed(3)
    for folder in ("raw", "srgb"):
        (root / folder).mkdir()
    for i in range(3):
        scene, name = make_scene(i, 72, 88), f"scene{i}"
        frame = camera.shoot(scene, name)
        (root / "raw" / f"{name}.dng").write_bytes(dng_bytes(frame))
        write_pair(root / "pairs", name, frame, scene)
        Image.fromarray(make_scene(10 + i, 80, 64)).save(root / "srgb" / f"photo{i}.png")
    return {role: str(root / role) for role in ("raw", "srgb", "pairs")}
