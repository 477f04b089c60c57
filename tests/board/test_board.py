"""ISP files on the emulated arm64 board give the pictures they give here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import compare_pictures
import numpy as np
import pytest
from make_board import Board

from eguot_sdk import ISP

ROOT = Path(__file__).resolve().parents[2]
DEVELOP = """
import sys
sys.path.insert(0, "/sdk")
import numpy as np
from eguot_sdk import ISP
np.save("/io/rgb.npy", ISP.load(sys.argv[1], threads=1).run(np.load("/io/planes.npy")))
"""


def test_the_board_is_arm64_and_has_its_wheels_only_when_asked(board: Board) -> None:
    look = "import platform, sys, importlib.util as u; print(platform.machine(), u.find_spec('numpy') is not None)"
    assert board.run(["python3", "-c", look]).stdout.split() == ["aarch64", "True"]
    assert board.run(["python3", "-c", look], with_wheels=False).stdout.split() == ["aarch64", "False"]


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_pictures_of_the_board_are_those_of_this_machine(
    board: Board, shipped: Path, tmp_path: Path, precision: str
) -> None:
    model = shipped / f"tiny.{precision}.tflite"
    planes = np.random.default_rng(3).random((32, 32, 4), np.float32)
    np.save(tmp_path / "planes.npy", planes)
    done = board.run(
        ["python3", "-c", DEVELOP, f"/models/{model.name}"],
        binds={ROOT / "sdk": "/sdk", shipped: "/models", tmp_path: "/io"},
        timeout_s=300,
    )
    assert done.returncode == 0, done.stderr
    there, here = np.load(tmp_path / "rgb.npy"), ISP.load(model, threads=1).run(planes)
    # One step of 1/255 where int8 kernels of another processor round the other way.
    assert np.abs(there - here).max() <= (1.5 / 255 if precision == "w8a8" else 1e-5)


def test_an_exit_code_comes_back(board: Board) -> None:
    assert board.run(["python3", "-c", "import sys; sys.exit(7)"]).returncode == 7


def test_pictures_that_neither_side_made_are_no_agreement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compare_pictures, "make_board", Board)
    monkeypatch.setattr(subprocess, "run", lambda command, check: None)  # as where every raw is refused
    monkeypatch.setattr(sys, "argv", ["compare_pictures.py", str(tmp_path), str(tmp_path)])
    assert compare_pictures.main() == 1
