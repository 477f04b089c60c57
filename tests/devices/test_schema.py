from __future__ import annotations

import json
from typing import Any

import pytest

from eguot_devices.schema import Latency, Report, from_dict, to_dict
from eguot_sdk.errors import EguotError


def test_a_report_comes_back_from_json_equal(report: Report) -> None:
    assert from_dict(Report, json.loads(json.dumps(to_dict(report)))) == report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": 1}, "unknown key 'speed'"),
        ({"command": 7}, "report.command: expected str, found 7"),
        ({"devices": {}}, "report.devices: expected a list"),
        ({"devices": [{}]}, r"report.devices\[0\]: key 'device' is missing"),
        ({"raw": None}, "report.raw: expected a JSON object"),
        ({"version": True}, "report.version: expected int"),
    ],
)
def test_what_is_no_report_is_refused_by_key(report: Report, change: dict[str, Any], message: str) -> None:
    with pytest.raises(EguotError, match=message):
        from_dict(Report, to_dict(report) | change)


def test_whole_numbers_are_taken_where_json_wrote_a_float_without_a_point() -> None:
    data = {
        "first_ms": 1,
        "p50_ms": None,
        "p50_low_ms": None,
        "p50_high_ms": None,
        "p90_ms": 2,
        "p99_ms": None,
        "runs": 3,
    }
    latency = from_dict(Latency, data)
    assert (latency.first_ms, latency.p90_ms) == (1.0, 2.0)
    assert isinstance(latency.first_ms, float)
    with pytest.raises(EguotError, match="runs: expected int"):
        from_dict(Latency, data | {"runs": 3.5})
