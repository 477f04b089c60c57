"""What a spec refuses: it is read from files that come from anywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from eguot_sdk.errors import IspFileError
from eguot_sdk.spec import MAX_DEPTH, MAX_SPEC_BYTES, IspSpec

README = Path(__file__).resolve().parents[2] / "README.md"
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
        ({"input": {"dtype": "int8", "scale": 0.0, "zero_point": 0}}, "scale"),
        ({"input": {"dtype": "float32", "scale": 1.0, "zero_point": 1}}, "float32"),
        ({"input": {"dtype": "int8", "zero_point": 0}}, "spec.input: key 'scale' is missing"),
        ({"output": {"dtype": "int8", "scale": 1.0, "zero_point": 1 << 15}}, "zero_point"),
        ({"output": []}, "JSON object"),
        ({"golden": {"input_shape": [1], "input_sha256": "x"}}, "output_sha256"),
        ({"provenance": nested(MAX_DEPTH)}, "deep"),
        ({"input": {"dtype": "int8", "scale": 10**400, "zero_point": 0}}, "1329 bits"),
        ({"companding": 10**400}, "1329 bits"),
        ({"name": "a\x1b[2Jb"}, "cannot be printed"),
        ({"name": "\ud800x"}, "no text"),
        ({"provenance": {"a": [{"\udcff": 1}]}}, "no text"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(IspFileError, match=words):
        IspSpec.from_json(changed(**changes))


def test_every_key_of_the_readme_is_demanded_by_name() -> None:
    text = README.read_text(encoding="utf-8")
    table = text[text.index("### The ISP spec") : text.index("### A pairs folder")]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    keys = [key for row in rows for key in re.findall(r"`(\w+)`", row)]
    assert len(keys) == 21
    for key in keys:
        data = json.loads(SPEC.to_json())
        del data[key]
        with pytest.raises(IspFileError, match=f"^spec: key '{key}' is missing"):
            IspSpec.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '"' + "x" * MAX_SPEC_BYTES + '"'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(IspFileError, match=r"^spec: "):
        IspSpec.from_json(text)


def test_the_deepest_that_is_read_can_be_written() -> None:
    spec = IspSpec.from_json(changed(provenance=nested(MAX_DEPTH - 1)))
    assert IspSpec.from_json(spec.to_json()) == spec
