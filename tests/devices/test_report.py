from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
from samples import with_models

from eguot_devices.profile import UNREACHED
from eguot_devices.report import device_lines, read_report, to_csv, to_json, to_table, write_report
from eguot_devices.schema import DeviceReport, Failure, Report, from_dict
from eguot_sdk.errors import EguotError, OutputError, UsageError


def test_json_reads_back_equal(report: Report) -> None:
    assert from_dict(Report, json.loads(to_json(report))) == report


def test_csv_has_a_row_per_model_with_units_in_the_header(report: Report) -> None:
    (row,) = csv.DictReader(io.StringIO(to_csv(report)))
    assert row["name"] == "look.w8a8.tflite"
    assert row["device"] == "local"
    assert float(row["tile_latency_p50_ms"]) == 4.0
    assert row["frame_per_megapixel_p50_ms"] == ""
    assert float(row["accuracy_psnr_db"]) == 24.5
    assert float(row["peak_memory_mb"]) == 101.0


def test_csv_of_models_with_and_without_pairs_lines_up(report: Report) -> None:
    (model,) = report.devices[0].models
    other = dataclasses.replace(model, name="other", accuracy=None, frame=None)
    rows = list(csv.DictReader(io.StringIO(to_csv(with_models(report, other, model)))))
    assert [row["name"] for row in rows] == ["other", model.name]
    assert [row["accuracy_ssim"] for row in rows] == ["", "0.91"]


def test_the_table_says_what_a_person_needs(report: Report) -> None:
    lines = to_table(report).splitlines()
    row = next(line for line in lines if line.startswith("look.w8a8.tflite")).split()
    assert row[:7] == ["look.w8a8.tflite", "70", "18", "276x276", "4.00", "±5%", "5.50"]
    assert row[7:] == ["n/a", "n/a", "101", "24.50", "0.9100", "5.25", "1"]
    assert "night, 8 images" in lines[0]
    assert "Some CPU" in lines[2]
    text = "\n".join(lines)
    assert "ms by threads: 2: tile 4.00, frame n/a" in text
    assert "100 to 140 ms, 40 to 71 C, 2400 to n/a MHz" in text
    assert "120 mJ/MP, 4.5 W (RAPL package)" in text
    assert "times that are n/a: fewer than 5 runs" in text
    assert "5 of 6 operators are accelerated, not DEPTH_TO_SPACE" in text
    assert lines[-2:] == ["note: busy machine", "failed: broken.tflite: not a TFLite model"]


def test_tiles_of_different_sizes_are_said_to_be_so(report: Report) -> None:
    (model,) = report.devices[0].models
    larger = dataclasses.replace(model, name="b", tile=dataclasses.replace(model.tile, width_packed=390))
    table = to_table(with_models(report, model, larger))
    assert [line.split()[3] for line in table.splitlines() if line.startswith(("look.w8a8.tflite  ", "b  "))] == [
        "276x276", "276x390"
    ]  # fmt: skip
    assert "the tiles differ in size: their times do not compare" in table
    assert "differ in size" not in to_table(with_models(report, model, dataclasses.replace(model, name="b")))


def test_a_device_that_was_not_reached(report: Report) -> None:
    failed = tuple(Failure(name=name, message="ssh://board: cannot be reached") for name in ("a", "b"))
    gone = DeviceReport(device="ssh://board", machine=UNREACHED, models=(), failed=failed, notes=())
    assert device_lines(gone) == [
        "ssh://board: not reached", "failed: ssh://board: cannot be reached (a, b)"
    ]  # fmt: skip


def test_the_columns_of_the_table_line_up(report: Report) -> None:
    (model,) = report.devices[0].models
    long = dataclasses.replace(model, name="a-much-longer-name.w8a8.tflite", peak_memory_mb=12345.0)
    lines = to_table(with_models(report, model, long)).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("model"))
    rows = lines[start : start + 3]
    assert len({len(line) for line in rows}) == 1


def test_a_report_without_models_still_says_what_failed(report: Report) -> None:
    empty = with_models(report)
    assert "failed: broken.tflite" in to_table(empty)
    (header,) = to_csv(empty).splitlines()
    assert header == to_csv(report).splitlines()[0]


def test_files_are_written_whole(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    paths = write_report(report, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["report.csv", "report.html", "report.json"]
    assert paths == [folder / "report.json", folder / "report.csv", folder / "report.html"]
    assert (folder / "report.csv").read_text() == to_csv(report)


def test_names_that_are_no_utf8_and_texts_that_are_none_are_written(report: Report, tmp_path: Path) -> None:
    (model,) = report.devices[0].models
    odd = with_models(report, dataclasses.replace(model, name="look\udcff.tflite", runtime="a \ud800 b"))
    write_report(odd, tmp_path)
    assert read_report(tmp_path / "report.json") == odd
    row = (tmp_path / "report.csv").read_bytes().splitlines()[1]
    assert row.startswith(b"local,")
    assert b"look\xff.tflite" in row  # as on disk
    assert b"a \\ud800 b" in row
    assert (tmp_path / "report.html").is_file()


def test_a_folder_that_cannot_be_made_is_told(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        write_report(report, tmp_path / "file" / "folder")


def test_times_of_an_emulated_device_are_not_shown_and_it_is_said(report: Report) -> None:
    device = report.devices[0]
    emulated = dataclasses.replace(device, machine=dataclasses.replace(device.machine, emulated="QEMU"))
    table = to_table(dataclasses.replace(report, devices=(emulated,)))
    row = next(line for line in table.splitlines() if line.startswith("look.w8a8.tflite")).split()
    assert row == ["look.w8a8.tflite", "70", "n/a", "276x276", *["n/a"] * 4, "101", "24.50", "0.9100", "5.25", "1"]
    assert "medians" not in table
    assert [word for word in ("by threads", "without a pause", "mJ/MP") if word in table] == []
    assert "5 of 6 operators are accelerated" in table


def test_one_reason_for_all_models_is_said_once(report: Report) -> None:
    failed = tuple(Failure(name=name, message="ssh://board: cannot be reached") for name in ("a", "b", "c"))
    device = dataclasses.replace(report.devices[0], models=(), failed=failed)
    lines = to_table(dataclasses.replace(report, devices=(device,))).splitlines()
    assert [line for line in lines if "cannot be reached" in line] == [
        "failed: ssh://board: cannot be reached (a, b, c)"
    ]


def test_a_report_is_read_back_and_what_is_none_is_told(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    assert read_report(tmp_path / "report.json") == read_report(tmp_path) == report
    with pytest.raises(UsageError, match="cannot be read"):
        read_report(tmp_path / "none.json")
    (tmp_path / "old.json").write_text('{"version": 1}')
    with pytest.raises(EguotError, match="version 1"):
        read_report(tmp_path / "old.json")
    text = (tmp_path / "report.json").read_text()
    for value in ("NaN", "-Infinity", "1e999", "1" + 400 * "0"):
        (tmp_path / "number.json").write_text(text.replace('"load_ms": 18.4', f'"load_ms": {value}'))
        with pytest.raises(EguotError, match=r"load_ms: expected a finite number"):
            read_report(tmp_path / "number.json")
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(EguotError, match="not JSON"):
        read_report(tmp_path / "text.json")
