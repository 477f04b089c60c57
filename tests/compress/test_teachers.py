"""Runs by the name a person gives."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from eguot_compress import cli
from eguot_train.checkpoint import DEFAULT_RUN, load_run, named_run


def test_the_network_behind_the_default_isp_goes_by_its_name(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript", reason="the onnx extra is not installed")
    monkeypatch.chdir(tmp_path)
    assert named_run(Path("default")) == DEFAULT_RUN
    where = ["--pairs", str(pairs)]
    for line in (
        ["distill", "default", "--isp", "robustisp", "--steps", "1", "--out", "student", *where],
        ["quantize", "default", "--out", "small", *where],
        ["qat", "student", "--teacher", "default", "--steps", "1", "--out", "taught", *where],
        ["qat", "default", "--steps", "1", "--out", "trained", *where],
        ["convert", "default", "--format", "onnx", "--out", "files", "--calibration", str(pairs)],
    ):
        done = CliRunner().invoke(getattr(cli, line[0]), line[1:], catch_exceptions=False)
        assert done.exit_code == 0, line
    assert load_run(tmp_path / "student").config.isp == "robustisp"
    for name in ("small", "trained"):
        assert load_run(tmp_path / name).config.isp == load_run(DEFAULT_RUN).config.isp
    assert (tmp_path / "files" / "default.fp32.onnx").is_file()
    (tmp_path / "default").mkdir()
    assert named_run(Path("default")) == Path("default")
