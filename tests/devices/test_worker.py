from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from eguot_devices.schema import Machine, ModelProfile, from_dict
from eguot_devices.targets.local import WORKER
from eguot_devices.worker import serve


def answers(request: str) -> list[dict[str, Any]]:
    out = io.StringIO()
    assert serve(io.StringIO(request + "\n"), out) == 0
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_machine_tells_what_it_is() -> None:
    (answer,) = answers('{"protocol": 1, "op": "machine"}')
    assert from_dict(Machine, answer["result"]).cores >= 1


@pytest.mark.usefixtures("small_budgets")
def test_a_model_is_measured_with_progress(shipped: Path) -> None:
    job = {"name": "tiny", "model": str(shipped / "tiny.w8a8.tflite"), "raw": None, "pairs": None}
    *progress, last = answers(json.dumps({"protocol": 1, "op": "measure", "job": job}))
    assert from_dict(ModelProfile, last["result"]).name == "tiny"
    assert len(progress) > 10
    assert all(list(answer) == ["progress"] for answer in progress)


@pytest.mark.parametrize(
    ("request_line", "message"),
    [
        ("what?", "one line of JSON"),
        ("[]", "protocol 1"),
        ('{"protocol": 2, "op": "machine"}', "protocol 1"),
        ('{"protocol": 1, "op": "fly"}', "not 'fly'"),
        ('{"protocol": 1, "op": "measure"}', "expected a JSON object"),
        ('{"protocol": 1, "op": "measure", "job": {"name": "x"}}', "key 'model' is missing"),
    ],
)
def test_a_request_that_makes_no_sense_is_answered_in_words(request_line: str, message: str) -> None:
    (answer,) = answers(request_line)
    assert message in answer["error"]


def test_what_libraries_print_does_not_reach_the_answers(shipped: Path) -> None:
    """LiteRT and others write to stdout from C; here a module does, before the answer."""
    code = (
        "import os, sys, eguot_devices.worker as w; machine = w.this_machine\n"
        "w.this_machine = lambda: (os.write(1, b'noise on stdout\\n'), print('more'), machine())[-1]\n"
        "sys.exit(w.main())"
    )
    command = [*WORKER[:2], "-c", code]
    request = '{"protocol": 1, "op": "machine"}\n'
    done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=60, check=True)
    (line,) = done.stdout.splitlines()
    assert "result" in json.loads(line)
    assert "noise on stdout" in done.stderr
