"""A stand-in for a phone: the device's side of the ADB protocol on a loopback port, enough for adb's shell, push, pull.

The commands run in this machine's shell under proot, which shows a folder as the phone's /data/local/tmp and puts small
programs (getprop, nproc) first on PATH. Protocol: Android's `adb/protocol.txt` and `SYNC.TXT`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from pathlib import Path

VERSION, MAX_DATA = 0x01000001, 1 << 18
BANNER = b"device::ro.product.name=stand;ro.product.model=Stand_in;ro.product.device=stand;features=shell_v2"


class FakeAdbd:
    """Serves until closed."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self._programs = folder, programs
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.commands: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # close alone would leave the thread waiting in accept
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            Transport(connection, self).run()

    def shell(self, command: str) -> subprocess.CompletedProcess[bytes]:
        """Run as the phone's shell would."""
        self.commands.append(command)
        path = f"{self._programs}:{os.environ['PATH']}"
        proot = ["proot", "-b", f"{self.folder}:/data/local/tmp", "-w", "/", "/bin/sh", "-c", command]
        return subprocess.run(proot, capture_output=True, env={"PATH": path, "PROOT_NO_SECCOMP": "1"}, check=False)

    def local(self, path: str) -> Path:
        """Where a path of the phone lies here."""
        return self.folder / Path(path).relative_to("/data/local/tmp")


class Transport:
    """One connection: messages of 24 bytes and their data, in both directions."""

    def __init__(self, connection: socket.socket, device: FakeAdbd) -> None:
        self._connection, self._device = connection, device
        self._writing = threading.Lock()
        self._streams: dict[int, Stream] = {}

    def run(self) -> None:
        while True:
            command, first, second, size, _, _ = struct.unpack("<4s5I", self._exactly(24))
            data = self._exactly(size)
            if command == b"CNXN":
                self.send(b"CNXN", VERSION, MAX_DATA, BANNER)
            elif command == b"OPEN":
                stream = Stream(self, first, data.rstrip(b"\0").decode(), self._device)
                self._streams[first] = stream
                self.send(b"OKAY", first, first)
                threading.Thread(target=stream.run, daemon=True).start()
            elif command == b"WRTE":
                self.send(b"OKAY", second, first)
                self._streams[first].inbox.feed(data)
            elif command == b"OKAY" and first in self._streams:
                self._streams[first].acknowledged.release()
            elif command == b"CLSE" and first in self._streams:
                self._streams.pop(first).inbox.end()

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        magic = int.from_bytes(command, "little") ^ 0xFFFFFFFF
        head = struct.pack("<4s5I", command, first, second, len(data), sum(data) & 0xFFFFFFFF, magic)
        with self._writing:
            self._connection.sendall(head + data)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not (piece := self._connection.recv(size - len(data))):
                raise EOFError
            data += piece
        return data


class Inbox:
    """Bytes that arrive in messages and are read in other pieces."""

    def __init__(self) -> None:
        self._data, self._ended, self._changed = b"", False, threading.Condition()

    def feed(self, data: bytes) -> None:
        with self._changed:
            self._data += data
            self._changed.notify()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()

    def exactly(self, size: int) -> bytes:
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._data) >= size or self._ended, 60) or len(self._data) < size:
                raise EOFError
            data, self._data = self._data[:size], self._data[size:]
            return data


class Stream:
    """One service of one connection. Ids of both sides are the same number here, which the protocol allows."""

    def __init__(self, transport: Transport, number: int, service: str, device: FakeAdbd) -> None:
        self._transport, self._number, self._service, self._device = transport, number, service, device
        self.inbox = Inbox()
        self.acknowledged = threading.Semaphore(0)

    def run(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            kind, _, argument = self._service.partition(":")
            if kind.split(",")[0] == "shell":
                self._shell(argument)
            elif kind == "sync":
                self._sync()
            self._transport.send(b"CLSE", self._number, self._number)

    def _write(self, data: bytes) -> None:
        for start in range(0, len(data), 1 << 16):
            self._transport.send(b"WRTE", self._number, self._number, data[start : start + (1 << 16)])
            self.acknowledged.acquire(timeout=60)

    def _shell(self, command: str) -> None:
        done = self._device.shell(command)
        for kind, data in ((1, done.stdout), (2, done.stderr), (3, bytes([done.returncode & 0xFF]))):
            if data:
                self._write(struct.pack("<BI", kind, len(data)) + data)

    def _sync(self) -> None:
        while True:
            request, size = struct.unpack("<4sI", self.inbox.exactly(8))
            if request == b"QUIT":
                return
            argument = self.inbox.exactly(size).decode()
            if request == b"STAT":
                path = self._device.local(argument)
                found = path.stat() if path.exists() else None
                values = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
                self._write(struct.pack("<4s3I", b"STAT", *values))
            elif request == b"SEND":
                self._receive(self._device.local(argument.rpartition(",")[0]))
            elif request == b"RECV":
                self._hand_out(self._device.local(argument))

    def _receive(self, path: Path) -> None:
        error = None if path.parent.is_dir() else b"No such file or directory"
        data = b""
        while True:
            kind, size = struct.unpack("<4sI", self.inbox.exactly(8))
            if kind == b"DONE":
                break
            data += self.inbox.exactly(size)
        if error is None:
            path.write_bytes(data)
            self._write(struct.pack("<4sI", b"OKAY", 0))
        else:
            self._write(struct.pack("<4sI", b"FAIL", len(error)) + error)

    def _hand_out(self, path: Path) -> None:
        if not path.is_file():
            error = b"No such file or directory"
            self._write(struct.pack("<4sI", b"FAIL", len(error)) + error)
            return
        data = path.read_bytes()
        for start in range(0, len(data), 1 << 16):
            piece = data[start : start + (1 << 16)]
            self._write(struct.pack("<4sI", b"DATA", len(piece)) + piece)
        self._write(struct.pack("<4sI", b"DONE", 0))
