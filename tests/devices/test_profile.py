from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest

from eguot_devices import profile as profiling
from eguot_devices.machine import this_machine
from eguot_devices.measure import Job, OnProgress, measure
from eguot_devices.profile import Asked, profile
from eguot_devices.schema import Machine, ModelProfile
from eguot_devices.targets import TARGETS
from eguot_devices.targets.base import Target
from eguot_sdk import progress
from eguot_sdk.errors import EguotError, RawError, UsageError


class Here(Target):
    """Measures in this process; fails for models whose name says so."""

    def __init__(self, device: str) -> None:
        self.device = device

    def machine(self) -> Machine:
        return this_machine()

    def measure(self, job: Job, on_progress: OnProgress, end: float | None = None) -> ModelProfile:
        if job.name.startswith("bad"):
            raise EguotError("out of luck")
        if job.name.startswith("full"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return measure(job, on_progress)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, small_budgets: None) -> None:
    monkeypatch.setitem(TARGETS, "local", Here)


@pytest.mark.usefixtures("here")
def test_a_report_names_data_by_name_and_hash(shipped: Path, pairs: Path) -> None:
    raw = shipped / "kodak_dc50_0012L.kdc"
    report = profile([shipped / "tiny.w8a8.tflite", shipped / "tiny.fp32.tflite"], asked=Asked(raw=raw, pairs=pairs))
    (device,) = report.devices
    assert [m.name for m in device.models] == ["tiny.w8a8.tflite", "tiny.fp32.tflite"]
    assert [m.precision for m in device.models] == ["w8a8", "fp32"]
    assert report.raw.name == raw.name
    assert report.raw.sha256 == hashlib.sha256(raw.read_bytes()).hexdigest()
    assert report.pairs is not None
    assert (report.pairs.name, report.pairs.images) == (pairs.name, 3)
    assert str(shipped) not in str(report)
    assert str(pairs.parent) not in str(report)


