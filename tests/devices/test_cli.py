from __future__ import annotations

import errno
import json
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from eguot_devices import cli
from eguot_devices import profile as profiling
from eguot_devices.measure import Job, OnProgress
from eguot_devices.report import read_report
from eguot_devices.schema import Machine, ModelProfile, Report, from_dict
from eguot_devices.targets import TARGETS
from eguot_devices.targets.base import Target
from eguot_sdk.cli import main
from eguot_sdk.paths import DEFAULT_ISP


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """Runs the command inside `eguot-sdk`, be it installed or not."""
    for name in ("profile", "compare", "devices"):
        monkeypatch.setitem(main.commands, name, getattr(cli, name))  # type: ignore[attr-defined]
    return CliRunner()


def test_an_unknown_device_is_a_wrong_command_line(runner: CliRunner, shipped: Path) -> None:
    result = runner.invoke(main, ["profile", str(shipped / "tiny.w8a8.tflite"), "--device", "toaster"])
    assert result.exit_code == 2
    assert "toaster" in result.stderr
    assert "local" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments", [["profile"], ["profile", "x.tflite"], ["profile", "none.tflite", "--device", "local"]]
)
def test_wrong_command_lines(runner: CliRunner, arguments: list[str]) -> None:
    assert runner.invoke(main, arguments).exit_code == 2


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("option", ["--sustained", "--max-seconds", "--budget-ms", "--fail-slower"])
def test_what_is_no_number_is_refused(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, option: str, value: str
) -> None:
    monkeypatch.setattr(profiling, "profile", lambda *arguments, **options: pytest.fail("measured"))
    before = ["compare", "a", "b"] if option == "--fail-slower" else ["profile", "default", "--device", "local"]
    result = runner.invoke(main, [*before, option, value])
    assert result.exit_code == 2
    assert f"expected a number, not {value}" in result.stderr


def test_a_model_that_fails_is_told_and_the_exit_code_is_1(runner: CliRunner, tmp_path: Path) -> None:
    path = tmp_path / "noise.tflite"
    path.write_bytes(bytes(range(256)) * 8)
    out = tmp_path / "out"
    result = runner.invoke(main, ["profile", str(path), "--device", "local", "--json", "--out", str(out)])
    assert result.exit_code == 1
    report = from_dict(Report, json.loads(result.stdout))
    assert [f.name for f in report.devices[0].failed] == ["noise.tflite"]
    assert "Error: noise.tflite" in result.stderr
    assert json.loads((out / "report.json").read_text()) == json.loads(result.stdout)


def test_out_onto_a_file_is_told_before_anything_is_measured(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(profiling, "_golden", lambda *arguments: pytest.fail("measured"))
    (tmp_path / "file").touch()
    result = runner.invoke(main, ["profile", "default", "--device", "local", "--out", str(tmp_path / "file")])
    assert result.exit_code == 1
    assert "file: cannot be made (File exists)" in result.stderr


def test_a_report_that_cannot_be_written_is_shown_all_the_same(
    runner: CliRunner, report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "report.json").mkdir()
    monkeypatch.setattr(profiling, "profile", lambda *arguments, **options: report)
    arguments = ["profile", "default", "--device", "local", "--json", "--budget-ms", "5", "--out", str(tmp_path)]
    result = runner.invoke(main, arguments)
    assert result.exit_code == 1
    assert "report.json: cannot be written" in result.stderr
    assert "nothing fits into 5 ms" in result.stderr
    assert from_dict(Report, json.loads(result.stdout)) == report


def test_a_report_that_cannot_be_shown_is_written_all_the_same(
    runner: CliRunner, report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def echo(text: str, *, err: bool = False) -> None:
        if not err:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(profiling, "profile", lambda *arguments, **options: report)
    monkeypatch.setattr(cli.click, "echo", echo)
    result = runner.invoke(main, ["profile", "default", "--device", "local", "--out", str(tmp_path)])
    assert isinstance(result.exception, OSError)
    assert read_report(tmp_path / "report.json") == report


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_it_with_what_was_measured_and_nothing_left(
    runner: CliRunner, report: Report, shipped: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    (measured,) = report.devices[0].models

    class Here(Target):
        device = "local"

        def machine(self) -> Machine:
            return report.devices[0].machine

        def measure(self, job: Job, on_progress: OnProgress, end: float | None = None) -> ModelProfile:
            if job.name == "default.tflite":
                signal.raise_signal(signal.Signals[name])
            return replace(measured, name=job.name)

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setitem(TARGETS, "local", lambda device: Here())
    shutil.copy(DEFAULT_ISP, tmp_path / "default.tflite")
    models = [str(shipped / "tiny.w8a8.tflite"), str(tmp_path / "default.tflite")]
    result = runner.invoke(main, ["profile", *models, "--device", "local", "--out", str(tmp_path / "out")])
    assert result.exit_code == 130
    assert "failed: default.tflite: interrupted" in result.stdout
    (device,) = read_report(tmp_path / "out").devices
    assert [m.name for m in device.models] == ["tiny.w8a8.tflite"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_wrong_command_line_makes_no_folder(runner: CliRunner, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    assert runner.invoke(main, ["profile", "none.tflite", "--device", "local", "--out", str(out)]).exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tool", [[], ["--benchmark-model", "none"], ["--benchmark-model", "x" * 300]])
def test_a_phone_without_its_tool_is_told_before_anything_is_measured(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, tool: list[str]
) -> None:
    monkeypatch.setattr(profiling, "_on_device", lambda *arguments: pytest.fail("measured"))
    result = runner.invoke(main, ["profile", "default", "--device", "local", "--device", "adb", *tool])
    assert result.exit_code == 2, result.output
    assert "benchmark_model" in result.stderr or "File name too long" in result.stderr


def test_a_table_goes_to_stdout_and_nothing_else(
    runner: CliRunner, report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pairs: Path
) -> None:
    given: dict[str, Any] = {}

    def record(models: object, **options: object) -> Report:
        given.update(models=models, **options)
        return report

    monkeypatch.setattr(profiling, "profile", record)
    options = ["--device", "local", "--raw", "x.dng", "--pairs", str(pairs), "--threads", "1,2", "--max-seconds", "9"]
    result = runner.invoke(main, ["profile", "a.tflite", "b.tflite", *options, "--out", str(tmp_path)])
    asked = given["asked"]
    assert (given["models"], given["device"]) == (("a.tflite", "b.tflite"), ("local",))
    assert (asked.raw, asked.pairs, asked.threads, asked.max_seconds) == (Path("x.dng"), pairs, (1, 2), 9.0)
    assert given["command"].startswith("eguot-sdk profile a.tflite b.tflite --device local --raw x.dng")
    assert "local: Some CPU" in result.stdout
    assert f"wrote {tmp_path / 'report.json'}" in result.stderr
    assert result.exit_code == 1  # the report holds a failure
