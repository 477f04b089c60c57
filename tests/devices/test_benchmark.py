"""What benchmarks/process/run.py says of a command that fails."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "process" / "run.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="needs the checkout")


def test_a_command_that_develops_nothing_has_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("process_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    monkeypatch.setattr(benchmark, "make_dng", lambda path, size: path.write_bytes(b"no raw"))
    with pytest.raises(click.ClickException, match="ended with code 1"):
        benchmark.print_command(tmp_path)
    assert capsys.readouterr().out == ""
