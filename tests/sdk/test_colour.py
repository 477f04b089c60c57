"""The matrix of a DNG against a camera that is made for the test, and the rules of the specification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eguot_sdk import read_raw
from eguot_sdk.colour import _kelvin_of
from eguot_sdk.dng import DCRAW_SRGB_TO_XYZ

MakeDng = Callable[..., bytes]
DAYLIGHT = np.array([[0.9020, -0.2890, -0.0715], [-0.4535, 1.2436, 0.2348], [-0.0934, 0.1919, 0.7086]])
LAMP = np.array([[1.2271, -0.5454, -0.2612], [-0.4546, 1.5177, -0.0426], [-0.0409, 0.1636, 0.5913]])
XYZ_A = np.array([1.09850, 1.0, 0.35585])
XYZ_D65 = np.array([0.95047, 1.0, 1.08883])
XYZ_D50 = np.array([0.96422, 1.0, 0.82521])


def rationals(values: NDArray[Any]) -> tuple[int, Any]:
    return 10, tuple(part for v in np.asarray(values).ravel() for part in (round(float(v) * 10**6), 10**6))


def neutral(values: NDArray[Any]) -> tuple[int, Any]:
    return 5, tuple(part for v in values / max(values) for part in (round(float(v) * 10**6), 10**6))


def two_lights(make_dng: MakeDng, counts: Any, white: NDArray[Any], **changes: Any) -> bytes:
    return make_dng(
        counts,
        t50721=rationals(LAMP),
        t50722=rationals(DAYLIGHT),
        t50778=(3, 17),
        t50779=(3, 21),
        t50728=neutral(white),
        **changes,
    )


def bradford(source: NDArray[Any], target: NDArray[Any]) -> NDArray[Any]:
    """Written from the published matrix, apart from the code under test."""
    cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    result: NDArray[Any] = np.linalg.solve(cone, ((cone @ target) / (cone @ source))[:, None] * cone)
    return result


@pytest.mark.parametrize(("matrix", "white"), [(LAMP, XYZ_A), (DAYLIGHT, XYZ_D65)])
def test_under_either_light_its_own_matrix_counts(
    make_dng: MakeDng, counts: Any, matrix: NDArray[Any], white: NDArray[Any]
) -> None:
    frame = read_raw(two_lights(make_dng, counts, matrix @ white))
    assert frame.origins["matrix"] == "tag ColorMatrix1 and ColorMatrix2"
    assert frame.matrix is not None
    assert frame.matrix.sum(axis=1) == pytest.approx(np.ones(3))
    # A surface of known colour under this light, seen by the camera, comes out as that colour under D65.
    for colour in ([0.3, 0.5, 0.2], [0.6, 0.2, 0.1], [0.1, 0.2, 0.7]):
        under_light = bradford(XYZ_D65, white) @ DCRAW_SRGB_TO_XYZ @ np.array(colour)
        balanced = (matrix @ under_light) / (matrix @ white)
        assert frame.matrix @ balanced == pytest.approx(np.array(colour), abs=0.02)


def test_between_two_lights_the_matrix_lies_between(make_dng: MakeDng, counts: Any) -> None:
    frames = [
        read_raw(two_lights(make_dng, counts, white))
        for white in (LAMP @ XYZ_A, (LAMP + DAYLIGHT) / 2 @ XYZ_D50, DAYLIGHT @ XYZ_D65)
    ]
    warm, middle, cold = (frame.matrix for frame in frames)
    assert warm is not None
    assert middle is not None
    assert cold is not None
    assert np.abs(middle - warm).max() < np.abs(cold - warm).max()
    assert np.abs(middle - cold).max() < np.abs(cold - warm).max()


def test_a_forward_matrix_is_the_way_to_d50(make_dng: MakeDng, counts: Any) -> None:
    forward = np.array([[0.70, 0.15, 0.1142], [0.25, 0.85, -0.10], [0.02, -0.10, 0.9049]])
    data = make_dng(counts, t50721=rationals(DAYLIGHT), t50964=rationals(forward), t50728=neutral(DAYLIGHT @ XYZ_D50))
    frame = read_raw(data)
    assert frame.origins["matrix"] == "tag ForwardMatrix1"
    expected = np.linalg.solve(DCRAW_SRGB_TO_XYZ, bradford(XYZ_D50, XYZ_D65) @ forward)
    assert frame.matrix == pytest.approx(expected / expected.sum(axis=1, keepdims=True), abs=2e-3)
    # A second one for another light takes part by how warm the light is.
    other = np.array([[0.60, 0.25, 0.1142], [0.20, 0.90, -0.10], [0.05, -0.15, 0.9249]])
    both = two_lights(make_dng, counts, LAMP @ XYZ_A, t50964=rationals(forward), t50965=rationals(other))
    frame = read_raw(both)
    assert frame.origins["matrix"] == "tag ForwardMatrix1 and ForwardMatrix2"
    assert frame.matrix == pytest.approx(expected / expected.sum(axis=1, keepdims=True), abs=0.02)


def test_calibration_of_one_body_is_undone(make_dng: MakeDng, counts: Any) -> None:
    # This body's red is 10% stronger than its model's: white-balanced colours are the same, so is the matrix.
    stronger = np.diag([1.1, 1.0, 1.0])
    plain = read_raw(two_lights(make_dng, counts, DAYLIGHT @ XYZ_D65))
    body = read_raw(
        two_lights(
            make_dng, counts, stronger @ DAYLIGHT @ XYZ_D65, t50723=rationals(stronger), t50724=rationals(stronger)
        )
    )
    assert plain.matrix is not None
    assert body.matrix == pytest.approx(plain.matrix, abs=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"t50964": rationals(np.zeros((3, 3)))},
        {"t50964": rationals(np.full((3, 3), 50.0))},
        {"t50964": rationals(np.eye(3))},
        {"t50723": rationals(np.zeros((3, 3)))},
        {"t50722": rationals(np.zeros((3, 3))), "t50779": (3, 17)},
    ],
)
def test_tags_without_sense_fall_back(make_dng: MakeDng, counts: Any, changes: dict[str, Any]) -> None:
    plain = read_raw(make_dng(counts, t50721=rationals(DAYLIGHT)))
    frame = read_raw(make_dng(counts, t50721=rationals(DAYLIGHT), **changes))
    assert frame.origins["matrix"] == "tag ColorMatrix1"
    np.testing.assert_array_equal(frame.matrix, plain.matrix)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("xy", "kelvin"),
    [((0.44757, 0.40745), 2856), ((0.34567, 0.35850), 5003), ((0.31271, 0.32902), 6504), ((0.29902, 0.31485), 7504)],
)
def test_colour_temperatures_of_the_standard_lights(xy: tuple[float, float], kelvin: float) -> None:
    white = np.array([xy[0], xy[1], 1 - sum(xy)]) / xy[1]
    assert _kelvin_of(white) == pytest.approx(kelvin, rel=0.005)


def test_an_absurd_balance_is_not_used(make_dng: MakeDng, counts: Any) -> None:
    frame = read_raw(make_dng(counts, t50728=(5, (1, 30, 1, 1, 1, 1))))
    assert frame.white_balance is None
    assert frame.origins["white_balance"].startswith("absurd (30, 1, 1)")


def daylight(kelvin: float) -> NDArray[Any]:
    """XYZ of the CIE daylight of a colour temperature from 4,000 to 7,000 K."""
    x = -4.6070e9 / kelvin**3 + 2.9678e6 / kelvin**2 + 0.09911e3 / kelvin + 0.244063
    y = -3 * x**2 + 2.87 * x - 0.275
    return np.array([x, y, 1 - x - y]) / y


MIRED = 1 / (0.4 / 2850 + 0.6 / 6500)
"""Kelvin of the light that lies, in reciprocal kelvin, at 6 tenths of the way from lamp to daylight: 4,298."""
BETWEEN = 0.4 * LAMP + 0.6 * DAYLIGHT
FORWARD = np.array([[0.70, 0.15, 0.1142], [0.25, 0.85, -0.10], [0.02, -0.10, 0.9049]])
FORWARD_COLD = np.array([[0.60, 0.25, 0.1142], [0.20, 0.90, -0.10], [0.05, -0.15, 0.9249]])


def test_weights_follow_the_reciprocal_temperature(make_dng: MakeDng, counts: Any) -> None:
    """Specification, chapter 6: linear in 1 / kelvin, so four tenths of the lamp's matrices at 4,298 K."""
    white = daylight(MIRED)
    frame = read_raw(two_lights(make_dng, counts, BETWEEN @ white))
    assert frame.matrix is not None
    for colour in ([0.3, 0.5, 0.2], [0.6, 0.2, 0.1], [0.1, 0.2, 0.7]):
        under_light = bradford(XYZ_D65, white) @ DCRAW_SRGB_TO_XYZ @ np.array(colour)
        assert frame.matrix @ ((BETWEEN @ under_light) / (BETWEEN @ white)) == pytest.approx(colour, abs=0.01)
    forwards = {"t50964": rationals(FORWARD), "t50965": rationals(FORWARD_COLD)}
    frame = read_raw(two_lights(make_dng, counts, BETWEEN @ white, **forwards))
    expected = np.linalg.solve(DCRAW_SRGB_TO_XYZ, bradford(XYZ_D50, XYZ_D65) @ (0.4 * FORWARD + 0.6 * FORWARD_COLD))
    assert frame.matrix == pytest.approx(expected / expected.sum(axis=1, keepdims=True), abs=4e-3)


