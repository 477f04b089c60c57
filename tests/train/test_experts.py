"""What each expert's transform sees and is blind to (METHOD.md 3.4), against closed forms and other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from natural_images import blur, checker, gain, natural, sharpen, shift, shuffle_blocks
from skimage.color import rgb2lab
from torch import Tensor
from torch.nn import functional as F

from eguot_sdk.errors import UsageError
from eguot_train.experts import ColourExpert, FrequencyExpert, StructureExpert
from eguot_train.experts.base import Standardise
from eguot_train.experts.colour import chroma_histogram, lab
from eguot_train.experts.frequency import LATTICE, frequency_features
from eguot_train.experts.structure import structure


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return natural(16, 128, 1, torch.float64)


@pytest.fixture(scope="module")
def expert() -> FrequencyExpert:
    expert = FrequencyExpert(16).double()
    for seed in range(6):
        expert.observe(natural(16, 128, 100 + seed, torch.float64), torch.ones(16, dtype=torch.float64))
    return expert


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).flatten(1).norm(dim=1).mean())


def histogram(rgb: Tensor) -> Tensor:
    return chroma_histogram(F.avg_pool2d(rgb, 4))


def thumbnail(rgb: Tensor) -> Tensor:
    return ColourExpert(16).transform(rgb)[1]


class TestColour:
    def test_blind_to_place_and_fine_texture_exactly(self, photos: Tensor) -> None:
        assert distance(histogram(photos), histogram(shuffle_blocks(photos, 4))) < 1e-12
        assert distance(histogram(photos), histogram(checker(photos, 0.02))) < 1e-12
        assert distance(thumbnail(photos), thumbnail(checker(photos, 0.02))) < 1e-10

    def test_sees_casts_and_not_exposure(self, photos: Tensor) -> None:
        between = distance(histogram(photos), histogram(photos.roll(1, 0)))
        assert distance(histogram(photos), histogram(gain(photos, 0, 1.05))) >= 0.4 * between
        assert distance(histogram(photos), histogram(gain(photos, 0, 1.15))) >= between
        assert distance(histogram(photos), histogram(0.9 * photos)) <= 0.02 * between

    def test_thumbnail_sees_place_and_exposure(self, photos: Tensor) -> None:
        between = distance(thumbnail(photos), thumbnail(photos.roll(1, 0)))
        assert distance(thumbnail(photos), thumbnail(shuffle_blocks(photos, 8))) > 0.3 * between
        assert distance(thumbnail(photos), thumbnail(0.9 * photos)) > 0.1 * between

    def test_histogram_against_loops(self) -> None:
        rgb = natural(1, 8, 3, torch.float64)
        got = chroma_histogram(rgb)[0, 1].square()
        want = np.zeros((32, 32))
        centres = np.linspace(-1.5, 1.5, 32)
        for pixel in rgb[0].flatten(1).T.numpy():
            logs = np.log(pixel + 0.02)
            u, v = logs[1] - logs[0], logs[1] - logs[2]
            kernel = np.outer(1 / (1 + ((u - centres) / 0.08) ** 2), 1 / (1 + ((v - centres) / 0.08) ** 2))
            want += np.linalg.norm(pixel) * kernel
        np.testing.assert_allclose(got.numpy(), want / want.sum(), rtol=1e-6)

    def test_lab_against_skimage(self) -> None:
        rgb = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        rgb[..., :2] *= 0.04  # the straight parts of both curves
        want = rgb2lab(rgb[0].permute(1, 2, 0).numpy())
        # The white points differ in the fourth digit.
        np.testing.assert_allclose(lab(rgb)[0].permute(1, 2, 0).numpy(), want, atol=0.02)

    def test_extremes_have_finite_features_and_gradients(self) -> None:
        for value in (-0.3, 0.0, 1.0, 1.7):
            rgb = torch.full((2, 3, 64, 64), value, requires_grad=True)
            expert = ColourExpert(16)
            features = expert.transform(rgb)
            (gradient,) = torch.autograd.grad(expert.judge(features).sum(), rgb)
            assert all(f.isfinite().all() for f in features)
            assert gradient.isfinite().all()


class TestStructure:
    def test_blind_to_colour_and_exposure(self, photos: Tensor) -> None:
        between = distance(structure(photos), structure(photos.roll(1, 0)))
        assert distance(structure(photos), structure(gain(photos, 0, 1.05))) <= 0.02 * between
        assert distance(structure(photos), structure(gain(photos, 0, 1.15))) <= 0.02 * between
        assert distance(structure(photos), structure(0.9 * photos)) <= 0.02 * between

    def test_blind_to_grey_preserving_colour_exactly(self, photos: Tensor) -> None:
        twist = torch.tensor([1.0, 0.0, -0.299 / 0.114], dtype=photos.dtype)[:, None, None]  # no luma
        assert distance(structure(photos), structure(photos + 0.05 * twist)) < 1e-9

    def test_sees_blur_ringing_and_shifts(self, photos: Tensor) -> None:
        between = distance(structure(photos), structure(photos.roll(1, 0)))
        assert distance(structure(photos), structure(blur(photos))) >= 0.3 * between
        assert distance(structure(photos), structure(sharpen(photos, 1.5))) >= 0.15 * between
        assert distance(structure(photos), structure(shift(photos, 1))) >= 0.5 * between

    def test_ramp_has_the_slope_of_its_deviation(self) -> None:
        ramp = (0.2 + 0.004 * torch.arange(64, dtype=torch.float64)).expand(1, 3, 64, 64)
        seen = structure(ramp)[0, :, 20:44, 20:44]
        # 15 evenly spaced values, spacing 0.004: variance 0.004^2 (15^2 - 1) / 12.
        deviation = math.sqrt(0.004**2 * 224 / 12 + 1e-4)
        torch.testing.assert_close(seen[1], torch.full_like(seen[1], 2 * 0.004 / deviation))
        assert seen[0].abs().max() < 1e-9
        assert seen[2].abs().max() < 1e-9
        # All gradients point one way; only the floor keeps coherence below 1.
        slope = (0.004 / deviation) ** 2
        torch.testing.assert_close(
            seen[3], torch.full_like(seen[3], 2 * slope / (slope + 1e-2) - 1), rtol=1e-5, atol=1e-5
        )

    def test_two_heads_with_a_reference_one_without(self, photos: Tensor) -> None:
        expert = StructureExpert(4)
        rgb = photos[:2].float()
        with torch.no_grad():
            assert expert.judge(expert.transform(rgb)).shape == (2, 1)
            both = expert.judge(expert.transform(rgb, rgb.flip(0)))
            torch.testing.assert_close(both[:, :1], expert.judge(expert.transform(rgb)))
            assert both.shape == (2, 2)
            assert not torch.allclose(both[:, 1], expert.judge(expert.transform(rgb, rgb))[:, 1])


class TestFrequency:
    def deviations(self, expert: FrequencyExpert, rgb: Tensor) -> float:
        """Largest mean deviation of a vector's element from that of photos, in their standard deviations."""
        vector = expert.vector_scale(frequency_features(rgb)[1])
        return float(vector.mean(0).abs().max())

    def test_sees_combs_blur_sharpening_and_noise(self, expert: FrequencyExpert, photos: Tensor) -> None:
        generator = torch.Generator().manual_seed(2)
        noise = torch.randn(photos.shape, generator=generator, dtype=photos.dtype)
        assert self.deviations(expert, photos) < 1.5
        assert self.deviations(expert, checker(photos, 0.02)) >= 50
        assert self.deviations(expert, blur(photos)) >= 8
        assert self.deviations(expert, sharpen(photos, 1.5)) >= 5
        assert self.deviations(expert, photos + 0.02 * noise) >= 5

    def test_blind_to_exposure_casts_and_whole_shifts(self, expert: FrequencyExpert, photos: Tensor) -> None:
        for changed in (0.9 * photos, gain(photos, 0, 1.15), shift(photos, 64)):
            assert self.deviations(expert, changed) - self.deviations(expert, photos) < 0.3

    def test_lattice_points_are_where_combs_fall(self) -> None:
        rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        waves = [(rows + columns) % 2, rows % 2, columns % 2, (rows + columns) % 4 // 2]
        flat = frequency_features(torch.full((1, 3, 64, 64), 0.5, dtype=torch.float64))[0][0, 0, 0]
        for (row, column), wave in zip(LATTICE, waves, strict=True):
            rgb = (0.5 + 0.1 * wave.double()).expand(1, 3, 64, 64)
            gained = frequency_features(rgb)[0][0, 0, 0] - flat
            peak = gained.flatten().argmax()
            assert (int(peak) // 33, int(peak) % 33) in {(row, column), ((64 - row) % 64, column)}

    def test_phase_locked_means_of_a_comb(self) -> None:
        board = checker(torch.full((1, 3, 64, 64), 0.5, dtype=torch.float64), 0.02)
        phase = frequency_features(board)[1][0, 0, 37:]
        # HH at level 1 is 2 * 0.02 everywhere: its deviation is the floor alone.
        assert float(phase[2]) == pytest.approx(0.04 / 2e-3)
        assert float(phase[:2].max()) < 1e-9
        assert float(phase[3:].max()) < 1e-9

    def test_small_pictures_are_refused(self) -> None:
        with pytest.raises(UsageError, match="at least 64 px"):
            FrequencyExpert(16).transform(torch.zeros(1, 3, 48, 48))


def test_running_statistics_are_weighted_means() -> None:
    generator = torch.Generator().manual_seed(0)
    scale = Standardise((5,), 0.0).double()
    batches = [torch.randn(8, 5, generator=generator, dtype=torch.float64) * 3 + 1 for _ in range(4)]
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    for batch in batches:
        scale.update(batch, weights)
    scale.update(batches[0], torch.zeros(8, dtype=torch.float64))  # all discounted: nothing is known of such a batch
    kept = torch.cat(batches).numpy()
    mean = np.average(kept, 0, np.tile(weights.numpy(), 4))
    np.testing.assert_allclose(scale.mean.numpy(), mean, rtol=1e-12)
    variance = np.average((kept - mean) ** 2, 0, np.tile(weights.numpy(), 4))
    np.testing.assert_allclose(scale.variance.numpy(), variance, rtol=1e-9)


@pytest.mark.parametrize(
    ("expert", "parameters"),
    [(ColourExpert(), 95_297 + 56_577), (StructureExpert(), 668_097 + 664_001), (FrequencyExpert(), 58_305 + 7_233)],
)
def test_parameter_counts_at_full_width(expert: torch.nn.Module, parameters: int) -> None:
    """METHOD.md 3.1-3.3: 95K + 57K, 0.67M with 8 channels and 4 x 64 x 16 fewer with 4, about 66K."""
    assert sum(p.numel() for p in expert.parameters()) == parameters


def test_spectra_are_standardised_by_what_was_seen() -> None:
    """Reals come out around zero with a spread of about one, every frequency of every window."""
    expert, rgb = FrequencyExpert(8), natural(8, 128, 7)
    weights = torch.tensor([2.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 2.0])
    expert.observe(rgb, weights)
    spectra = frequency_features(rgb)[0]  # of four windows each
    assert spectra.shape[1] == 4
    assert expert.spectrum_scale is not None
    share = weights[:, None, None, None] / 8
    torch.testing.assert_close(expert.spectrum_scale.mean, (share * spectra.mean(1)).sum(0), rtol=1e-4, atol=1e-4)
    seen = expert.transform(rgb)[1][weights > 0]
    assert seen.mean().abs() < 0.2
    assert 0.7 < float(seen.std()) < 1.3
