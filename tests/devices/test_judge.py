from __future__ import annotations

import io
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from samples import job

from eguot_devices.judge import MAX_GOLDEN_BYTES, Golden, _golden_beside, accuracy, make_golden, parity
from eguot_devices.measure import GOLDEN_OUTPUT, golden_output
from eguot_sdk.errors import EguotError
from eguot_sdk.evaluation import evaluate
from eguot_sdk.isp import ISP
from eguot_sdk.ispfile import read_spec
from eguot_sdk.pairs import list_pairs
from eguot_sdk.paths import DEFAULT_ISP


def test_the_golden_pair_beside_a_file_is_the_reference(tmp_path: Path) -> None:
    golden = make_golden(job(DEFAULT_ISP, tmp_path), tmp_path)
    assert golden.reference == "golden pair"
    with np.load(DEFAULT_ISP.with_suffix(".golden.npz")) as arrays:
        assert np.array_equal(golden.output, arrays["output"])
        assert np.array_equal(np.load(golden.input_path), arrays["input"])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in Unicode only")
def test_a_file_whose_name_is_no_utf8_has_a_golden_pair(tmp_path: Path) -> None:
    model = tmp_path / os.fsdecode(b"look\xff.tflite")
    shutil.copy(DEFAULT_ISP, model)
    shutil.copy(DEFAULT_ISP.with_suffix(".golden.npz"), model.with_suffix(".golden.npz"))
    assert make_golden(job(model, tmp_path), tmp_path).reference == "golden pair"


def test_a_golden_pair_of_another_file_is_not_used(tmp_path: Path) -> None:
    model = tmp_path / "x.w8a8.tflite"
    shutil.copy(DEFAULT_ISP, model)
    rng = np.random.default_rng(0)
    values = {"input": rng.integers(0, 9, (1, 32, 32, 4)).astype(np.int8), "output": np.zeros((1, 64, 64, 3), np.int8)}
    np.savez(model.with_suffix(".golden.npz"), **values)
    golden = make_golden(job(model, tmp_path), tmp_path)
    assert golden.reference.startswith("LiteRT's reference kernels")
    usual = golden_output(model, golden.input_path).astype(int)
    difference = np.abs(usual - golden.output)  # two sets of int8 kernels, on noise, over six layers
    assert difference.mean() < 0.3  # .2005 for the default ISP
    assert np.abs(usual - values["output"]).mean() > 10  # so the zeros beside the file would be told
    assert difference.max() <= 6


def test_a_golden_pair_that_claims_or_unpacks_to_too_much_is_not_used(tmp_path: Path) -> None:
    model = tmp_path / "x.w8a8.tflite"
    shutil.copy(DEFAULT_ISP, model)
    header = io.BytesIO()
    shape = (1, 1 << 30, 1 << 20, 4)
    np.lib.format.write_array_header_1_0(header, {"descr": "|i1", "fortran_order": False, "shape": shape})
    for size in (100, MAX_GOLDEN_BYTES + 1):
        with zipfile.ZipFile(model.with_suffix(".golden.npz"), "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("input.npy", "w") as member:
                member.write(header.getvalue())
                for start in range(0, size, 1 << 20):
                    member.write(bytes(min(1 << 20, size - start)))
            archive.writestr("output.npy", header.getvalue())
        assert _golden_beside(model, read_spec(model)) is None


def test_a_file_that_does_not_run_has_no_golden_pair(tmp_path: Path) -> None:
    (tmp_path / "noise.tflite").write_bytes(bytes(1000))
    with pytest.raises(EguotError, match=r"noise\.tflite"):
        make_golden(job(tmp_path / "noise.tflite", tmp_path), tmp_path)


def test_parity_is_counted_in_steps_of_an_8_bit_picture(shipped: Path, tmp_path: Path) -> None:
    spec = read_spec(shipped / "tiny.w8a8.tflite")
    expected = np.zeros((1, 4, 4, 3), np.int8)
    made = expected.copy()
    made[0, 0, 0] = (1, 2, -3)
    np.save(tmp_path / GOLDEN_OUTPUT, made)
    golden = Golden(input_path=tmp_path, output=expected, reference="here")
    found = parity(golden, tmp_path, spec)
    assert found is not None
    step = 255 * spec.output.scale
    assert found.max_levels == pytest.approx(3 * step)
    assert found.beyond_one_level == pytest.approx(2 / 48)
    assert found.psnr_db == pytest.approx(10 * np.log10(255**2 * 48 / (14 * step**2)))
    np.save(tmp_path / GOLDEN_OUTPUT, expected)
    same = parity(golden, tmp_path, spec)
    assert same is not None
    assert (same.max_levels, same.psnr_db) == (0.0, 100.0)


def test_an_output_that_is_no_number_is_told(shipped: Path, tmp_path: Path) -> None:
    spec = read_spec(shipped / "tiny.fp32.tflite")
    golden = Golden(input_path=tmp_path, output=np.zeros((1, 4, 4, 3), np.float32), reference="here")
    np.save(tmp_path / GOLDEN_OUTPUT, np.full((1, 4, 4, 3), np.nan, np.float32))
    with pytest.raises(EguotError, match="no numbers"):
        parity(golden, tmp_path, spec)


def test_an_output_of_another_shape_is_told_and_none_is_no_parity(shipped: Path, tmp_path: Path) -> None:
    spec = read_spec(shipped / "tiny.w8a8.tflite")
    golden = Golden(input_path=tmp_path, output=np.zeros((1, 4, 4, 3), np.int8), reference="here")
    assert parity(golden, tmp_path, spec) is None
    np.save(tmp_path / GOLDEN_OUTPUT, np.zeros((1, 4, 4, 3), np.float32))
    with pytest.raises(EguotError, match="float32"):
        parity(golden, tmp_path, spec)
    (tmp_path / GOLDEN_OUTPUT).write_bytes(b"nothing")
    with pytest.raises(EguotError, match="cannot be read"):
        parity(golden, tmp_path, spec)


def test_accuracy_is_what_evaluation_says(shipped: Path, tmp_path: Path, pairs: Path) -> None:
    from PIL import Image

    isp = ISP.load(shipped / "tiny.fp32.tflite")
    for pair in list_pairs(pairs):
        Image.fromarray(isp.process(pair.frame())).save(tmp_path / f"{pair.name}.png")
    found = accuracy(tmp_path, list_pairs(pairs))
    expected = evaluate(isp.process, list_pairs(pairs))  # type: ignore[arg-type]
    assert (found.images, found.protocol) == (3, expected.protocol)
    for metric in ("psnr_db", "ssim", "de2000", "psnr_affine_db"):
        assert getattr(found, metric) == pytest.approx(expected.mean(metric), rel=1e-6)
    (tmp_path / f"{list_pairs(pairs)[1].name}.png").unlink()
    with pytest.raises(EguotError, match="noise-1"):
        accuracy(tmp_path, list_pairs(pairs))
