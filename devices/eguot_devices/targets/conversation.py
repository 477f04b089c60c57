"""Talk to a worker process: one request, its progress, one answer; never longer than it stays silent.

Works with anything that starts a worker and joins it by stdin and stdout: this machine's Python today.
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

from eguot_sdk.errors import EguotError

from ..measure import OnProgress
from ..worker import PROTOCOL

SILENCE_S = 300.0
"""A worker says something after each run; one that is silent for so long hangs."""
MAX_LINE = 1 << 20


def ask(
    command: Sequence[str],
    request: dict[str, Any],
    on_progress: OnProgress,
    *,
    silence_s: float = SILENCE_S,
    end: float | None = None,
) -> dict[str, Any]:
    """Start a worker, put one request to it, return its result. Raises EguotError: its own, or how it died.

    `end`: monotonic time at which the worker is ended.
    """
    with tempfile.TemporaryFile() as messages:
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages, text=True)
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.write(json.dumps({"protocol": PROTOCOL, **request}) + "\n")
                worker.stdin.flush()
            lines: queue.SimpleQueue[str] = queue.SimpleQueue()
            threading.Thread(target=_forward, args=(worker.stdout, lines), daemon=True).start()
            return listen(lines.get, lambda: how_it_died(worker.wait(), _tail(messages)), on_progress, silence_s, end)
        finally:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()
            worker.stdout.close()


def listen(
    next_line: Callable[..., str],
    why_it_ended: Callable[[], str],
    on_progress: OnProgress,
    silence_s: float,
    end: float | None,
) -> dict[str, Any]:
    """Follow a worker's answers until its result. `next_line(timeout=s)`: a line, "" at the end, or queue.Empty."""
    while True:
        left = silence_s if end is None else min(silence_s, end - time.monotonic())
        try:
            if left <= 0:
                raise queue.Empty
            line = next_line(timeout=left)
        except queue.Empty:
            if end is not None and time.monotonic() >= end:
                raise EguotError("not finished within --max-seconds, and ended") from None
            raise EguotError(f"the measuring process said nothing for {silence_s:g} s and was ended") from None
        if not line:
            raise EguotError(why_it_ended())
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise EguotError(f"the measuring process answered {line.strip()!r:.80}, which is no answer")
        if "error" in answer:
            raise EguotError(str(answer["error"]))
        if "result" in answer:
            result: dict[str, Any] = answer["result"]
            return result
        on_progress(str(answer.get("progress", "")))


def _forward(answers: IO[str], lines: queue.SimpleQueue[str]) -> None:
    """Lines of a pipe into a queue, which can be waited for with a time limit; "" at the end."""
    with contextlib.suppress(ValueError):  # closed under our hands after a time-out
        while line := answers.readline(MAX_LINE):
            lines.put(line)
    lines.put("")


def _tail(messages: IO[bytes]) -> str:
    messages.seek(0)
    return messages.read(MAX_LINE).decode("utf-8", "replace")


def how_it_died(code: int, messages: str) -> str:
    """In one line, with the last of what it said on stderr."""
    said = [line for line in messages.splitlines() if line.strip()]
    last = f": {said[-1].strip()[:200]}" if said else ""
    if code < 0:
        return f"the measuring process was ended by {_signal_name(-code)}{last}"
    return f"the measuring process ended with code {code} and no result{last}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
