"""What runs on a board that is reached by ssh: keeps a folder, starts workers in it, and leaves nothing behind.

Its source is sent through ssh and run by the board's own Python, so it uses nothing but the standard library and reads
on 3.7 as well, in order to say that 3.11 is needed. Stdin carries lines of JSON, some followed by bytes; stdout the
answers. It ends, and takes its folder and its worker with it, when stdin ends or says nothing for two minutes: a
connection that vanishes cleans up like one that was closed.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from io import BufferedReader
from typing import IO, Any, cast

HELLO = "eguot-agent 1"
SILENCE_S = 120


class Agent:
    """One session; `serve` runs it."""

    def __init__(self, commands: BufferedReader, answers: IO[bytes]) -> None:
        self._commands, self._answers = commands, answers
        self._inbox: queue.Queue[tuple[dict[str, Any] | None, bytes | bytearray]] = queue.Queue()
        self._worker: subprocess.Popen[bytes] | None = None
        self._folder = ""

    def serve(self) -> None:
        """Answer until told to end, or left alone."""
        threading.Thread(target=self._read_commands, daemon=True).start()
        try:
            self._say({"hello": HELLO, **facts()})
            while True:
                command, payload = self._inbox.get(timeout=SILENCE_S)
                if command is None or command["op"] == "end":
                    return
                try:
                    self._do(command, payload)
                except (OSError, zipfile.BadZipFile) as error:
                    self._say({"error": getattr(error, "strerror", None) or str(error)})
        except queue.Empty:
            return
        except BrokenPipeError:
            return
        finally:
            self._end_worker()
            if self._folder:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _do(self, command: dict[str, Any], payload: bytes | bytearray) -> None:
        op = command["op"]
        if op == "ping" or op == "line":
            return
        if op == "folder":
            self._folder = tempfile.mkdtemp(prefix="eguot-")
            self._say({"folder": self._folder})
        elif op == "put":
            path = os.path.join(self._folder, command["path"])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(payload)
            self._say({"ok": True})
        elif op == "unpack":
            path = os.path.join(self._folder, command["path"])
            with zipfile.ZipFile(path) as wheel:
                wheel.extractall(os.path.join(self._folder, "site"))
            os.remove(path)
            self._say({"ok": True})
        elif op == "get":
            with open(os.path.join(self._folder, command["path"]), "rb") as file:
                data = file.read()
            self._say({"size": len(data)})
            self._answers.write(data)
            self._answers.flush()
        elif op == "clear":
            shutil.rmtree(os.path.join(self._folder, command["path"]), ignore_errors=True)
            os.makedirs(os.path.join(self._folder, command["path"]))
            self._say({"ok": True})
        elif op == "work":
            self._work(command["module"], command["request"])

    def _work(self, module: str, request: dict[str, Any]) -> None:
        """Run a worker and pass its lines on, until it ends or the other side goes away."""
        env = dict(os.environ)
        site = os.path.join(self._folder, "site")
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (site, env.get("PYTHONPATH"))))
        self._worker = worker = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )
        said: list[bytes] = []
        assert worker.stdin is not None
        assert worker.stderr is not None
        messages = worker.stderr
        listener = threading.Thread(target=lambda: said.append(messages.read()[-4000:]), daemon=True)
        listener.start()
        worker.stdin.write((json.dumps(request) + "\n").encode())
        worker.stdin.flush()
        threading.Thread(target=self._read_lines, args=(worker.stdout,), daemon=True).start()
        while True:
            command, payload = self._inbox.get(timeout=SILENCE_S)
            if command is None or command["op"] == "end":
                self._inbox.put((None, b""))
                return
            if command["op"] == "line":
                self._say({"line": payload.decode("utf-8", "replace")})
            if command["op"] == "ended":
                break
            if command["op"] == "stop":
                self._end_worker()
        code = worker.wait()
        listener.join(5)
        self._end_worker()
        self._say({"exit": code, "stderr": b"".join(said).decode("utf-8", "replace")})

    def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        if worker.poll() is None:
            try:
                os.killpg(worker.pid, signal.SIGKILL)
            except OSError:
                worker.kill()
            worker.wait()

    def _read_lines(self, lines: IO[bytes]) -> None:
        for line in lines:
            self._inbox.put(({"op": "line"}, line))
        self._inbox.put(({"op": "ended"}, b""))

    def _read_commands(self) -> None:
        while True:
            line = self._commands.readline()
            command = json.loads(line) if line.endswith(b"\n") else None
            size = command.get("size", 0) if command else 0
            payload = self._read_payload(size)
            if command is None or len(payload) < size:
                self._inbox.put((None, b""))
                return
            self._inbox.put((command, payload))

    def _read_payload(self, size: int) -> bytearray:
        """As many bytes, or fewer at the end. Each piece counts as a word said: a slow upload is no silence."""
        payload = bytearray()
        while len(payload) < size:
            piece = self._commands.read1(min(size - len(payload), 1 << 16))
            if not piece:
                break
            payload += piece
            self._inbox.put(({"op": "ping"}, b""))
        return payload

    def _say(self, answer: dict[str, Any]) -> None:
        self._answers.write((json.dumps(answer) + "\n").encode())
        self._answers.flush()


def facts() -> dict[str, Any]:
    """What decides which wheels the board needs."""
    try:
        from importlib.metadata import distributions

        installed = {str(d.metadata["Name"]).lower().replace("_", "-"): d.version for d in distributions()}
    except ImportError:  # before 3.8
        installed = {}
    return {
        "python": list(sys.version_info[:3]),
        "machine": platform.machine(),
        "libc": list(platform.libc_ver()),
        "installed": installed,
    }


def main() -> None:
    """Serve on stdin and stdout."""
    for name in ("SIGHUP", "SIGTERM"):
        signal.signal(getattr(signal, name), lambda number, frame: sys.exit(1))
    Agent(cast("BufferedReader", sys.stdin.buffer), sys.stdout.buffer).serve()
    sys.stdout.flush()
    os._exit(0)  # a thread waits for stdin, which need never end


if __name__ == "__main__":
    main()
