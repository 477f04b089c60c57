from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from samples import job

from eguot_devices.schema import Machine, ModelProfile, from_dict, to_dict
from eguot_devices.targets.local import WORKER
from eguot_devices.worker import serve


def answers(request: str) -> list[dict[str, Any]]:
    out = io.StringIO()
    assert serve(io.StringIO(request + "\n"), out) == 0
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_machine_tells_what_it_is() -> None:
    (answer,) = answers('{"protocol": 2, "op": "machine"}')
    assert from_dict(Machine, answer["result"]).cores >= 1


@pytest.mark.usefixtures("small_budgets")
def test_a_model_is_measured_with_progress(shipped: Path, tmp_path: Path) -> None:
    request = to_dict(job(shipped / "tiny.w8a8.tflite", tmp_path))
    *progress, last = answers(json.dumps({"protocol": 2, "op": "measure", "job": request}))
    assert from_dict(ModelProfile, last["result"]).name == "tiny"
    assert len(progress) > 10
    assert all(list(answer) == ["progress"] for answer in progress)


@pytest.mark.parametrize(
    ("request_line", "message"),
    [
        ("what?", "one line of JSON"),
        ("[]", "protocol 2"),
        ('{"protocol": 1, "op": "machine"}', "protocol 2"),
        ('{"protocol": 2, "op": "fly"}', "not 'fly'"),
        ('{"protocol": 2, "op": "measure"}', "expected a JSON object"),
        ('{"protocol": 2, "op": "measure", "job": {"name": "x"}}', "key 'model' is missing"),
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
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stderr is not None
        worker.stdin.write('{"protocol": 2, "op": "machine"}\n')
        worker.stdin.flush()
        (line,) = worker.stdout.read().splitlines()
        said = worker.stderr.read()
    assert "result" in json.loads(line)
    assert "noise on stdout" in said


def test_a_worker_ends_with_who_asked(tmp_path: Path) -> None:
    code = "import time, eguot_devices.worker as w; w.this_machine = lambda: time.sleep(600); w.main()"
    with subprocess.Popen([*WORKER[:2], "-c", code], stdin=PIPE, stdout=PIPE, text=True) as worker:
        assert worker.stdin is not None
        worker.stdin.write('{"protocol": 2, "op": "machine"}\n')
        worker.stdin.close()
        assert worker.wait(60) == 3