@pytest.mark.usefixtures("here")
def test_progress_says_which_model_and_what_is_done_with_it(
    monkeypatch: pytest.MonkeyPatch, shipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_S", 0.0)  # every line, not one in ten seconds
    profile([shipped / "tiny.w8a8.tflite", shipped / "tiny.fp32.tflite"])
    told = capsys.readouterr()
    assert told.out == ""
    for i, name in enumerate(("tiny.w8a8.tflite", "tiny.fp32.tflite")):
        mine = [line for line in told.err.splitlines() if line.startswith(f"profile on local  {i}/2") and name in line]
        for step in ("tile, run 1", "tile, run 9", "frame, run 9", "operators"):  # first and MAX_RUNS of the fixture
            assert any(line.endswith(f"{name}: {step}") for line in mine), (step, told.err)
    assert told.err.splitlines()[-1].startswith("profile on local  2/2")


@pytest.mark.usefixtures("here")
def test_the_hash_of_pairs_changes_with_any_file_but_not_with_the_folder(tmp_path: Path, pairs: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(pairs, copy)
    facts, copied = profiling._pairs_facts(pairs), profiling._pairs_facts(copy)
    assert facts.sha256 == copied.sha256
    path = copy / "noise-1.json"
    path.write_text(path.read_text() + " ")
    assert profiling._pairs_facts(copy).sha256 != facts.sha256


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in Unicode only")
def test_pairs_whose_names_are_no_utf8_have_a_hash(tmp_path: Path, pairs: Path) -> None:
    for path in sorted(pairs.iterdir()):
        shutil.copy(path, tmp_path / path.name.replace("noise-1", os.fsdecode(b"noise-\xff")))
    facts = profiling._pairs_facts(tmp_path)
    assert facts.images == 3
    assert facts.sha256 != profiling._pairs_facts(pairs).sha256


@pytest.mark.usefixtures("here")
def test_one_model_that_fails_does_not_stop_the_others(tmp_path: Path, shipped: Path) -> None:
    names = ("bad.tflite", "good.tflite", "full.tflite")
    for name in names:
        shutil.copy(shipped / "tiny.w8a8.tflite", tmp_path / name)
    report = profile([tmp_path / name for name in names])
    (device,) = report.devices
    assert [m.name for m in device.models] == ["good.tflite"]
    assert [(f.name, f.message) for f in device.failed] == [
        ("bad.tflite", "out of luck"),
        ("full.tflite", "OSError: [Errno 28] No space left on device"),
    ]


@pytest.mark.usefixtures("here")
def test_a_damaged_pair_is_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, shipped: Path, pairs: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(profiling, "_golden", lambda *arguments: pytest.fail("measured"))
    for part in ("noise-1_raw.png", "noise-1_srgb.png"):
        folder = tmp_path / part
        shutil.copytree(pairs, folder)
        (folder / part).write_bytes((pairs / part).read_bytes()[:100])
        with pytest.raises(RawError, match=part):
            profile([shipped / "tiny.w8a8.tflite"], asked=Asked(pairs=folder))


@pytest.mark.usefixtures("here")
def test_what_was_measured_is_kept_where_its_pictures_cannot_be_scored(
    monkeypatch: pytest.MonkeyPatch, shipped: Path, pairs: Path
) -> None:
    def lost(*arguments: object) -> None:
        raise EguotError("the device's picture of noise-1 cannot be read")

    monkeypatch.setattr(profiling, "accuracy", lost)
    (device,) = profile([shipped / "tiny.w8a8.tflite"], asked=Asked(pairs=pairs)).devices
    assert [(m.name, m.accuracy) for m in device.models] == [("tiny.w8a8.tflite", None)]
    assert device.failed == ()
    assert device.notes[-1].startswith("tiny.w8a8.tflite: its pictures were not scored (the device's picture of noise-")


@pytest.mark.usefixtures("here")
def test_ctrl_c_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch, shipped: Path) -> None:
    class Stopped(Here):
        def measure(self, job: Job, on_progress: OnProgress, end: float | None = None) -> ModelProfile:
            if job.name.startswith("tiny.fp32"):
                raise KeyboardInterrupt
            return super().measure(job, on_progress, end)

    monkeypatch.setitem(TARGETS, "local", Stopped)
    monkeypatch.setitem(TARGETS, "ssh", Here)
    models = [shipped / f"tiny.{precision}.tflite" for precision in ("w8a8", "fp32", "w8a16")]
    with pytest.raises(profiling.Interrupted) as stop:
        profile(models, device=["local", "ssh://board"])
    here, board = stop.value.report.devices
    assert [m.name for m in here.models] == ["tiny.w8a8.tflite"]
    assert [(f.name, f.message) for f in here.failed] == [
        ("tiny.fp32.tflite", "interrupted"), ("tiny.w8a16.tflite", "interrupted")
    ]  # fmt: skip
    assert board.models == ()
    assert len(board.failed) == 3


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("day", "night"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "isp.tflite").touch()
    paths = [tmp_path / "day" / "isp.tflite", tmp_path / "night" / "isp.tflite"]
    assert [job.name for job in profiling._jobs(paths, Asked())] == ["day/isp.tflite", "night/isp.tflite"]
    for run in ("ra", "rb"):
        (tmp_path / run / "out").mkdir(parents=True)
        (tmp_path / run / "out" / "isp.tflite").touch()
    (tmp_path / "day" / "other.tflite").touch()
    runs = [tmp_path / "ra/out/isp.tflite", tmp_path / "rb/out/isp.tflite", paths[0], tmp_path / "day/other.tflite"]
    assert [job.name for job in profiling._jobs(runs, Asked())] == [
        "ra/out/isp.tflite", "rb/out/isp.tflite", "day/isp.tflite", "other.tflite"
    ]  # fmt: skip
    with pytest.raises(UsageError, match="named twice"):
        profiling._jobs([paths[0], tmp_path / "night" / ".." / "day" / "isp.tflite"], Asked())


LONG = "x" * 300


def test_wrong_arguments_are_told_before_anything_runs(tmp_path: Path, shipped: Path) -> None:
    model = shipped / "tiny.w8a8.tflite"
    with pytest.raises(UsageError, match="at least one"):
        profile([])
    with pytest.raises(UsageError, match="no such ISP file"):
        profile([tmp_path / "none.tflite"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="a run folder; `eguot-sdk convert` makes an ISP file of it"):
        profile([tmp_path / "run"])
    with pytest.raises(UsageError, match="no such raw file"):
        profile([model], asked=Asked(raw=tmp_path / "none.dng"))
    with pytest.raises(UsageError, match="no such folder"):
        profile([model], asked=Asked(pairs=tmp_path / "none"))
    for models, asked in (
        ([tmp_path / LONG], Asked()),
        ([model], Asked(raw=tmp_path / LONG)),
        ([model], Asked(pairs=tmp_path / LONG)),
    ):
        with pytest.raises(UsageError, match=r"cannot be looked at \(File name too long\)"):
            profile(models, asked=asked)
    with pytest.raises(UsageError, match="each once"):
        profile([model], device=["local", "local"])
    with pytest.raises(UsageError, match="threads"):
        profile([model], asked=Asked(threads=(0,)))
    with pytest.raises(UsageError, match="--sustained 60 of each of 2 models leaves nothing of --max-seconds 120"):
        profile([model, shipped / "tiny.fp32.tflite"], asked=Asked(sustained_s=60, max_seconds=120))


def test_a_busy_machine_and_a_saving_governor_are_said(
    monkeypatch: pytest.MonkeyPatch, report: profiling.Report
) -> None:
    (model,), machine = report.devices[0].models, report.devices[0].machine
    busy, governor = profiling._notes(machine, [model])
    assert "0.5 of 2 cores" in busy
    assert model.name in busy
    assert "powersave" in governor
    also, _ = profiling._notes(machine, [model, dataclasses.replace(model, name="b", other_load_cores=1.25), model])
    assert "1.2 of 2 cores while 3 of 3 models were" in also
    quiet = profiling.ModelProfile(**{f: getattr(model, f) for f in model.__slots__} | {"other_load_cores": 0.1})
    assert len(profiling._notes(machine, [quiet])) == 1


@pytest.mark.slow
def test_this_machine_for_real(shipped: Path, pairs: Path) -> None:
    asked = Asked(raw=shipped / "kodak_dc50_0012L.kdc", pairs=pairs)
    (device,) = profile([shipped / "tiny.w8a8.tflite"], asked=asked).devices
    assert not device.failed
    (model,) = device.models
    assert model.peak_memory_mb is not None
    assert model.frame is not None
    assert model.peak_memory_mb < 300
    assert model.frame.latency.runs >= 10
