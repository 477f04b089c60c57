"""The report under examples/report/ is what the README says of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eguot_devices.report import read_report

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "report"
PRECISIONS = {"fp32", "fp16", "w8a8"}

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the checkout")


def test_it_holds_six_networks_in_three_precisions_on_two_devices() -> None:
    report = read_report(FOLDER / "report.json")
    here, board = report.devices
    assert (here.device, here.machine.emulated) == ("local", None)
    assert board.device.startswith("ssh://")
    assert board.machine.emulated is not None
    for device in report.devices:
        assert not device.failed
        files = {(model.architecture, model.precision) for model in device.models}
        assert len({name for name, _ in files}) >= 6
        assert files == {(name, precision) for name, _ in files for precision in PRECISIONS}
        assert all(model.accuracy is not None and model.parity is not None for model in device.models)
    assert [m.sha256 for m in here.models] == [m.sha256 for m in board.models]
    assert all(m.frame is not None and m.frame.latency.p50_ms is not None for m in here.models)


def test_its_page_is_of_the_same_report_and_all_is_small() -> None:
    page = (FOLDER / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert data["report"] == json.loads((FOLDER / "report.json").read_text(encoding="utf-8"))
    assert data["crops"]
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 2_000_000


def test_the_classes_that_make_it_are_there() -> None:
    named = re.findall(r'"candidates:(\w+)"', (FOLDER / "make.py").read_text(encoding="utf-8"))
    candidates = FOLDER.parents[1] / "benchmarks" / "front" / "candidates.py"
    assert named
    assert set(named) <= set(re.findall(r"^class (\w+)", candidates.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("script", ["examples/report/pictures.py", "tests/board/run_suite.py"])
def test_asked_for_help_its_scripts_do_nothing_else(script: str, tmp_path: Path) -> None:
    if script.endswith("pictures.py"):
        pytest.importorskip("playwright", reason="needs the extra `dev`: playwright")
    command = [sys.executable, FOLDER.parents[1] / script, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage:")
    assert list(tmp_path.iterdir()) == []
