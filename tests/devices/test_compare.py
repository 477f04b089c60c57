from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from samples import with_models

from eguot_devices import cli
from eguot_devices.compare import (
    ALIKE,
    MORE_RUNS,
    budget_lines,
    compare,
    comparison_lines,
    differences,
    missing_times,
    too_slow,
)
from eguot_devices.report import write_report
from eguot_devices.schema import Accuracy, Latency, ModelProfile, Report
from eguot_sdk.cli import main
from eguot_sdk.errors import UsageError


def changed(
    report: Report, *, ms: float = 4.0, half_width: float = 0.1, psnr_db: float = 24.5, noise: float = 3.0
) -> Report:
    """The report with another tile time, quality or noise."""
    (model,) = report.devices[0].models
    latency = Latency(
        first_ms=9.0,
        p50_ms=ms,
        p50_low_ms=ms - half_width,
        p50_high_ms=ms + half_width,
        p90_ms=ms,
        p99_ms=None,
        runs=40,
    )
    assert model.accuracy is not None
    return with_models(
        report,
        dataclasses.replace(
            model,
            tile=dataclasses.replace(model.tile, latency=latency),
            accuracy=dataclasses.replace(model.accuracy, psnr_db=psnr_db),
            noise_pct=noise,
        ),
    )


def verdicts(before: Report, after: Report) -> dict[str, str]:
    return {change.what: change.verdict for change in compare(before, after)}


def test_the_same_report_has_no_change(report: Report) -> None:
    changes = compare(report, report)
    assert {change.verdict for change in changes} == {"same"}
    assert comparison_lines(changes) == ["3 of 3 numbers are the same within noise (up to 3 %)"]


def test_tiles_of_different_sizes_are_not_compared(report: Report) -> None:
    (model,) = changed(report, ms=9.0).devices[0].models
    larger = with_models(report, dataclasses.replace(model, tile=dataclasses.replace(model.tile, height_packed=900)))
    assert verdicts(report, changed(report, ms=9.0))["tile"] == "slower"
    assert "tile" not in verdicts(report, larger)
    # A frame is one either way; where none was timed, as on phones, nothing is left to compare.
    assert missing_times(report, larger) == [
        f"{model.name} on local: the tiles that were timed differ in size; profile again with as much memory free"
    ]
    assert model.frame is not None
    frame = dataclasses.replace(model.frame, latency=model.tile.latency)
    both = [with_models(r, dataclasses.replace(r.devices[0].models[0], frame=frame)) for r in (report, larger)]
    assert missing_times(*both) == []


def timed(report: Report, ms: float, **frame: Any) -> Report:
    """The report with a time of a frame, and other facts of it."""
    model = within(report, report.devices[0].models[0].name, ms, 24.5)
    assert model.frame is not None
    latency = dataclasses.replace(model.frame.latency, p50_low_ms=ms - 1, p50_high_ms=ms + 1)
    return with_models(
        report, dataclasses.replace(model, frame=dataclasses.replace(model.frame, latency=latency, **frame))
    )


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"threads": 4}, {"threads": 1}, "4 threads, a file read or 1 threads, a file read"),
        ({"reads_file": False}, {"reads_file": True}, "2 threads, no file read or 2 threads, a file read"),
    ],
)
def test_frames_that_were_timed_otherwise_are_not_compared(
    report: Report, before: dict[str, Any], after: dict[str, Any], words: str
) -> None:
    old, new = timed(report, 200.0, **before), timed(report, 700.0, **after)
    assert "frame" not in verdicts(old, new)
    assert missing_times(old, new) == [f"look.w8a8.tflite on local: frames were timed otherwise ({words}); {ALIKE}"]
    same = timed(report, 700.0, **before)
    assert verdicts(old, same)["frame"] == "slower"
    assert missing_times(old, same) == []