@pytest.mark.parametrize("forward", [{}, {"t50964": rationals(FORWARD), "t50965": rationals(FORWARD_COLD)}])
@pytest.mark.parametrize("balance", [np.ones(3), np.array([1.25, 1.0, 0.9])])
def test_a_body_that_mixes_colours_of_its_own_comes_out_as_its_model(
    make_dng: MakeDng, counts: Any, forward: dict[str, Any], balance: NDArray[Any]
) -> None:
    """Camera = AnalogBalance @ CameraCalibration @ model, of the light: what both bodies see comes out alike."""
    warm, cold = (np.eye(3) + share * np.array([[0.0, 0.1, 0], [0.05, 0, 0.05], [0, 0.1, 0]]) for share in (1.0, -0.5))
    body = np.diag(balance) @ (0.4 * warm + 0.6 * cold)
    white, surface = daylight(MIRED), np.array([0.5, 0.3, 0.2])
    plain = read_raw(two_lights(make_dng, counts, BETWEEN @ white, **forward)).matrix
    tags = {"t50723": rationals(warm), "t50724": rationals(cold), "t50727": (5, rationals(balance)[1])}
    mine = read_raw(two_lights(make_dng, counts, body @ BETWEEN @ white, **tags, **forward)).matrix
    assert plain is not None
    assert mine is not None
    seen = BETWEEN @ surface / (BETWEEN @ white)
    assert mine @ (body @ BETWEEN @ surface / (body @ BETWEEN @ white)) == pytest.approx(plain @ seen, abs=0.01)


