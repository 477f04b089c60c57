"""Measures of agreement against closed forms."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from eguot_compress.calibration import Calibration, grey_ramp
from eguot_compress.convert import Holding, _fault
from eguot_compress.convert.formats import by_onnx2tf
from eguot_compress.parity import Difference, Parity, ScaleCheck, banding_lsb, drop_db, measure
from eguot_compress.ptq import post_train
from eguot_sdk.spec import Precision
from eguot_train.isps.base import IspNet


def test_difference_of_known_offsets() -> None:
    a = torch.full((1, 3, 10, 10), 0.5)
    b = a.clone()
    b[0, 0, 0, :3] += 1.5 / 255
    b[0, 0, 1, :2] += 3 / 255
    found = Difference.between(a, b)
    assert found.max_lsb == pytest.approx(3, abs=1e-3)
    assert found.over_1_lsb == pytest.approx(5 / 300)
    assert found.over_2_lsb == pytest.approx(2 / 300)
    mse = (3 * 1.5**2 + 2 * 3**2) / 300 / 255**2
    assert found.psnr_db == pytest.approx(-10 * math.log10(mse), abs=1e-3)


def test_what_clips_is_not_a_difference() -> None:
    assert Difference.between(torch.tensor([1.2, -3.0]), torch.tensor([1.0, 0.0])).psnr_db == pytest.approx(200)


def test_drop_to_true_pictures() -> None:
    truth = torch.full((2, 3, 8, 8), 0.5)
    network, file = truth + 0.01, truth + 0.02
    assert drop_db(file, network, truth) == pytest.approx(20 * math.log10(2), abs=1e-3)


def test_estimated_drop_is_that_of_independent_errors() -> None:
    torch.manual_seed(0)
    truth = torch.full((4, 3, 64, 64), 0.5)
    network = truth + 10 ** (-30 / 20) * torch.randn_like(truth)
    file = network + 0.01 * torch.randn_like(truth)
    estimate = drop_db(file.clamp(0, 1), network.clamp(0, 1), None)
    assert estimate == pytest.approx(drop_db(file, network, truth), abs=0.03)


def test_a_dropped_level_shows_as_banding() -> None:
    smooth = torch.linspace(0.2, 0.4, 128).expand(3, 4, 128)
    step = float(smooth[0, 0, 1] - smooth[0, 0, 0]) * 255
    banded = (smooth * 255 / 4).round() * 4 / 255
    assert banding_lsb(smooth, smooth) == 0
    assert banding_lsb(banded, smooth) == pytest.approx(4 - step, abs=0.05)


def parity(over: float = 0.0, drop: float = 0.1, twin_drop: float = 0.1, psnr: float = 70.0) -> Parity:
    found = Difference(psnr_db=psnr, max_lsb=1, over_1_lsb=over, over_2_lsb=over)
    return Parity(twin=found, network=found, drop_db=drop, twin_drop_db=twin_drop, drop_basis="pairs", banding_lsb=0)


def test_what_falls_short() -> None:
    assert parity().problem("w8a8") is None
    assert "2 LSB" in str(parity(over=0.003).problem("w8a8"))
    assert "0.050 dB" in str(parity(drop=0.15).problem("w8a8"))
    assert parity(psnr=79.9).problem("fp16") is None
    assert "80 needed" in str(parity(psnr=79.9).problem("fp32"))


@pytest.mark.parametrize(("drop", "words"), [(1.0, None), (1.2, "loses 1.1 dB more than with our scales")])
def test_a_file_with_scales_of_its_own_may_lose_little_more(
    drop: float, words: str | None, tiny: IspNet, pictures: torch.Tensor
) -> None:
    holding = Holding(*post_train(tiny, pictures, bits=8))
    found = _fault(parity(drop=drop, psnr=30.0), by_onnx2tf(pictures), holding, "w8a8")
    assert found is None if words is None else words in str(found)


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_what_is_no_number_falls_short(precision: str) -> None:
    broken = torch.full((1, 3, 4, 4), torch.nan)
    found = Difference.between(broken, torch.zeros_like(broken))
    result = Parity(
        twin=found, network=found, drop_db=math.nan, twin_drop_db=math.nan, drop_basis="pairs", banding_lsb=0
    )
    assert "no numbers" in str(result.problem(precision))  # type: ignore[arg-type]


def test_scales_of_its_own_are_a_fault_whatever_the_picture() -> None:
    for precision in ("w8a8", "w8a16", "fp32"):
        found = dataclasses.replace(parity(psnr=90.0), scales=ScaleCheck(total=10, differing=3))
        assert "3 of 10 scales in the file are not the network's" in str(found.problem(precision))  # type: ignore[arg-type]
        found = dataclasses.replace(found, scales=ScaleCheck(total=10, differing=0))
        assert found.problem(precision) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "floor"), [("fp32", 80.0), ("fp16", 60.0), ("w8", 60.0), ("w8a16", 60.0)])
def test_each_float_precision_has_a_floor(precision: Precision, floor: float) -> None:
    assert parity(psnr=floor).problem(precision) is None
    assert f"{floor:.0f} needed" in str(parity(psnr=floor - 0.1).problem(precision))


def test_a_file_that_is_better_than_its_twin_is_not_its_twin() -> None:
    assert "0.050 dB" in str(parity(drop=0.05, twin_drop=0.1).problem("w8a8"))
    assert parity(drop=0.11, twin_drop=0.1).problem("w8a8") is None


def test_the_border_of_a_ramp_is_no_banding() -> None:
    """Networks pad with zeros: what the first and last columns do differs from tile to tile anyway."""
    smooth = torch.linspace(0.2, 0.4, 128).expand(3, 4, 128)
    torn = smooth.clone()
    torn[..., :7] += 0.1
    torn[..., -6:] -= 0.1
    assert banding_lsb(torn, smooth) == pytest.approx(0, abs=1e-4)
    torn[..., 60:] += 2 / 255
    assert banding_lsb(torn, smooth) == pytest.approx(2, abs=1e-3)
    assert banding_lsb(torn[..., :24], smooth[..., :24]) > 20  # too narrow to leave anything out


@pytest.mark.parametrize("pairs", [True, False])
def test_a_file_is_measured_against_twin_network_and_truth(pairs: bool) -> None:
    """Flat pictures off by known levels; the last crop, the ramp, has no truth and alone says what bands."""
    truth = torch.full((3, 3, 16, 64), 0.5)
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 16, 64).clone()

    def off(levels: float) -> torch.Tensor:
        return torch.cat([truth + levels / 255, ramp])

    network, twin, file = off(2), off(4), off(5)
    file[-1, ..., 32:] += 3 / 255
    golden = torch.cat([torch.zeros(3, 4, 8, 8), grey_ramp(8)])
    calibration = Calibration(golden, golden, truth if pairs else None, {})
    scales = ScaleCheck(total=1, differing=0)
    found = measure(file, twin, network, calibration, scales)
    assert found.twin == Difference.between(file, twin)
    assert found.network == Difference.between(file, network)
    assert found.scales is scales
    assert found.banding_lsb == pytest.approx(3, abs=1e-3)
    if pairs:
        assert found.drop_basis == "pairs"
        assert found.drop_db == pytest.approx(20 * math.log10(5 / 2), abs=1e-3)
        assert found.twin_drop_db == pytest.approx(20 * math.log10(4 / 2), abs=1e-3)
    else:
        assert found.drop_basis == "estimate"
        noise = 10 ** (-30 / 10)  # squared error of the picture that a drop is estimated for
        squared = 3 * 2**2 / 4 / 255**2  # of the twin: two levels from the network, and none on the ramp
        assert found.twin_drop_db == pytest.approx(10 * math.log10(1 + squared / noise), abs=1e-4)
        assert found.drop_db > found.twin_drop_db
