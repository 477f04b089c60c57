"""Weights that make two folders show the same: numbers that no look changes, and the tilt that balances them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eguot_sdk.raw import RawFrame
from eguot_train.alignment import camera_alignment, fit_alignment
from eguot_train.content import RIDGE, content_weights, describe, tilt
from eguot_train.data.scenes import make_scene

Array = np.ndarray


def looked_at(rgb: Array, values: list[float]) -> Array:
    """A picture [H, W, 3] after the look of an alignment: lift, contrast, log gain, log saturation, hue."""
    planes = torch.from_numpy(rgb).permute(2, 0, 1)[None].float()
    return camera_alignment(np.array(values)).apply(planes)[0].permute(1, 2, 0).double().numpy()


@pytest.mark.parametrize("seed", range(4))
def test_no_tone_and_no_saturation_changes_what_is_described(seed: int) -> None:
    scene = 0.2 + 0.5 * make_scene(seed, 48, 64).astype(np.float64) / 255  # far from the ends, where looks clip
    before = describe(scene)
    assert describe(looked_at(scene, [0.4, 0.5, 0.05, 0.2, 0.0])) == pytest.approx(before, abs=1e-3)
    assert describe(looked_at(scene, [-0.2, 0.0, -0.1, -0.3, 0.0])) == pytest.approx(before, abs=1e-3)
    assert np.abs(describe(make_scene(seed + 50, 48, 64) / 255.0) - before).max() > 0.05


def test_a_picture_lies_as_it_lies() -> None:
    scene = make_scene(3, 64, 64) / 255.0
    for turns in (1, 2, 3):
        assert describe(np.rot90(scene, turns)) == pytest.approx(describe(scene), abs=1e-9)


def test_flat_pictures_have_numbers() -> None:
    for grey in (0.0, 0.5, 1.0):
        assert np.isfinite(describe(np.full((64, 64, 3), grey))).all()


def test_the_tilt_is_the_minimum() -> None:
    numbers = np.random.default_rng(0).normal(0.4, 1.0, (30, 5))
    x, t = torch.from_numpy(numbers), torch.zeros(5, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([t], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = torch.logsumexp(x @ t, 0) + RIDGE / 2 * t.square().sum()
        value.backward()
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    expected = torch.softmax(x @ t.detach(), 0).numpy() * 30
    weights = tilt(numbers)
    assert weights == pytest.approx(expected, rel=1e-4)
    assert np.abs((weights / 30) @ numbers).max() < np.abs(numbers.mean(0)).max()
    assert tilt(numbers - numbers.mean(0)) == pytest.approx(np.ones(30))


def picture(bright: bool, rng: np.random.Generator) -> Array:
    """A grey ground with a darker middle, or a dark one with colourful spots in its middle; uint8 [64, 96, 3]."""
    ground = rng.uniform(0.65, 0.85) if bright else rng.uniform(0.1, 0.25)
    rgb = np.full((64, 96, 3), ground) + rng.normal(0, 0.03, (64, 96, 1))
    colour = rng.uniform(-0.1, 0.1, 3) + (0.35 if bright else 0.5)
    rgb[16:48, 24:72] = colour + rng.normal(0, 0.03, (32, 48, 1))
    return (rgb.clip(0, 1) * 255).astype(np.uint8)


def frame_of(rgb: Array) -> RawFrame:
    """A raw whose R(x) is the picture, near enough."""
    linear = (rgb / 255.0) ** 2.2
    mosaic = np.empty(rgb.shape[:2])
    for (y, x), channel in zip(((0, 0), (0, 1), (1, 0), (1, 1)), (0, 1, 1, 2), strict=True):
        mosaic[y::2, x::2] = linear[y::2, x::2, channel]
    counts = (mosaic * 4095).round().astype(np.uint16)
    return RawFrame.from_array(counts, cfa="RGGB", black=0, white=4095, white_balance=(1, 1, 1), matrix=np.eye(3))


def test_folders_that_show_other_things_are_balanced() -> None:
    """Mostly bright pictures against mostly dark ones: the look is the same, and weights say that it is."""
    rng = np.random.default_rng(0)
    raws = [frame_of(picture(i < 12, rng)) for i in range(16)]
    photos = [picture(i < 4, rng) for i in range(16)]
    first, second = content_weights(raws, photos, "srgb")
    assert np.mean(first) == pytest.approx(1)
    assert np.mean(second) == pytest.approx(1)
    assert np.mean(first[:12]) < 0.85
    assert np.mean(first[12:]) > 1.4
    assert np.mean(second[:4]) > 1.4
    assert np.mean(second[4:]) < 0.85

    source = [torch.from_numpy(picture(i < 12, rng).reshape(-1, 3)[::31] / 255.0).float() for i in range(16)]
    target = [torch.from_numpy(photo.reshape(-1, 3)[::31] / 255.0).float() for photo in photos]
    ramp = torch.linspace(0.1, 0.9, 9)[None, None, None].expand(1, 3, 1, 9)

    def off(**weights: list[float]) -> float:
        return float((fit_alignment(source, target, **weights).apply(ramp) - ramp).abs().mean())

    assert off(source_weights=first, target_weights=second) < 0.9 * off()


def test_few_pictures_and_equal_folders_keep_their_weights() -> None:
    pictures = [make_scene(i, 128, 192) for i in range(10)]
    frames = [frame_of(p) for p in pictures]
    assert content_weights(frames[:7], pictures, "srgb") == ([1.0] * 7, [1.0] * 10)
    first, second = content_weights(frames, pictures, "srgb")
    assert first == pytest.approx([1.0] * 10, abs=0.2)
    assert second == pytest.approx([1.0] * 10, abs=0.2)