def test_a_second_forward_matrix_alone_is_used_with_its_own_calibration(make_dng: MakeDng, counts: Any) -> None:
    mixing = np.array([[1.0, 0.1, 0.0], [0.05, 1.0, 0.05], [0.0, 0.1, 1.0]])
    colours = {"t50721": rationals(DAYLIGHT), "t50965": rationals(FORWARD)}
    body = mixing @ DAYLIGHT @ XYZ_D50
    found = read_raw(make_dng(counts, **colours, t50724=rationals(mixing), t50728=neutral(body)))
    assert found.origins["matrix"] == "tag ForwardMatrix2"
    expected = np.linalg.solve(DCRAW_SRGB_TO_XYZ, bradford(XYZ_D50, XYZ_D65) @ FORWARD)
    white, surface = DAYLIGHT @ XYZ_D50, DAYLIGHT @ np.array([0.5, 0.3, 0.2])
    assert found.matrix is not None
    seen = found.matrix @ (mixing @ surface / body)
    assert seen == pytest.approx(expected @ (surface / white), abs=0.01)


def test_a_matrix_that_is_no_cameras_is_not_used(make_dng: MakeDng, counts: Any) -> None:
    """White stays white through it, but an entry of twenty would show noise and nothing else."""
    wild = FORWARD + np.array([[9.0, -9.0, 0.0], [-20.0, 20.0, 0.0], [0.0, 0.0, 0.0]])
    plain = read_raw(make_dng(counts, t50721=rationals(DAYLIGHT)))
    frame = read_raw(make_dng(counts, t50721=rationals(DAYLIGHT), t50964=rationals(wild)))
    assert frame.origins["matrix"] == "tag ColorMatrix1"
    np.testing.assert_array_equal(frame.matrix, plain.matrix)  # type: ignore[arg-type]
