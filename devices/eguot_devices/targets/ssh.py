"""`ssh://[user@]host[:port][/path/to/python3]`: a board, reached by this system's OpenSSH.

Keys, aliases, jump hosts and shared connections are as the person's own ssh has them; nothing is asked (BatchMode). One
connection carries everything: `agent` runs at its other end, keeps a folder there and removes it however the connection
ends. The SDK of this installation is brought along, with what of its dependencies the board lacks, so the board needs
Python 3.11 and no internet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import re
import shlex
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.pairs import list_pairs

from .. import wheels
from ..measure import GOLDEN_OUTPUT, Job, OnProgress
from ..schema import Machine, ModelProfile, from_dict, to_dict
from ..worker import PROTOCOL
from .base import Target
from .conversation import SILENCE_S, how_it_died, listen

SETTINGS = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=10", "ServerAliveCountMax=3")
BOOT = "import sys;exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
HELLO_S = 60.0
PING_S = 20.0
OLDEST_PYTHON = (3, 11)
FACTS = "eguot_devices.machine"
MAX_NOISE_LINES = 200
MAX_LINE = 1 << 20
PIECE = 1 << 14
FORM = re.compile(
    r"ssh://(?:(?P<user>[^@/\s]+)@)?(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:/@\s\[\]]+)(?::(?P<port>\d+))?(?P<python>/\S+)?"
)


class SshTarget(Target):
    """A board behind ssh; `open` reaches it."""

    def __init__(self, device: str) -> None:
        found = FORM.fullmatch(device)
        if found is None or found["host"].startswith("-") or (found["user"] or "").startswith("-"):
            raise UsageError(f"--device {device}: expected ssh://[user@]host[:port][/path/to/python3]")
        self.device = device
        self._port = found["port"]
        host = unquote(found["host"]).strip("[]")
        self._host = f"{found['user']}@{host}" if found["user"] else host
        self._python = found["python"] or "python3"
        self._link: _Link | None = None
        self._brought: set[str] = set()

    def open(self, on_progress: OnProgress, end: float | None = None) -> None:
        self._open(on_progress, end, everything=True)

    def look(self) -> Machine:
        with self:
            self._open(lambda words: None, None, everything=False)
            return from_dict(Machine, self._link_open().work({}, lambda words: None, None, module=FACTS), "machine")

    def _open(self, on_progress: OnProgress, end: float | None, *, everything: bool) -> None:
        settings = [word for setting in SETTINGS for word in ("-o", setting)]
        port = ["-p", self._port] if self._port else []
        # The board's shell reads this one constant line; all names and files follow as data.
        remote = f"{shlex.quote(self._python)} -u -c {shlex.quote(BOOT)}"
        by_hand = shlex.join(["ssh", "-o", "BatchMode=yes", *port, "--", self._host, "true"])
        self._link = _Link(self.device, ["ssh", "-T", *settings, *port, "--", self._host, remote], by_hand, end)
        try:
            on_progress("connecting")
            facts = self._link.hello(self._python)
            python = tuple(facts["python"])
            if python[:2] < OLDEST_PYTHON:
                raise EguotError(
                    f"{self.device}: its {self._python} is {'.'.join(map(str, python))}, and 3.11 or newer is needed: "
                    "name another, as in ssh://host/usr/bin/python3.11"
                )
            self._link.call({"op": "folder"})
            self._install(facts, on_progress, everything, end)
        except BaseException:
            self.close()
            raise

    def _install(self, facts: dict[str, Any], on_progress: OnProgress, everything: bool, end: float | None) -> None:
        """Bring our SDK, for files of the same version there may be older, and of its dependencies what is missing."""
        with tempfile.TemporaryDirectory() as folder:
            needed = [wheels.own_wheel(Path(folder))]
            on_progress("looking for wheels")
            if everything:
                board = {key: facts[key] for key in ("python", "machine", "libc", "installed")}
                needed += wheels.dependency_wheels(self.device, **board, end=end)
            for i, wheel in enumerate(needed, 1):
                on_progress(f"installing {i} of {len(needed)}: {wheel.name.split('-')[0]}")
                self._put(wheel, wheel.name)
                self._link_open().call({"op": "unpack", "path": wheel.name})

    def machine(self) -> Machine:
        return from_dict(Machine, self._work({"op": "machine"}, lambda words: None, None), "machine")

    def measure(self, job: Job, on_progress: OnProgress, end: float | None = None) -> ModelProfile:
        link = self._link_open()
        link.call({"op": "clear", "path": "job"})
        on_progress("sending files")
        names = {"model": f"job/{Path(job.model).name}"}
        self._put(Path(job.model), names["model"])
        if job.golden is not None:
            names["golden"] = "job/golden-input.npy"
            self._put(Path(job.golden), names["golden"])
        if job.raw is not None:
            names["raw"] = f"raw/{Path(job.raw).name}"
            self._put_once(Path(job.raw), names["raw"])
        pairs = [] if job.pairs is None else list_pairs(job.pairs)
        if job.pairs is not None:
            names["pairs"] = "pairs"
            for path in (p for pair in pairs for p in (pair.raw_path, pair.json_path, pair.truth_path)):
                self._put_once(path, f"pairs/{path.name}")
        link.call({"op": "clear", "path": "outputs"})
        sent = {key: f"{link.folder}/{name}" for key, name in names.items()}
        there = dataclasses.replace(
            job,
            model=sent["model"],
            golden=sent.get("golden"),
            raw=sent.get("raw"),
            pairs=sent.get("pairs"),
            outputs=f"{link.folder}/outputs",
        )
        result = self._work({"op": "measure", "job": to_dict(there)}, on_progress, end)
        on_progress("fetching results")
        for name in [*([GOLDEN_OUTPUT] if job.golden is not None else []), *(f"{pair.name}.png" for pair in pairs)]:
            (Path(job.outputs) / name).write_bytes(link.get(f"outputs/{name}"))
        return from_dict(ModelProfile, result, job.name)

    def _work(self, request: dict[str, Any], on_progress: OnProgress, end: float | None) -> dict[str, Any]:
        return self._link_open().work({"protocol": PROTOCOL, **request}, on_progress, end)

    def _put(self, path: Path, there: str) -> None:
        data = path.read_bytes()
        self._link_open().call({"op": "put", "path": there, "size": len(data)}, data)

    def _put_once(self, path: Path, there: str) -> None:
        if there not in self._brought:
            self._put(path, there)
            self._brought.add(there)

    def _link_open(self) -> _Link:
        if self._link is None:
            raise EguotError(f"{self.device}: not connected")
        return self._link

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()


class _Link:
    """An ssh process with an agent at its other end. `by_hand`: a command that shows whether the board is reached."""

    def __init__(self, device: str, command: list[str], by_hand: str, end: float | None) -> None:
        self._device, self._by_hand, self._end = device, by_hand, end
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the link
        try:
            self._ssh = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages, start_new_session=True
            )
        except FileNotFoundError:
            self._messages.close()
            raise EguotError(f"{device}: needs OpenSSH's `ssh`, which is not installed on this machine") from None
        self._answers: queue.SimpleQueue[tuple[bytes, bytes]] = queue.SimpleQueue()
        self._writing = threading.Lock()
        self._closed = threading.Event()
        self.folder = ""
        threading.Thread(target=self._read, daemon=True).start()

    def hello(self, python: str) -> dict[str, Any]:
        """Start the agent. Raises EguotError saying why there is none: no way there, no Python."""
        source = Path(__file__).parents[1].joinpath("agent.py").read_bytes()
        with contextlib.suppress(OSError):  # what went wrong is told by how ssh ends
            self._write(b"%d\n" % len(source) + source)
        for _ in range(MAX_NOISE_LINES):  # a login shell may greet first
            line, _payload = self._next(HELLO_S)
            if not line:
                raise EguotError(self._why_it_ended(python))
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
                if isinstance(answer, dict) and answer.get("hello"):
                    threading.Thread(target=self._ping, daemon=True).start()
                    return answer
        raise EguotError(
            f"{self._device}: its shell prints too much for anything else to be heard: quieten its profile"
        )

    def call(self, command: dict[str, Any], payload: bytes = b"") -> dict[str, Any]:
        """One command and its answer. Raises EguotError where the board cannot do it or is gone."""
        self._send(command, payload)
        answer, data = self._answer()
        if "folder" in answer:
            self.folder = str(answer["folder"])
        answer["payload"] = data
        return answer

    def get(self, path: str) -> bytes:
        data: bytes = self.call({"op": "get", "path": path})["payload"]
        return data

    def work(
        self, request: dict[str, Any], on_progress: OnProgress, end: float | None, module: str = "eguot_devices.worker"
    ) -> dict[str, Any]:
        """Run a worker there; see `conversation.ask`."""
        self._send({"op": "work", "module": module, "request": request})
        died = ""
        ended = False

        def next_line(*, timeout: float) -> str:
            nonlocal died, ended
            line, _ = self._next_raw(timeout)
            answer = self._decode(line)
            if "error" in answer:  # there is no worker: none could be started
                ended = True
                died = f"{self._device}: {str(answer['error'])[:200].lower()} on the board"
                return ""
            if "exit" in answer:
                ended = True
                died = how_it_died(int(answer["exit"]), str(answer["stderr"]))
                return ""
            return str(answer.get("line", "{}"))

        try:
            return listen(next_line, lambda: died, on_progress, SILENCE_S, _earlier(end, self._end))
        finally:
            if not ended and not self._closed.is_set() and self._ssh.poll() is None:
                with contextlib.suppress(EguotError):
                    self._send({"op": "stop"})
                    while "exit" not in self._decode(self._next(HELLO_S)[0]):
                        pass

    def close(self) -> None:
        """Tell the agent to clean up, wait for it, and end ssh."""
        if self._closed.is_set():
            return
        with contextlib.suppress(EguotError):
            self._send({"op": "end"})
        self._closed.set()
        with contextlib.suppress(OSError):
            assert self._ssh.stdin is not None
            self._ssh.stdin.close()
        try:
            self._ssh.wait(15)
        except subprocess.TimeoutExpired:
            self._ssh.terminate()
            self._ssh.wait()
        self._messages.close()

    def _send(self, command: dict[str, Any], payload: bytes = b"") -> None:
        try:
            self._write((json.dumps(command) + "\n").encode() + payload)
        except OSError as error:
            raise EguotError(self._why_it_ended(None)) from error

    def _write(self, data: bytes) -> None:
        """In pieces, so that a slow upload ends with the time that was given, and the session with it."""
        assert self._ssh.stdin is not None
        with self._writing:
            for start in range(0, len(data), PIECE):
                if start and self._end is not None and time.monotonic() >= self._end:
                    raise EguotError(f"{self._device}: not ready within --max-seconds")
                self._ssh.stdin.write(data[start : start + PIECE])
                self._ssh.stdin.flush()

    def _answer(self) -> tuple[dict[str, Any], bytes]:
        line, payload = self._next(SILENCE_S)
        answer = self._decode(line)
        if "error" in answer:
            raise EguotError(f"{self._device}: {str(answer['error'])[:200].lower()} on the board")
        return answer, payload

    def _decode(self, line: bytes) -> dict[str, Any]:
        if not line:
            raise EguotError(self._why_it_ended(None))
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise EguotError(f"{self._device}: answered {line[:60]!r}, which is no answer")
        return answer

    def _next(self, timeout: float) -> tuple[bytes, bytes]:
        left = timeout if self._end is None else min(timeout, max(self._end - time.monotonic(), 0.01))
        try:
            return self._next_raw(left)
        except queue.Empty:
            if left < timeout:
                raise EguotError(f"{self._device}: not ready within --max-seconds") from None
            raise EguotError(f"{self._device}: said nothing for {timeout:g} s") from None

    def _next_raw(self, timeout: float) -> tuple[bytes, bytes]:
        return self._answers.get(timeout=timeout)

    def _read(self) -> None:
        """Answers, and the bytes that follow some, into a queue; (b"", b"") at the end."""
        stream = self._ssh.stdout
        assert stream is not None
        with stream:
            while line := stream.readline(MAX_LINE):
                size = 0
                if line.startswith(b'{"size": '):
                    with contextlib.suppress(ValueError, TypeError):
                        size = int(json.loads(line)["size"])
                self._answers.put((line, stream.read(size) if size else b""))
        self._answers.put((b"", b""))

    def _ping(self) -> None:
        """The agent takes long silence for a lost connection."""
        while not self._closed.wait(PING_S):
            with contextlib.suppress(OSError, ValueError):
                self._write(b'{"op": "ping"}\n')

    def _why_it_ended(self, python: str | None) -> str:
        """One line from what ssh and the board's shell said last."""
        try:
            code = self._ssh.wait(10)
        except subprocess.TimeoutExpired:
            return f"{self._device}: stopped answering"
        self._messages.seek(0)
        text = self._messages.read(MAX_LINE).decode("utf-8", "replace")
        lines = [
            line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Warning: Permanently")
        ]
        last = lines[-1][:200] if lines else "it said nothing"
        if python is None:
            return f"{self._device}: the connection was lost ({last})"
        by_hand = f"check that `{self._by_hand}` works"
        if code == 127 or "not found" in last or "No such file" in last:
            return f"{self._device}: there is no {python} on the board: install Python 3.11 or newer ({last})"
        if "Permission denied" in text:
            return f"{self._device}: none of your keys is accepted there ({last}): {by_hand}"
        if "verification failed" in text:
            return f"{self._device}: its host key is unknown or has changed ({last}): connect once by hand and look"
        if code == 255:
            return f"{self._device}: cannot be reached ({last}): {by_hand}"
        return f"{self._device}: its {python} ended with code {code} ({last})"


def _earlier(a: float | None, b: float | None) -> float | None:
    return min((t for t in (a, b) if t is not None), default=None)
