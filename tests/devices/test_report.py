from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest

from eguot_devices.report import to_csv, to_json, to_table, write_report
from eguot_devices.schema import Report, from_dict
from eguot_sdk.errors import OutputError


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
    (model,) = report.models
    other = dataclasses.replace(model, name="other", accuracy=None)
    rows = list(csv.DictReader(io.StringIO(to_csv(dataclasses.replace(report, models=(other, model))))))
    assert [row["name"] for row in rows] == ["other", model.name]
    assert [row["accuracy_ssim"] for row in rows] == ["", "0.91"]


def test_the_table_says_what_a_person_needs(report: Report) -> None:
    lines = to_table(report).splitlines()
    row = next(line for line in lines if line.startswith("look.w8a8.tflite")).split()
    assert row[:6] == ["look.w8a8.tflite", "70", "18", "4.00", "±5%", "5.50"]
    assert row[6:] == ["n/a", "n/a", "101", "24.50", "0.9100", "5.25"]
    assert "Some CPU" in lines[0]
    assert "night, 8 images" in lines[1]
    assert lines[-2:] == ["note: busy machine", "failed: broken.tflite: not a TFLite model"]


def test_the_columns_of_the_table_line_up(report: Report) -> None:
    (model,) = report.models
    long = dataclasses.replace(model, name="a-much-longer-name.w8a8.tflite", peak_memory_mb=12345.0)
    lines = to_table(dataclasses.replace(report, models=(model, long))).splitlines()
    rows = [line for line in lines if line.startswith(("model", "look", "a-much"))]
    assert len(rows) == 3
    assert len({len(line) for line in rows}) == 1


def test_a_report_without_models_still_says_what_failed(report: Report) -> None:
    empty = dataclasses.replace(report, models=())
    assert "failed: broken.tflite" in to_table(empty)
    (header,) = to_csv(empty).splitlines()
    assert header == to_csv(report).splitlines()[0]


def test_files_are_written_whole(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    paths = write_report(report, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["report.csv", "report.json"]
    assert paths == [folder / "report.json", folder / "report.csv"]
    assert (folder / "report.csv").read_text() == to_csv(report)


def test_a_folder_that_cannot_be_made_is_told(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        write_report(report, tmp_path / "file" / "folder")
