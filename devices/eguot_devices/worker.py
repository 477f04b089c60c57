"""The process that measures, on whatever machine it is started: `python -P -m eguot_devices.worker`.

One request comes as a line of JSON on stdin: {"protocol": 1, "op": "machine"} or {"protocol": 1, "op": "measure",
"job": {...}}. Lines of JSON go to stdout: {"progress": "..."} any number of times, then one of {"result": {...}} and
{"error": "..."}. What libraries print on stdout goes to stderr, so the answers stay clean.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import IO, Any

from eguot_sdk.errors import EguotError

from .machine import this_machine
from .measure import Job, measure
from .schema import from_dict, to_dict

PROTOCOL = 1


def main() -> int:
    """Answer one request; the exit code is 0 where an answer was given, be it an error in words."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return serve(sys.stdin, answers)


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
    if request.get("op") == "machine":
        return to_dict(this_machine())
    if request.get("op") == "measure":
        return to_dict(measure(from_dict(Job, request.get("job"), "job"), on_progress))
    raise EguotError(f"worker: knows the operations machine and measure, not {request.get('op')!r:.40}")


if __name__ == "__main__":
    sys.exit(main())
