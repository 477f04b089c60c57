"""The reference rendering R(x) and its alignment: POT, closed forms, planted answers, flat fields and edges (T10)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from eguot_sdk.errors import UsageError
from eguot_sdk.ingest import Ingest
from eguot_sdk.raw import RawFrame
from eguot_sdk.spec import ColorInput
from eguot_train.alignment import (
    PRIOR,
    PRIOR_SPREAD,
    camera_alignment,
    fit_alignment,
    fit_plain_alignment,
    unbalanced_marginals,
)
from eguot_train.cost import LUMA
from eguot_train.data.crops import float_spec
from eguot_train.data.scenes import make_scene
from eguot_train.reference import KNOTS, Alignment, Reference

PHASES = ("RGGB", "GRBG", "GBRG", "BGGR")
CURVE = tuple(float(x) for x in np.linspace(0, 1, KNOTS) * (1.35 - 0.35 * np.linspace(0, 1, KNOTS)))
KNOWN = Alignment(CURVE, ((1.25, 0.08), (0.08, 1.1)))


@cache
def pool() -> Tensor:
    """8x8 means of scenes in random order, [4320, 3]: colours as they are in pictures."""
    scenes = np.stack([make_scene(i, 96, 96) for i in range(30)])
    means = scenes.reshape(30, 12, 8, 12, 8, 3).mean((2, 4)).reshape(-1, 3) / 255
    return torch.from_numpy(np.random.default_rng(0).permutation(means).astype(np.float32))


def colours(count: int, part: int) -> Tensor:
    """`count` colours [count, 3], others for each part: the same statistics, no colour in common."""
    return pool()[part * count : (part + 1) * count]


def mapped(alignment: Alignment, samples: Tensor) -> Tensor:
    return alignment.apply(samples.T[None, :, :, None])[0, :, :, 0].T


def luma_of(rgb: Tensor) -> Tensor:
    return (rgb * torch.tensor(LUMA, dtype=rgb.dtype)[None, :, None, None]).sum(1)


@pytest.mark.parametrize(("relaxation", "entropy"), [(0.1, 0.02), (1.0, 0.05), (0.03, 0.01)])
def test_marginals_are_those_of_pot(relaxation: float, entropy: float) -> None:
    ot = pytest.importorskip("ot")
    rng = np.random.default_rng(0)
    cost = rng.random((30, 40))
    a, b = rng.random(30) + 0.1, rng.random(40) + 0.1
    a, b = a / a.sum(), b / b.sum()
    plan = ot.unbalanced.sinkhorn_unbalanced(
        a, b, cost, entropy, relaxation, reg_type="kl", numItermax=20_000, stopThr=1e-14
    )
    rows, columns, _ = unbalanced_marginals(
        torch.from_numpy(cost), torch.from_numpy(a), torch.from_numpy(b), relaxation=relaxation, entropy=entropy,
        steps=2000,
    )  # fmt: skip
    np.testing.assert_allclose(rows, plan.sum(1), atol=1e-8)
    np.testing.assert_allclose(columns, plan.sum(0), atol=1e-8)


def test_potentials_warm_start_the_next_call() -> None:
    rng = np.random.default_rng(1)
    cost, a = torch.from_numpy(rng.random((20, 20))), torch.full((20,), 0.05, dtype=torch.float64)
    done = unbalanced_marginals(cost, a, a, steps=3000)
    again = unbalanced_marginals(cost, a, a, done[2], steps=1)
    torch.testing.assert_close(again[0], done[0], rtol=1e-8, atol=1e-12)
    cold = unbalanced_marginals(cost, a, a, steps=1)
    assert (cold[0] - done[0]).abs().max() > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_invert_undoes_apply(dtype: torch.dtype) -> None:
    """Inside the range and a little beyond it."""
    rgb = torch.rand(2, 3, 20, 20, dtype=dtype, generator=torch.manual_seed(0)) * 1.2 - 0.1
    atol = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(KNOWN.invert(KNOWN.apply(rgb)), rgb, rtol=0, atol=atol)
    torch.testing.assert_close(KNOWN.apply(KNOWN.invert(rgb)), rgb, rtol=0, atol=atol)
    torch.testing.assert_close(Alignment().apply(rgb), rgb, rtol=0, atol=atol)


def test_greys_stay_grey_and_rise() -> None:
    grey = torch.linspace(-0.1, 1.1, 500, dtype=torch.float64)
    out = KNOWN.apply(grey[None, None, :, None].expand(1, 3, -1, 1))[0, :, :, 0]
    assert (out - out[0]).abs().max() < 1e-12
    assert (out[0].diff() > 0).all()
    inside = (grey >= 0) & (grey <= 1)
    np.testing.assert_allclose(out[0][inside], grey[inside] * (1.35 - 0.35 * grey[inside]), atol=1e-4)


def test_luma_follows_the_curve_and_chroma_the_matrix() -> None:
    rgb = torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=torch.manual_seed(0))
    out = KNOWN.apply(rgb)
    y, toned = luma_of(rgb), luma_of(out)
    np.testing.assert_allclose(toned, y * (1.35 - 0.35 * y), atol=1e-4)
    chroma = torch.stack([rgb[:, 0] - y, rgb[:, 2] - y])
    expected = torch.einsum("ij,j...->i...", torch.tensor(KNOWN.chroma, dtype=rgb.dtype), chroma)
    torch.testing.assert_close(torch.stack([out[:, 0] - toned, out[:, 2] - toned]), expected)


def pictures_of(samples: Tensor, size: int = 15) -> list[Tensor]:
    return list(samples.split(size))


def rms(alignment: Alignment, truth: Alignment = KNOWN) -> float:
    probe = colours(1000, 3)
    return float((mapped(alignment, probe) - mapped(truth, probe)).square().mean().sqrt())


LOOK = camera_alignment(PRIOR + np.array([1.0, -1.0, 0.5, -1.0, 1.0]) * PRIOR_SPREAD)


@pytest.mark.parametrize(("fit", "planted"), [(fit_plain_alignment, KNOWN), (fit_alignment, LOOK)])
def test_a_planted_alignment_is_found(
    fit: Callable[[Sequence[Tensor], Sequence[Tensor]], Alignment], planted: Alignment
) -> None:
    """Different colours of the same statistics on both sides: no pairs, and the map comes back."""
    found = fit(pictures_of(colours(1400, 0)), pictures_of(mapped(planted, colours(1400, 1))))
    assert rms(found, planted) < 0.02
    assert rms(found, planted) < 0.25 * rms(Alignment(), planted)


def test_the_prior_helps_where_pictures_differ_in_content() -> None:
    """Six pictures a side, each of its own brightness and colour; a look near the prior but not at it."""
    look = camera_alignment(PRIOR + 0.7 * PRIOR_SPREAD)
    plain, probable = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        sides = []
        for part in (0, 1):
            tints = torch.from_numpy(
                np.exp(rng.normal(0, [0.35, 0.35, 0.35], (6, 3)) * 0.6 + rng.normal(0, 0.3, (6, 1)))
            )
            shades = colours(300, part).reshape(6, 50, 3) * tints[:, None].float()
            sides.append(list(shades.clamp(0, 1)))
        target = [mapped(look, x).clamp(0, 1) for x in sides[1]]
        plain.append(rms(fit_plain_alignment(sides[0], target), look))
        probable.append(rms(fit_alignment(sides[0], target), look))
    assert np.mean(probable) < 0.6 * np.mean(plain)
    assert max(probable) < max(plain)


def test_many_pictures_overrule_the_prior() -> None:
    """A look three spreads away in saturation and contrast is found from the same 90 scenes on both sides."""
    look = camera_alignment(PRIOR + np.array([0, -3, 0, -3, 0]) * PRIOR_SPREAD)
    shared = pictures_of(colours(1440, 0), 16)
    found = fit_alignment(shared, [mapped(look, x) for x in shared])
    assert rms(found, look) < 0.25 * rms(camera_alignment(PRIOR), look)


def test_large_folders_of_unlike_scenes_are_believed() -> None:
    """A look three spreads off the prior, unlike pictures of their own brightness: the more there are, the nearer."""
    look = camera_alignment(PRIOR + np.array([0, -3, 0, -3, 0]) * PRIOR_SPREAD)
    rng = np.random.default_rng(0)

    def off(count: int) -> float:
        sides = []
        for _ in (0, 1):
            shades = pool()[torch.from_numpy(rng.integers(len(pool()), size=(count, 6)))]
            brightness = torch.from_numpy(np.exp(rng.normal(0, 0.3, (count, 1, 1))).astype(np.float32))
            sides.append(list((shades * brightness).clamp(0, 1)))
        return rms(fit_alignment(sides[0], [mapped(look, x) for x in sides[1]]), look)

    few, many = off(20), off(400)
    assert many < 0.5 * few
    assert many < 0.2 * rms(camera_alignment(PRIOR), look)


def test_weights_discount_what_one_side_lacks() -> None:
    """One photo in ten is a saturated green: it costs the robust fit little, the plain one much."""
    source, clean = pictures_of(colours(450, 0)), pictures_of(mapped(KNOWN, colours(450, 1)))
    generator = torch.manual_seed(0)
    green = [torch.tensor([0.15, 0.8, 0.1]) + 0.05 * torch.randn(15, 3, generator=generator) for _ in range(3)]
    robust, plain = rms(fit_alignment(source, clean + green)), rms(fit_plain_alignment(source, clean + green))
    assert robust < 0.6 * plain
    assert robust < rms(fit_alignment(source, clean)) + 0.012
    # Weights of the photos, such as w(y) of a trained potential, take the rest away.
    known = fit_alignment(source, clean + green, target_weights=[1.0] * len(clean) + [1e-3] * 3)
    assert rms(known) == pytest.approx(rms(fit_alignment(source, clean)), abs=0.006)


def test_the_fit_depends_on_the_samples_alone() -> None:
    source, target = pictures_of(colours(200, 0)), pictures_of(colours(200, 1))
    torch.manual_seed(1)
    one = fit_alignment(source, target)
    torch.manual_seed(2)
    torch.rand(10)
    np.random.rand(10)
    assert fit_alignment(source, target) == one


def test_a_fit_is_monotone_and_invertible_whatever_the_samples() -> None:
    rng = torch.manual_seed(0)
    for source, target in (
        (torch.full((200, 3), 0.5), torch.rand(200, 3, generator=rng)),
        (torch.rand(200, 3, generator=rng), torch.full((200, 3), 0.2)),
        (torch.rand(200, 3, generator=rng) ** 6, 1 - torch.rand(200, 3, generator=rng) ** 6),
        (torch.rand(200, 1, generator=rng).expand(-1, 3), torch.rand(200, 3, generator=rng)),
    ):
        for found in (
            fit_plain_alignment([source], [target]), fit_alignment([source], [target]),
            fit_alignment(pictures_of(source), pictures_of(target)),
        ):  # fmt: skip
            assert (np.diff(found.tone) > 0).all()
            probe = torch.rand(1, 3, 9, 9, generator=rng)
            torch.testing.assert_close(found.invert(found.apply(probe)), probe, rtol=0, atol=2e-3)


def test_black_and_white_photos_take_the_colour_away() -> None:
    grey = [x.mean(1, keepdim=True).expand(-1, 3) for x in pictures_of(colours(450, 1))]
    found = fit_alignment(pictures_of(colours(450, 0)), grey)
    assert abs(np.linalg.det(np.array(found.chroma))) < 0.2**2


def test_what_is_no_alignment_is_refused() -> None:
    with pytest.raises(UsageError, match="65 strictly rising"):
        Alignment(tone=(0.0,) * KNOTS)
    with pytest.raises(UsageError, match="65 strictly rising"):
        Alignment(tone=(0.0, 1.0))
    with pytest.raises(UsageError, match="not invertible"):
        Alignment(chroma=((1.0, 1.0), (1.0, 1.0)))


def render(mosaic: np.ndarray, cfa: str, gains: tuple[float, float, float], color_input: ColorInput) -> Tensor:
    matrix = np.array([[1.6, -0.5, -0.1], [-0.2, 1.5, -0.3], [0.0, -0.6, 1.6]])
    frame = RawFrame.from_array(
        mosaic, cfa=cfa, black=(64.0,) * 4, white=(16383.0,) * 4, white_balance=gains, matrix=matrix
    )
    ingest = Ingest(frame, float_spec(color_input))
    planes = np.empty((ingest.height, ingest.width, 4), np.float32)
    ingest.fill(planes, 0, 0)
    y, x = ingest.crop
    rgb = Reference()(torch.from_numpy(planes).permute(2, 0, 1)[None])[0]
    return rgb[:, y : y + frame.height, x : x + frame.width]


def mosaic_of(linear: np.ndarray, cfa: str, gains: tuple[float, float, float]) -> np.ndarray:
    """Counts of a grey scene [H, W] in [0, 1] as this sensor sees it."""
    out = np.empty(linear.shape)
    for y in (0, 1):
        for x in (0, 1):
            gain = gains["RGB".index(cfa[2 * y + x])]
            out[y::2, x::2] = linear[y::2, x::2] / gain
    return np.rint(64 + out * (16383 - 64)).astype(np.uint16)


@pytest.mark.parametrize("cfa", PHASES)
def test_a_flat_grey_raw_is_flat_grey(cfa: str) -> None:
    """T10."""
    gains = (2.1, 1.0, 1.6)
    for level in (0.02, 0.2, 0.5):
        rgb = render(mosaic_of(np.full((32, 40), level), cfa, gains), cfa, gains, "srgb")
        np.testing.assert_allclose(rgb, level ** (1 / 2.2), atol=1.5e-3)


@pytest.mark.parametrize("cfa", PHASES)
@pytest.mark.parametrize("at", [20, 21])
@pytest.mark.parametrize("across", [True, False])
def test_an_edge_stays_where_it_is(cfa: str, at: int, across: bool) -> None:
    """T10: a step edge lies within half a pixel of where the raw has it.

    The area under the profile tells where a sharp edge of that area would lie. Red and blue sit half a pixel off the
    centre of their cell on opposite sides, so each may be a pixel off where an edge splits a cell.
    """
    scene = np.full((40, 40), 0.1)
    scene[:, at:] = 0.5
    gains = (2.1, 1.0, 1.6)
    rgb = render(mosaic_of(scene if across else scene.T, cfa, gains), cfa, gains, "camera")
    profile = (rgb if across else rgb.transpose(1, 2))[:, 8:32].mean(1).numpy()
    dark, bright = profile[:, 5:6], profile[:, 35:36]
    place = 40 - ((profile - dark) / (bright - dark)).sum(1)
    assert place.mean() == pytest.approx(at, abs=0.1)
    assert place[1] == pytest.approx(at, abs=0.1)
    assert place == pytest.approx([at] * 3, abs=1.1)


def test_one_pair_says_more_than_the_photos_do() -> None:
    """A look two spreads off the prior; unlike scenes on both sides; a pair of twenty colours."""
    look = camera_alignment(PRIOR + np.array([1.5, 2, 0, 2, -2]) * PRIOR_SPREAD)
    source = pictures_of((colours(300, 0) * torch.tensor([1.0, 0.8, 0.6])).clamp(0, 1))
    target = pictures_of(mapped(look, (colours(300, 1) * torch.tensor([0.7, 0.9, 1.0])).clamp(0, 1)))
    pair = colours(1440, 2)[:20]
    unpaired = fit_alignment(source, target)
    mixed = fit_alignment(source, target, pairs=[(pair, mapped(look, pair).clamp(0, 1))])
    assert rms(mixed, look) < 0.6 * rms(unpaired, look)


def test_photos_count_by_their_weights() -> None:
    """Half of the photos have another camera's look, which no transport tells from content: only weights can."""
    other = camera_alignment(PRIOR + np.array([-1.0, 1.5, 0.5, 1.5, -1.0]) * PRIOR_SPREAD)
    source = pictures_of(colours(700, 0))
    ours, theirs = (pictures_of(mapped(look, colours(350, 2 * i + 2))) for i, look in enumerate((LOOK, other)))
    both = fit_alignment(source, ours + theirs)
    told = fit_alignment(source, ours + theirs, target_weights=[1.0] * len(ours) + [1e-3] * len(theirs))
    alone = fit_alignment(source, ours)
    assert rms(told, alone) < 0.25 * rms(both, alone)
    assert rms(told, LOOK) < 0.5 * rms(both, LOOK)
