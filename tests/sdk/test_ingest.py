"""Network input against a slow reference in float64, for every phase, border and type of tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eguot_sdk import IspSpec, RawFrame
from eguot_sdk.ingest import Ingest, balanced_gains, color_matrix, quantise, reflect
from eguot_sdk.spec import TensorSpec

PHASES = {"RGGB": (0, 0), "GRBG": (0, 1), "GBRG": (1, 0), "BGGR": (1, 1)}
INT8 = TensorSpec(dtype="int8", scale=1 / 255, zero_point=-128)
SPEC = IspSpec(name="t", architecture="t", parameters=0, halo=0, input=INT8)


def make_frame(height: int, width: int, cfa: str, bits: int = 14, **changes: Any) -> RawFrame:
    rng = np.random.default_rng([height, width, bits])
    white = 2**bits - 1
    values: dict[str, Any] = {
        "black": [white * share for share in (0.02, 0.021, 0.019, 0.022)],
        "white": [white * share for share in (0.97, 0.98, 0.99, 1.0)],
        "white_balance": (2.1, 1.0, 1.6),
        "matrix": [[1.7, -0.6, -0.1], [-0.15, 1.5, -0.35], [0.02, -0.5, 1.48]],
        **changes,
    }
    # Squared, so that shadows, where companding is steep, are as common as light.
    mosaic = (rng.random((height, width)) ** 3 * white).astype(np.uint16)
    return RawFrame.from_array(mosaic, cfa=cfa, **values)


def reference(frame: RawFrame, spec: IspSpec, box: tuple[int, int, int, int], ev: float = 0.0) -> NDArray[np.float64]:
    """Companded planes [h, w, 4] of rows top.. and columns left.., pixel by pixel from the definition."""
    top, left, height, width = box
    gains, matrix = balanced_gains(frame)[0], color_matrix(frame)[0]
    row0, col0 = PHASES[frame.cfa]
    planes = np.zeros((height, width, 4))
    for plane, (dy, dx) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        ys = reflect(2 * np.arange(top, top + height) + dy - row0, frame.height)
        xs = reflect(2 * np.arange(left, left + width) + dx - col0, frame.width)
        signal = frame.mosaic[np.ix_(ys, xs)].astype(np.float64) - frame.black[plane]
        signal *= 2.0**ev * (gains[0], gains[1], gains[1], gains[2])[plane] / (frame.white[plane] - frame.black[plane])
        planes[..., plane] = np.clip(signal, 0, 1)
    if spec.color_input == "srgb":
        red, first, second, blue = np.moveaxis(planes, -1, 0)
        green = (first + second) / 2
        planes = np.stack(
            [
                matrix[0, 0] * red + matrix[0, 1] * green + matrix[0, 2] * blue,
                matrix[1, 0] * red + matrix[1, 1] * first + matrix[1, 2] * blue,
                matrix[1, 0] * red + matrix[1, 1] * second + matrix[1, 2] * blue,
                matrix[2, 0] * red + matrix[2, 1] * green + matrix[2, 2] * blue,
            ],
            axis=-1,
        )
    return np.clip(planes, 0, 1) ** spec.companding


def assert_rounded(out: NDArray[Any], exact: NDArray[np.float64], tensor: TensorSpec, matrix: NDArray[Any]) -> None:
    """Codes as if the linear value was off by at most 2.5 steps of the fields of `Ingest`."""
    step = np.abs(matrix).sum(axis=1).max() / 65527
    low, high = ((np.clip(exact**2.2 + shift, 0, 1)) ** (1 / 2.2) for shift in (-2.5 * step, 2.5 * step))
    found = (out.astype(np.float64) - tensor.zero_point) * tensor.scale
    half = 0.501 * tensor.scale
    assert (found >= low - half).all()
    assert (found <= high + half).all()


@pytest.mark.parametrize("cfa", PHASES)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_integer_input_is_the_rounded_definition(cfa: str, bits: int) -> None:
    frame = make_frame(150, 210, cfa, bits)
    ingest = Ingest(frame, SPEC)
    out = np.empty((80, 110, 4), np.int8)
    ingest.fill(out, -3, -2)
    exact = reference(frame, SPEC, (-3, -2, 80, 110))
    assert_rounded(out, exact, INT8, color_matrix(frame)[0])
    codes = exact * 255 - 128
    assert np.mean(out != np.rint(codes)) < 0.02
    assert abs(np.mean(out - codes)) < 0.02  # no shift of the level


@pytest.mark.parametrize("ev", [-4.0, -1.0, 0.0, 3.0, 12.0])
def test_exposure_scales_before_clipping(ev: float) -> None:
    frame = make_frame(40, 60, "GBRG", 12)
    out = np.empty((21, 30, 4), np.int8)
    Ingest(frame, SPEC, ev).fill(out, 0, 0)
    assert_rounded(out, reference(frame, SPEC, (0, 0, 21, 30), ev), INT8, color_matrix(frame)[0])


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize("color_input", ["srgb", "camera"])
def test_other_tensors(dtype: Any, color_input: Any) -> None:
    tensor = TensorSpec(dtype=dtype, scale=1 / 255, zero_point=0)
    spec = SPEC.replace(input=tensor, color_input=color_input)
    frame = make_frame(50, 70, "GRBG")
    out = np.empty((25, 36, 4), dtype)
    Ingest(frame, spec).fill(out, 0, 0)
    exact = reference(frame, spec, (0, 0, 25, 36))
    assert_rounded(out, exact, tensor, color_matrix(frame)[0])
    assert np.mean(out != quantise(exact, tensor)) < 0.02


def test_float_input_is_the_definition() -> None:
    frame, spec = make_frame(66, 50, "BGGR"), SPEC.replace(input=TensorSpec())
    out = np.empty((30, 30, 4), np.float32)
    Ingest(frame, spec).fill(out, 10, -9)
    np.testing.assert_allclose(out, reference(frame, spec, (10, -9, 30, 30)), atol=2e-4)


def test_strong_matrices_do_not_overflow() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        matrix = rng.normal(0, 3, (3, 3))
        np.fill_diagonal(matrix, 0)
        np.fill_diagonal(matrix, 1 - matrix.sum(axis=1))
        if abs(np.linalg.det(matrix)) < 1e-3:
            continue
        frame = make_frame(24, 24, "RGGB", matrix=matrix)
        out = np.empty((12, 12, 4), np.int8)
        Ingest(frame, SPEC).fill(out, 0, 0)
        assert_rounded(out, reference(frame, SPEC, (0, 0, 12, 12)), INT8, matrix)


@pytest.mark.parametrize("balance", [(12.0, 1.0, 12.0), (12.0, 1.0, 1.0), (20.0, 1.0, 0.05), (2.1, 1.0, 1.6)])
def test_gains_that_are_known_are_used_as_they_are(balance: tuple[float, float, float]) -> None:
    """Grey under the light they are for is grey in every plane."""
    grey = np.full((8, 8), 10, np.float64)
    for at, gain in (((0, 0), balance[0]), ((1, 1), balance[2])):
        grey[at[0] :: 2, at[1] :: 2] /= gain
    mosaic = np.rint(64 + 100 * grey).astype(np.uint16)
    frame = RawFrame.from_array(mosaic, cfa="RGGB", black=64, white=65000, white_balance=balance, matrix=np.eye(3))
    assert balanced_gains(frame)[0] == tuple(gain / min(balance) for gain in balance)
    out = np.empty((4, 4, 4), np.float32)
    Ingest(frame, SPEC.replace(input=TensorSpec())).fill(out, 0, 0)
    np.testing.assert_allclose(out / out[..., 1:2], 1, rtol=0.005)


def test_gains_that_are_estimated_are_limited() -> None:
    mosaic = np.full((64, 64), 300, np.uint16)
    mosaic[::2, ::2], mosaic[1::2, 1::2] = 66, 900
    frame = RawFrame.from_array(mosaic, cfa="RGGB", black=64, white=1023)
    assert balanced_gains(frame)[0][0] == 8.0


def test_counts_above_white_are_white() -> None:
    mosaic = np.full((8, 8), 65535, np.uint16)
    frame = RawFrame.from_array(mosaic, cfa="RGGB", black=64, white=1023, white_balance=(2, 1, 1.5), matrix=np.eye(3))
    out = np.empty((4, 4, 4), np.int8)
    Ingest(frame, SPEC).fill(out, 0, 0)
    assert (out == 127).all()


@given(st.integers(4, 40), st.integers(4, 40), st.integers(-90, 90), st.integers(-90, 90), st.sampled_from([*PHASES]))
def test_every_border_is_the_reflection(height: int, width: int, top: int, left: int, cfa: str) -> None:
    frame, spec = make_frame(height, width, cfa), SPEC.replace(color_input="camera")
    out = np.empty((9, 13, 4), np.int8)
    Ingest(frame, spec).fill(out, top, left)
    codes = reference(frame, spec, (top, left, 9, 13)) * 255 - 128
    np.testing.assert_allclose(out, codes, atol=0.501)  # tables are float32


def test_stripes_join(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = make_frame(90, 120, "GBRG")
    whole, striped = np.empty((2, 50, 64, 4), np.int8)
    Ingest(frame, SPEC).fill(whole, -2, -1)
    monkeypatch.setattr("eguot_sdk.ingest.STRIPE", 3 * 64)
    Ingest(frame, SPEC).fill(striped, -2, -1)
    np.testing.assert_array_equal(striped, whole)


def cells_of(values: NDArray[Any], *, white: float = 1000.0) -> RawFrame:
    """A frame of unknown balance of cells [h, w, 4] in the order R, Gr, Gb, B, black 0."""
    mosaic = np.empty((2 * values.shape[0], 2 * values.shape[1]), np.uint16)
    for plane, (y, x) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        mosaic[y::2, x::2] = values[..., plane]
    return RawFrame.from_array(mosaic, cfa="RGGB", black=0, white=white)


def estimate(values: NDArray[Any]) -> NDArray[np.float64]:
    gains, origin = balanced_gains(cells_of(values))
    assert "grey world" in origin
    assert min(gains) == 1
    return np.array(gains)


SCENE = np.random.default_rng(5).uniform(0.5, 1.5, (30, 40, 1)) * np.array([200, 420, 440, 260])


def test_an_estimated_balance_lies_between_the_greys_and_a_typical_one() -> None:
    """Nearer to what makes the picture grey; both greens count alike, and so does the exposure."""
    grey, typical = np.array([430 / 200, 1, 430 / 260]), np.array([1.9, 1, 1.6])
    for tint in (np.array([1.0, 1, 1, 1]), np.array([1.8, 1, 1, 0.6]), np.array([0.7, 1, 1, 1.4])):
        seen = grey / tint[[0, 1, 3]]
        found = estimate(SCENE * tint)
        found = found / found[1]
        for channel in (0, 2):
            low, high = sorted((seen[channel], typical[channel]))
            assert low - 0.02 <= found[channel] <= high + 0.02
            assert abs(np.log(found[channel] / seen[channel])) <= abs(np.log(found[channel] / typical[channel])) + 0.01
    np.testing.assert_allclose(estimate(SCENE[..., [0, 2, 1, 3]]), estimate(SCENE), rtol=1e-3)
    np.testing.assert_allclose(estimate(SCENE / 4), estimate(SCENE), rtol=0.02)


def test_neither_clipped_nor_black_cells_say_what_is_grey() -> None:
    clipped, black = SCENE.copy(), SCENE.copy()
    clipped[:10] = (1000, 1000, 1000, 500)  # a lamp: where it clips, its colour is unknown
    black[:20] = (9, 0, 0, 9)  # noise, where there is no light
    for spoilt, kept in ((clipped, SCENE[10:]), (black, SCENE[20:])):
        np.testing.assert_allclose(estimate(spoilt), estimate(kept), rtol=0.01)


def test_counts_that_are_balanced_already_are_left_as_they_are() -> None:
    """Cameras that balance before they store would come out pink by the typical gains of a sensor."""
    np.testing.assert_allclose(estimate(np.full((30, 40, 4), 400.0)), 1, atol=1e-6)
    assert estimate(SCENE * np.array([430 / 200, 430 / 420, 430 / 440, 430 / 260])).max() < 1.02


def test_a_picture_that_says_nothing_gets_the_typical_balance() -> None:
    for nothing in (np.zeros((8, 8, 4)), np.full((8, 8, 4), 1000.0)):
        np.testing.assert_allclose(estimate(nothing), (1.9, 1, 1.6))


def test_without_a_matrix_colours_become_those_of_a_typical_camera() -> None:
    """Sensors see colours paler than sRGB has them: the default leaves grey alone and deepens the rest."""
    matrix, origin = color_matrix(make_frame(8, 8, "RGGB", matrix=None))
    assert origin.startswith("default")
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    assert (np.diag(matrix) > 1.2).all()
    red = np.full((8, 8), 200, np.uint16)
    red[::2, ::2] = 600
    frame = RawFrame.from_array(red, cfa="RGGB", black=0, white=1000, white_balance=(1, 1, 1))
    out = np.empty((4, 4, 4), np.float32)
    Ingest(frame, SPEC.replace(input=TensorSpec())).fill(out, 0, 0)
    linear = out[0, 0] ** 2.2
    assert linear[0] / linear[1] > 1.3 * 3
