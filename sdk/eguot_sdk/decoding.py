"""Reading raws in a process of its own, so that a decoder that crashes, hangs or eats memory costs one file only.

`Decoder` starts the process when it is first used and again after it died or was ended. What comes back through the
pipe is checked like any frame: the mosaic may not be larger than allowed, and `RawFrame` checks the rest.
Protocol: a line of JSON each way, and after the answer the mosaic, uint16, and the points of the gain maps that it
names, float32, both in the order of this machine, row by row.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from .errors import CorruptRaw, EguotError, MissingDependency, RawError, UnsupportedRaw
from .raw import AS_IN_FILE, MAX_PIXELS, MIN_SIDE, Overrides, RawFrame, read_raw
from .shading import MAX_POINTS, GainMap

MAX_SECONDS = 120.0
GRACE_S = 10
"""Seconds after its time that a decoder ends itself, should nobody be left to do it."""
MAX_MEMORY_BYTES = 4 << 30
Number = TypeVar("Number", bound=np.generic)
MAX_HEADER_BYTES = 1 << 20
PACKAGES = Path(__file__).resolve().parents[1]
ERRORS = {kind.__name__: kind for kind in (RawError, UnsupportedRaw, CorruptRaw)}


class Decoder:
    """Reads raws one after another in a process of its own. Use it in a `with` block; not from several threads."""

    def __init__(self, *, max_seconds: float = MAX_SECONDS, max_memory_bytes: int = MAX_MEMORY_BYTES) -> None:
        self.max_seconds, self.max_memory_bytes = max_seconds, max_memory_bytes
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, so that it is ready when the first raw is asked for."""
        if self._process is None or self._process.poll() is not None:
            seconds = math.ceil(self.max_seconds) + GRACE_S
            path = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
            self._process = subprocess.Popen(
                # -P: a folder of raws that is also the current one must not choose what gets imported.
                [sys.executable, "-P", "-m", "eguot_sdk.decoding", str(self.max_memory_bytes), str(seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
            )

    def read(self, path: Path, *, overrides: Overrides = AS_IN_FILE) -> RawFrame:
        """`read_raw` there. Raises RawError where the file cannot be read, whatever happens."""
        self.start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"path": os.path.abspath(path), "name": str(path)}
        overdue = threading.Event()

        def end() -> None:
            overdue.set()
            process.kill()

        timer = threading.Timer(self.max_seconds, end)
        timer.start()
        try:
            process.stdin.write(json.dumps({**request, "overrides": asdict(overrides)}).encode() + b"\n")
            process.stdin.flush()
            frame = _receive(process.stdout)
        except EguotError:
            raise
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
        ) as error:  # an answer that is none: it may be taken over
            status = self._end()
            if overdue.is_set():
                problem = f"took more than {self.max_seconds:g} s to decode and was given up"
            else:
                problem = f"the decoder died of it (status {status})"
            raise CorruptRaw(f"{path}: {problem}: the file is damaged, or too large for this machine") from error
        except BaseException:
            self._end()  # half an answer may be left in the pipe
            raise
        finally:
            timer.cancel()
        return frame

    def close(self) -> None:
        """End the process, whatever it is doing; closing twice is fine, and so is closing from another thread."""
        if self._process is not None:
            self._process.kill()  # closing a pipe would wait for the thread that reads from it
        self._end()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _end(self) -> int | None:
        if self._process is None:
            return None
        process, self._process = self._process, None
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()  # the process ends when its input does
        try:
            return process.wait(1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _receive(stream: IO[bytes]) -> RawFrame:
    line = stream.readline(MAX_HEADER_BYTES)
    if not line.endswith(b"\n"):
        raise EOFError
    header = json.loads(line)
    if "error" in header:
        if header["error"] == MissingDependency.__name__:
            raise MissingDependency("rawpy", needed_for="reading raw files", pip="rawpy")
        raise ERRORS.get(header["error"], RawError)(header["message"])
    height, width = header.pop("height"), header.pop("width")
    if not (height >= MIN_SIDE and width >= MIN_SIDE and height * width <= MAX_PIXELS):
        raise EOFError
    mosaic = _filled(stream, np.empty((height, width), np.uint16))
    if header["gain_maps"] is not None:
        header["gain_maps"] = tuple(_gain_map(stream, facts) for facts in header["gain_maps"])
    return _frame(mosaic, header)


def _gain_map(stream: IO[bytes], facts: Mapping[str, Any] | None) -> GainMap | None:
    if facts is None:
        return None
    height, width = facts["shape"]
    if not (height >= 1 and width >= 1 and height * width <= MAX_POINTS):
        raise EOFError
    points = _filled(stream, np.empty((height, width), np.float32))
    spacing, origin, area = (tuple(facts[name]) for name in ("spacing", "origin", "area"))
    return GainMap(points=points, spacing=spacing, origin=origin, area=area)


def _filled(stream: IO[bytes], array: NDArray[Number]) -> NDArray[Number]:
    view, at = array.data.cast("B"), 0
    while at < len(view):
        count = cast("io.BufferedReader", stream).readinto(view[at:])
        if not count:
            raise EOFError
        at += count
    array.setflags(write=False)
    return array


def _frame(mosaic: Any, header: Mapping[str, Any]) -> RawFrame:
    values = dict(header)
    for name in ("black", "white", "white_balance"):
        values[name] = None if values[name] is None else tuple(values[name])
    if values["matrix"] is not None:
        values["matrix"] = np.array(values["matrix"], np.float64)
        values["matrix"].setflags(write=False)
    return RawFrame(mosaic=mosaic, **values)


def _answer(out: BinaryIO, request: Mapping[str, Any], seconds: int) -> None:
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in request["overrides"].items()
    }
    try:
        with _at_most(seconds):
            frame = read_raw(request["path"], overrides=Overrides(**given), copy=False)
    except (EguotError, MemoryError) as error:
        text = (
            str(error).replace(request["path"], request["name"], 1)
            if isinstance(error, EguotError)
            else (f"{request['name']}: needs more memory than a decoder may take")
        )
        kind = type(error).__name__ if isinstance(error, EguotError) else RawError.__name__
        out.write(json.dumps({"error": kind, "message": text}).encode() + b"\n")
        out.flush()
        return
    header = {
        "height": frame.height,
        "width": frame.width,
        "cfa": frame.cfa,
        "black": frame.black,
        "white": frame.white,
        "white_balance": frame.white_balance,
        "matrix": None if frame.matrix is None else frame.matrix.tolist(),
        "gain_maps": None if frame.gain_maps is None else [_facts(gain_map) for gain_map in frame.gain_maps],
        "orientation": frame.orientation,
        "pixel_aspect": frame.pixel_aspect,
        "exif": dict(frame.exif),
        "source": request["name"],
        "origins": dict(frame.origins),
    }
    out.write(json.dumps(header).encode() + b"\n")
    out.write(np.ascontiguousarray(frame.mosaic).data)
    for gain_map in frame.gain_maps or ():
        if gain_map is not None:
            out.write(np.ascontiguousarray(gain_map.points, np.float32).data)
    out.flush()


def _facts(gain_map: GainMap | None) -> dict[str, Any] | None:
    if gain_map is None:
        return None
    return {"shape": gain_map.points.shape} | {name: getattr(gain_map, name) for name in ("spacing", "origin", "area")}


def main() -> None:
    """Answer requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too; who started it ends it
    _limit_memory(int(sys.argv[1]))
    seconds = int(sys.argv[2])
    # Answers go to a descriptor that nothing else writes to; what a library prints joins the errors.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        for line in sys.stdin.buffer:
            _answer(out, json.loads(line), seconds)


@contextlib.contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """End this process, whatever it is at, where the block takes longer. Who asked does so before, if still there."""
    if not hasattr(signal, "alarm"):  # Windows
        yield
        return
    signal.alarm(seconds)  # its default is to end the process
    try:
        yield
    finally:
        signal.alarm(0)


def _limit_memory(limit: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ValueError, OSError, OverflowError):  # a lower limit is in force, or addresses are fewer
        pass


if __name__ == "__main__":
    main()
