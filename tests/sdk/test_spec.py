"""What a spec refuses: it is read from files that come from anywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eguot_sdk.errors import IspFileError
from eguot_sdk.spec import MAX_DEPTH, MAX_SPEC_BYTES, IspSpec

SPEC = IspSpec(name="t", architecture="a", parameters=3, halo=4, multiple=2)


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(SPEC.to_json()) | changes)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"version": 2}, "version 2 is not understood"),
        ({"parameters": -1}, "parameters"),
        ({"parameters": True}, "parameters"),
        ({"halo": 3}, "multiples of 2"),
        ({"halo": 5000}, "halo"),
        ({"tile": 0}, "tile"),
        ({"scale_factor": 9}, "scale_factor"),
        ({"planes": ["R", "G", "G", "B"]}, "planes"),
        ({"planes": [1, 2, 3, 4]}, "planes"),
        ({"companding": 0.0}, "companding"),
        ({"companding": float("nan")}, "nan is no number"),
        ({"metrics": [{"psnr_db": float("inf")}]}, "inf is no number"),
        ({"metrics": [1]}, "list of objects"),
        ({"color_input": "xyz"}, "color_input"),
        ({"layout": "HWC"}, "layout"),
        ({"output_space": "P3"}, "output_space"),
        ({"precision": "w4"}, "precision"),
        ({"input": {"dtype": "int8", "scale": 0.0}}, "scale"),
        ({"input": {"dtype": "float32", "zero_point": 1}}, "float32"),
        ({"output": {"dtype": "int8", "zero_point": 1 << 15}}, "zero_point"),
        ({"output": []}, "JSON object"),
        ({"golden": {"input_shape": [1], "input_sha256": "x"}}, "output_sha256"),
        ({"provenance": nested(MAX_DEPTH)}, "deep"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(IspFileError, match=words):
        IspSpec.from_json(changed(**changes))


@pytest.mark.parametrize("key", ["name", "architecture", "parameters", "halo"])
def test_a_key_that_is_missing_is_named(key: str) -> None:
    data = json.loads(SPEC.to_json())
    del data[key]
    with pytest.raises(IspFileError, match=f"'{key}' is missing"):
        IspSpec.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '"' + "x" * MAX_SPEC_BYTES + '"'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(IspFileError, match=r"^spec: "):
        IspSpec.from_json(text)


def test_the_deepest_that_is_read_can_be_written() -> None:
    spec = IspSpec.from_json(changed(provenance=nested(MAX_DEPTH - 1)))
    assert IspSpec.from_json(spec.to_json()) == spec
