"""The transport cost: scaling (METHOD.md T9), blindness of its terms, calibration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from eguot_train.cost import Cost, cost_terms, low_pass, luma, normalised_luma, texture_energy
from eguot_train.data.scenes import make_scene

PIXELS, COARSE, DC, STRUCTURE, TEXTURE = range(5)


def scenes(first: int, count: int, side: int = 96) -> Tensor:
    stacked = np.stack([make_scene(first + i, side, side) for i in range(count)])
    return torch.from_numpy(stacked.astype(np.float32) / 255).permute(0, 3, 1, 2)


def test_a_picture_costs_nothing_against_itself() -> None:
    a = scenes(0, 2)
    assert cost_terms(a, a).abs().max() == 0
    assert Cost()(a, a).abs().max() == 0


def test_terms_against_closed_forms() -> None:
    a = scenes(0, 2)
    terms = cost_terms(a, a + 0.1)
    np.testing.assert_allclose(terms[:, PIXELS], 0.01, rtol=1e-4)
    np.testing.assert_allclose(terms[:, DC], 0.01, rtol=1e-4)
    np.testing.assert_allclose(terms[:, COARSE], 0, atol=1e-9)
    noise = torch.randn(a.shape, generator=torch.manual_seed(0)) * 0.1
    terms = cost_terms(a, a + noise)
    difference = noise.double()
    mean = difference.mean((2, 3), keepdim=True)
    np.testing.assert_allclose(terms[:, PIXELS], difference.square().mean((1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(terms[:, DC], mean.square().mean((1, 2, 3)), rtol=1e-3)
    np.testing.assert_allclose(
        terms[:, COARSE], (low_pass(difference) - mean).square().mean((1, 2, 3)), rtol=1e-3, atol=1e-9
    )


def test_structure_is_blind_to_colour_and_tone_but_not_to_place() -> None:
    a = scenes(0, 4)
    y = luma(a)
    # Colours turned about the grey axis, luma kept.
    turned = y + 0.5 * torch.stack([a[:, 2] - y[:, 0], a[:, 1] - y[:, 0], a[:, 0] - y[:, 0]], 1)
    turned = turned - luma(turned) + y
    toned = 0.8 * a + 0.1
    other = scenes(10, 4)
    unrelated = cost_terms(a, other)[:, STRUCTURE]
    assert (cost_terms(a, turned)[:, STRUCTURE] < 1e-6).all()
    assert (cost_terms(a, toned)[:, STRUCTURE] < 0.05 * unrelated).all()
    shifted = torch.roll(a, 8, 3)
    assert (cost_terms(a, shifted)[:, STRUCTURE] > 0.2 * unrelated).all()


def test_normalised_luma_against_a_window_moved_by_hand() -> None:
    a = scenes(3, 1, 48).double()
    y = torch.nn.functional.avg_pool2d(luma(a), 2)[0, 0].numpy()
    found = normalised_luma(a, 2)[0, 0].numpy()
    for row in (0, 5, 12, 23):
        for column in (0, 9, 23):
            inside = y[max(0, row - 7) : row + 8, max(0, column - 7) : column + 8]
            expected = (y[row, column] - inside.mean()) / (np.sqrt(max(inside.var(), 1e-8)) + 0.02)
            assert found[row, column] == pytest.approx(expected, abs=1e-6)


def test_crop_size_does_not_change_the_cost() -> None:
    """T9: the median over unrelated content stays within 5% when the side of the crops doubles."""
    generator = np.random.default_rng(0)

    def texture(side: int, count: int) -> Tensor:
        """Stationary pictures: blurred noise, which looks alike at any crop."""
        noise = torch.from_numpy(generator.standard_normal((count, 3, side + 20, side + 20)))
        smooth = low_pass(noise)[:, :, 10:-10, 10:-10]
        return (0.5 + 1.2 * smooth + 0.1 * noise[:, :, 10:-10, 10:-10]).clamp(0, 1)

    medians = []
    for side, count in ((128, 80), (256, 24)):
        terms = cost_terms(texture(side, count), texture(side, count))
        medians.append(terms[:, [PIXELS, COARSE, STRUCTURE]].median(0).values.numpy())
    np.testing.assert_allclose(medians[1], medians[0], rtol=0.05)  # DC of such a texture falls with its area


def test_range_and_strength_trade_off() -> None:
    """T9: half the range with four times the strength costs the same, where no term normalises."""
    a, b = scenes(0, 3).double(), scenes(5, 3).double()
    cost = Cost(1.0, (0.5, 0.3, 0.2, 0.0, 0.0), (0.1, 0.2, 0.3, 1.0, 1.0))
    four = Cost(4.0, cost.weights, cost.scales)
    torch.testing.assert_close(four(a / 2, b / 2), cost(a, b), rtol=1e-6, atol=0)


def test_calibrated_costs_are_strength_for_unrelated_content() -> None:
    references, others = scenes(0, 24), scenes(100, 24)
    cost = Cost(strength=4.0).calibrate(references, others)
    medians = (cost_terms(references, others) / torch.tensor(cost.scales)).median(0).values
    np.testing.assert_allclose(medians, 1, rtol=1e-5)
    assert (cost.strength, cost.weights) == (4.0, Cost().weights)
    assert 2.5 < float(cost(references, others).median()) < 6
    # Identical folders must not divide by nothing.
    assert np.isfinite(Cost().calibrate(references, references).scales).all()
    assert min(Cost().calibrate(references, references).scales) > 0


def test_gradient_is_right() -> None:
    a, b = scenes(0, 1, 48).double(), scenes(1, 1, 48).double().requires_grad_(True)
    cost = Cost(2.0, (0.1, 0.3, 0.2, 0.4, 0.2))
    (gradient,) = torch.autograd.grad(cost(a, b).sum(), b)
    direction = torch.randn(b.shape, dtype=b.dtype, generator=torch.manual_seed(0))
    with torch.no_grad():
        h = 1e-5
        slope = (cost(a, b + h * direction) - cost(a, b - h * direction)) / (2 * h)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-5)


def test_texture_is_blind_to_place_within_a_patch_but_not_to_amount_or_direction() -> None:
    rows = torch.zeros(1, 3, 64, 64)
    rows[..., (torch.arange(64) // 4) % 2 == 0, :] = 0.2  # stripes of four rows
    moved, columns = torch.roll(rows, 8, 2), rows.transpose(2, 3)
    assert cost_terms(rows, moved)[0, TEXTURE] < 1e-6
    assert cost_terms(rows, columns)[0, TEXTURE] > 1
    assert 0.03 < cost_terms(rows, rows / 2)[0, TEXTURE] < cost_terms(rows, 0 * rows)[0, TEXTURE]
    assert cost_terms(rows, rows + 0.3)[0, TEXTURE] < 1e-6
    assert cost_terms(rows, columns, texture=False)[0, TEXTURE] == 0
    assert Cost(1.0, (0, 0, 0, 0, 1.0))(rows, columns) > 1


def test_texture_energy_against_a_haar_transform_by_hand() -> None:
    a = scenes(5, 1, 32).double()
    y = luma(a)[0, 0].numpy()
    half = (y[::2, ::2] + y[1::2, ::2] + y[::2, 1::2] + y[1::2, 1::2]) / 4
    expected = np.zeros((3, 2, 2))
    for row in range(2):
        for column in range(2):
            for i in range(4 * row, 4 * row + 4):
                for j in range(4 * column, 4 * column + 4):
                    p, q, r, s = half[2 * i, 2 * j : 2 * j + 2].tolist() + half[2 * i + 1, 2 * j : 2 * j + 2].tolist()
                    for k, detail in enumerate((p + q - r - s, p - q + r - s, p - q - r + s)):
                        expected[k, row, column] += np.sqrt((detail / 2) ** 2 + 1e-6) / 16
    np.testing.assert_allclose(texture_energy(a, 2)[0], np.log(expected + 0.01), rtol=1e-9)
