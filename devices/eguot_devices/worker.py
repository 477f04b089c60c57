"""The process that measures, on whatever machine it is started: `python -P -m eguot_devices.worker`.

One request comes as a line of JSON on stdin: {"protocol": 2, "op": "machine"}, or with the op "measure" or "reference"
and a "job". Lines of JSON go to stdout: {"progress": "..."} any number of times, then one of {"result": {...}} and
{"error": "..."}. What libraries print on stdout goes to stderr, so the answers stay clean. Who asks keeps stdin open as
long as it wants an answer; a worker whose asker is gone ends.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from eguot_sdk.errors import EguotError

from .machine import this_machine
from .measure import GOLDEN_OUTPUT, Job, golden_output, measure
from .schema import from_dict, to_dict

PROTOCOL = 2


def main() -> int:
    """Answer one request; the exit code is 0 where an answer was given, be it an error in words."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    line = sys.stdin.readline()
    threading.Thread(target=_end_with_asker, daemon=True).start()
    return serve(io.StringIO(line), answers)


def _end_with_asker() -> None:
    while os.read(0, 4096):  # not sys.stdin, whose lock would be held at the end of the process
        pass
    os._exit(3)


def serve(requests: IO[str], answers: IO[str]) -> int:
    """One request in, its answers out."""

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        say({"result": _answer(requests.readline(), lambda words: say({"progress": words}))})
    except EguotError as error:
        say({"error": " ".join(str(error).split())})
    return 0


def _answer(line: str, on_progress: Callable[[str], None]) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except ValueError as error:
        raise EguotError(f"worker: a request is one line of JSON, not {line!r:.60}") from error
    if not isinstance(request, dict) or request.get("protocol") != PROTOCOL:
        raise EguotError(f"worker: speaks protocol {PROTOCOL}: both sides must run the same version of eguot-sdk")
    operation = request.get("op")
    if operation == "machine":
        return to_dict(this_machine())
    if operation == "measure":
        return to_dict(measure(from_dict(Job, request.get("job"), "job"), on_progress))
    if operation == "reference":
        return _reference(from_dict(Job, request.get("job"), "job"))
    raise EguotError(f"worker: knows the operations machine, measure and reference, not {operation!r:.40}")


def _reference(job: Job) -> dict[str, Any]:
    """What LiteRT's reference kernels make of the golden input, into the folder for outputs."""
    if job.golden is None:
        raise EguotError("worker: a reference needs a golden input")
    output = golden_output(Path(job.model), Path(job.golden), kernels="reference")
    np.save(Path(job.outputs) / GOLDEN_OUTPUT, output, allow_pickle=False)
    return {}


if __name__ == "__main__":
    sys.exit(main())