def test_other_machines_and_runtimes_are_named(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(main.commands, "compare", cli.compare)  # type: ignore[attr-defined]
    device = report.devices[0]
    machine = dataclasses.replace(device.machine, cpu="Cortex-A53", cores=4)
    models = [dataclasses.replace(m, name=n, runtime="ai-edge-litert 9.9") for n in "ab" for m in device.models]
    old = with_models(report, *(dataclasses.replace(m, runtime="ai-edge-litert 2.3.0") for m in models))
    new = dataclasses.replace(
        report, devices=(dataclasses.replace(device, machine=machine, models=(*models, *device.models)),)
    )
    expected = [
        "local: another processor, Some CPU then Cortex-A53",
        "local: another number of cores, 2 then 4",
        "local: another runtime, ai-edge-litert 2.3.0 then ai-edge-litert 9.9",
        f"local: only in the later report: {', '.join(m.name for m in device.models)}",
    ]
    assert differences(old, new) == expected
    assert differences(report, report) == []
    for name, one in (("a", old), ("b", new)):
        write_report(one, tmp_path / name)
    said = CliRunner().invoke(main, ["compare", *(str(tmp_path / n / "report.json") for n in "ab"), "--json"])
    assert said.exit_code == 0
    assert [line for line in said.stderr.splitlines() if line.startswith("note: ")] == [f"note: {e}" for e in expected]
    json.loads(said.stdout)


@pytest.mark.parametrize(
    ("after", "half_width", "noise", "verdict"),
    [
        (5.0, 0.1, 3.0, "slower"),
        (3.0, 0.1, 3.0, "faster"),
        (5.0, 1.0, 3.0, "same"),  # the intervals overlap
        (5.0, 0.1, 30.0, "same"),  # the machine's noise is larger
        (4.07, 0.01, 0.0, "same"),  # below what counts at all
    ],
)
def test_a_time_counts_beyond_its_interval_and_noise(
    report: Report, after: float, half_width: float, noise: float, verdict: str
) -> None:
    before = changed(report, half_width=0.01)
    assert verdicts(before, changed(report, ms=after, half_width=half_width, noise=noise))["tile"] == verdict


def test_quality_and_memory_count_by_size(report: Report) -> None:
    assert verdicts(report, changed(report, psnr_db=24.4))["PSNR"] == "worse"
    assert verdicts(report, changed(report, psnr_db=24.6))["PSNR"] == "better"
    (model,) = report.devices[0].models
    larger = with_models(report, dataclasses.replace(model, peak_memory_mb=120.0))
    assert verdicts(report, larger)["peak memory"] == "larger"


def test_other_data_and_other_protocols_are_refused(report: Report) -> None:
    assert report.pairs is not None
    with pytest.raises(UsageError, match="different raws"):
        compare(report, dataclasses.replace(report, raw=dataclasses.replace(report.raw, sha256="00" * 32)))
    with pytest.raises(UsageError, match="different pairs"):
        compare(report, dataclasses.replace(report, pairs=dataclasses.replace(report.pairs, sha256="00" * 32)))
    (model,) = report.devices[0].models
    other = Accuracy(protocol="aligned", images=8, psnr_db=24.5, ssim=0.91, de2000=5.25, psnr_affine_db=29.0)
    with pytest.raises(UsageError, match="different protocols"):
        compare(report, with_models(report, dataclasses.replace(model, accuracy=other)))
    with pytest.raises(UsageError, match="no model on a device in common"):
        compare(report, with_models(report, dataclasses.replace(model, name="another")))


def test_times_of_an_emulated_device_are_not_compared(report: Report) -> None:
    device = report.devices[0]
    emulated = dataclasses.replace(device, machine=dataclasses.replace(device.machine, emulated="QEMU"))
    there = dataclasses.replace(report, devices=(emulated,))
    for before, after in ((there, there), (there, report), (report, there)):
        assert set(verdicts(before, after)) == {"peak memory", "PSNR"}
    assert "nothing can be said" in budget_lines(emulated, 10.0)[0]


def test_what_has_no_time_is_not_passed_over(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(main.commands, "compare", cli.compare)  # type: ignore[attr-defined]
    (model,) = report.devices[0].models
    few = dataclasses.replace(model.tile.latency, p50_ms=None, p50_low_ms=None, p50_high_ms=None)
    timeless = with_models(report, dataclasses.replace(model, tile=dataclasses.replace(model.tile, latency=few)))
    two = with_models(report, model, dataclasses.replace(model, name="second.tflite"))
    device = dataclasses.replace(report.devices[0], device="ssh://board")
    elsewhere = dataclasses.replace(report, devices=(*report.devices, device))
    assert missing_times(report, report) == missing_times(report, two) == []
    name = "look.w8a8.tflite on local"
    assert missing_times(report, timeless) == [
        f"{name}: no time of a tile in the second report, which has too few runs; {MORE_RUNS}"
    ]
    assert missing_times(timeless, report) == [
        f"{name}: no time in the first report, which has too few runs; {MORE_RUNS}"
    ]
    assert missing_times(two, report) == ["second.tflite on local: only in the first report; profile again with it"]
    assert missing_times(elsewhere, report) == ["ssh://board: only in the first report; profile again with it"]
    for folder, one in (("a", report), ("b", timeless)):
        write_report(one, tmp_path / folder)
    files = [str(tmp_path / folder / "report.json") for folder in ("a", "b")]
    plain = CliRunner().invoke(main, ["compare", *files])
    assert plain.exit_code == 0
    assert "not compared: look.w8a8.tflite on local: no time of a tile" in plain.stderr
    gate = CliRunner().invoke(main, ["compare", *files, "--fail-slower", "10"])
    assert gate.exit_code == 1
    assert "Error: look.w8a8.tflite on local: no time of a tile" in gate.stderr
    write_report(timed(report, 9.0, threads=4), tmp_path / "a")
    write_report(timed(report, 9.0, threads=1), tmp_path / "b")
    gate = CliRunner().invoke(main, ["compare", *files, "--fail-slower", "10"])
    assert gate.exit_code == 1
    assert gate.stderr.endswith(f"{ALIKE}\n")


def test_the_command_exits_3_where_a_time_grew_too_much(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(main.commands, "compare", cli.compare)  # type: ignore[attr-defined]
    for name, ms in (("a", 4.0), ("b", 5.0)):
        write_report(changed(report, ms=ms), tmp_path / name)
    files = [str(tmp_path / name / "report.json") for name in ("a", "b")]
    run = CliRunner().invoke
    plain = run(main, ["compare", *files])
    assert plain.exit_code == 0
    assert "slower: look.w8a8.tflite on local: tile 4 -> 5 ms (+25.0 %)" in plain.stdout
    failing = run(main, ["compare", *files, "--fail-slower", "10", "--json"])
    assert failing.exit_code == 3
    assert json.loads(failing.stdout)[0]["verdict"] == "slower"
    assert "+25.0 %" in failing.stderr
    assert run(main, ["compare", *files, "--fail-slower", "30"]).exit_code == 0
    assert run(main, ["compare", *reversed(files), "--fail-slower", "1"]).exit_code == 0
    assert run(main, ["compare", files[0], str(tmp_path / "none.json")]).exit_code == 2


def test_a_time_that_grew_within_the_noise_is_not_passed(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(main.commands, "compare", cli.compare)  # type: ignore[attr-defined]
    files = [str(tmp_path / name) for name in ("a", "b")]
    write_report(changed(report, noise=85.0), tmp_path / "a")
    for ms, half_width, noise, percent, code in (
        (6.4, 0.1, 85.0, "10", 1),  # 60 % slower on a noisy machine
        (6.4, 4.0, 3.0, "10", 1),  # the intervals overlap
        (4.3, 0.1, 85.0, "10", 0),  # not more than was allowed
        (4.05, 0.1, 3.0, "0", 0),  # below what counts at all
        (3.0, 0.1, 85.0, "10", 0),
    ):
        write_report(changed(report, ms=ms, half_width=half_width, noise=noise), tmp_path / "b")
        done = CliRunner().invoke(main, ["compare", *files, "--fail-slower", percent])
        assert (done.exit_code, "cannot be decided" in done.stderr) == (code, code == 1)
    plain = CliRunner().invoke(main, ["compare", *files])
    assert plain.exit_code == 0
    assert "same within noise (up to 85 %)" in plain.stdout


def test_too_slow_is_beyond_the_percentage(report: Report) -> None:
    changes = compare(changed(report), changed(report, ms=4.6))
    assert len(too_slow(changes, 10.0)) == 1
    assert too_slow(changes, 20.0) == []


def within(report: Report, name: str, ms: float | None, psnr_db: float | None) -> ModelProfile:
    """A model whose frame takes so long."""
    (model,) = report.devices[0].models
    assert model.frame is not None
    assert model.accuracy is not None
    latency = dataclasses.replace(model.tile.latency, p50_ms=ms, p90_ms=ms)
    accuracy = None if psnr_db is None else dataclasses.replace(model.accuracy, psnr_db=psnr_db)
    frame = dataclasses.replace(model.frame, latency=latency)
    return dataclasses.replace(model, name=name, frame=frame, accuracy=accuracy)


def test_a_budget_names_the_best_that_fits_and_why_not_the_others(report: Report) -> None:
    models = [within(report, n, ms, db) for n, ms, db in (("a", 10, 20), ("b", 15, 25), ("c", 20, 30), ("d", None, 40))]
    best, *others = budget_lines(with_models(report, *models).devices[0], 16.0)
    assert best == "best within 16 ms a frame on local: b (15.0 ms, 25.00 dB)"
    assert "a: fits (10.0 ms), 5.00 dB worse" in others
    assert "c: takes 20.0 ms, 4.0 too long" in others
    assert "d: too few runs for a time" in others
    assert "broken.tflite: could not be measured" in others


def test_a_budget_that_nothing_fits_says_by_how_much(report: Report) -> None:
    lines = budget_lines(with_models(report, within(report, "a", 10, 20)).devices[0], 5.0)
    assert lines == [
        "nothing fits into 5 ms a frame on local",
        "a: takes 10.0 ms, 5.0 too long",
        "broken.tflite: could not be measured",
    ]
    assert budget_lines(with_models(report).devices[0], 5.0) == [
        "nothing was measured on local, so nothing can be chosen", "broken.tflite: could not be measured"
    ]  # fmt: skip


def test_without_quality_the_fastest_is_best(report: Report) -> None:
    models = [within(report, name, ms, None) for name, ms in (("a", 10), ("b", 5))]
    assert budget_lines(with_models(report, *models).devices[0], 16.0)[0].startswith(
        "best within 16 ms a frame on local: b"
    )


def memory(report: Report, mb: float) -> Report:
    (model,) = report.devices[0].models
    return with_models(report, dataclasses.replace(model, peak_memory_mb=mb))


@pytest.mark.parametrize(
    ("mb", "verdict"), [(104.0, "same"), (106.0, "larger"), (96.0, "same"), (94.0, "smaller"), (100.0, "same")]
)
def test_memory_counts_from_five_percent(report: Report, mb: float, verdict: str) -> None:
    assert verdicts(memory(report, 100.0), memory(report, mb))["peak memory"] == verdict


@pytest.mark.parametrize(("db", "verdict"), [(24.508, "same"), (24.512, "better"), (24.488, "worse"), (24.492, "same")])
def test_quality_counts_from_a_hundredth_of_a_decibel(report: Report, db: float, verdict: str) -> None:
    assert verdicts(changed(report, psnr_db=24.5), changed(report, psnr_db=db))["PSNR"] == verdict


def test_the_noise_of_either_run_counts(report: Report) -> None:
    """A first run on a busy machine says as little as a second one."""
    noisy, calm = changed(report, noise=30.0), changed(report, ms=5.0, noise=3.0)
    assert verdicts(noisy, calm)["tile"] == "same"
    assert verdicts(changed(report, noise=3.0), changed(report, ms=5.0, noise=30.0))["tile"] == "same"
    assert verdicts(changed(report, noise=3.0), calm)["tile"] == "slower"


def test_a_median_without_an_interval_decides_nothing(report: Report) -> None:
    """Of five runs there is a median, and no interval that it is known to lie in."""
    (model,) = changed(report, ms=9.0).devices[0].models
    latency = dataclasses.replace(model.tile.latency, p50_low_ms=None, p50_high_ms=None, runs=5)
    few = with_models(report, dataclasses.replace(model, tile=dataclasses.replace(model.tile, latency=latency)))
    for before, after in ((changed(report), few), (few, changed(report))):
        assert verdicts(before, after)["tile"] == "same"


def test_the_same_raw_at_another_size_is_another_raw(report: Report) -> None:
    for field in ("width", "height"):
        size = getattr(report.raw, field) + 2
        other = dataclasses.replace(report, raw=dataclasses.replace(report.raw, **{field: size}))
        with pytest.raises(UsageError, match="different raws"):
            compare(report, other)


def slow_at_times(report: Report, name: str, p50: float, p90: float | None, psnr_db: float) -> ModelProfile:
    model = within(report, name, p50, psnr_db)
    assert model.frame is not None
    latency = dataclasses.replace(model.frame.latency, p90_ms=p90)
    return dataclasses.replace(model, frame=dataclasses.replace(model.frame, latency=latency))


def test_a_budget_is_held_by_nine_frames_of_ten(report: Report) -> None:
    """A median within the budget is half of the frames too late."""
    models = [slow_at_times(report, "steady", 14, 16, 20), slow_at_times(report, "jumpy", 12, 19, 30)]
    best, *others = budget_lines(with_models(report, *models).devices[0], 16.0)
    assert best == "best within 16 ms a frame on local: steady (16.0 ms, 20.00 dB)"  # as long as allowed is no longer
    assert "jumpy: takes 19.0 ms, 3.0 too long" in others


def test_where_no_frame_was_timed_tiles_fit_a_budget(report: Report) -> None:
    """Phones time tiles alone."""
    models = []
    for name, p50, p90, db in (("a", 10, 15, 20), ("b", 10, 20, 30), ("c", 15.0, None, 10)):
        model = within(report, name, 1, db)
        latency = dataclasses.replace(model.tile.latency, p50_ms=p50, p90_ms=p90)
        models.append(dataclasses.replace(model, frame=None, tile=dataclasses.replace(model.tile, latency=latency)))
    best, *others = budget_lines(with_models(report, *models).devices[0], 16.0)
    assert best == "best within 16 ms a tile on local: a (15.0 ms, 20.00 dB)"
    assert "b: takes 20.0 ms, 4.0 too long" in others
    assert "c: fits (15.0 ms), 10.00 dB worse" in others
    assert budget_lines(with_models(report, *models).devices[0], 5.0)[0] == "nothing fits into 5 ms a tile on local"


def test_without_quality_others_that_fit_are_slower(report: Report) -> None:
    models = [within(report, name, ms, None) for name, ms in (("a", 10), ("b", 5))]
    _, *others = budget_lines(with_models(report, *models).devices[0], 16.0)
    assert [line for line in others if "fits" in line] == ["a: fits (10.0 ms), slower"]
