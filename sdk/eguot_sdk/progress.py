"""How far a long task is, on stderr: a bar that redraws itself on a terminal, a line now and then in a pipe."""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, Generic, TextIO, TypeVar, overload

T = TypeVar("T")
REDRAW_S = 0.1
LINE_S = 10.0
BAR_CELLS = 24


class Progress(Generic[T]):
    """Iterate over it, or call `update` inside a `with` block. Made by `progress_bar`."""

    def __init__(self, items: Iterable[T], total: int | None, label: str, stream: TextIO) -> None:
        self._items, self.total, self.label, self._stream = items, total, label, stream
        self._terminal = stream.isatty()
        self.done = 0
        self._note = ""
        self._start = self._shown = time.monotonic()
        self._drawn = False
        self._last: tuple[int, str] | None = None

    def update(self, steps: int = 1, note: str | None = None) -> None:
        """Count `steps` more; `note` replaces the words at the end of the line, such as losses."""
        self.done += steps
        if note is not None:
            self._note = note
        if time.monotonic() - self._shown >= (REDRAW_S if self._terminal else LINE_S):
            self._show()

    def message(self, text: str) -> None:
        """Print a line of its own, above the bar."""
        self._clear()
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Show the last state and end the line. A task that ended at once leaves no line in a pipe."""
        if self._terminal or (self._drawn and self._last != (self.done, self._note)):
            self._show()
        if self._terminal:
            self._stream.write("\n")
        self._stream.flush()

    def __enter__(self) -> Progress[T]:
        if self._terminal:
            self._show()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self._items:
                yield item
                self.update()

    def line(self) -> str:
        """The present state in words, without the bar: label, count, share, time left, note."""
        elapsed = time.monotonic() - self._start
        parts = [self.label, f"{self.done}/{self.total}" if self.total else f"{self.done}"]
        if self.total and 0 < self.done < self.total:
            parts.append(f"{duration(elapsed / self.done * (self.total - self.done))} left")
        else:
            parts.append(duration(elapsed))
        return "  ".join([*parts, self._note] if self._note else parts)

    def _show(self) -> None:
        self._shown = time.monotonic()
        self._last = self.done, self._note
        if not self._terminal:
            self._drawn = True
            print(self.line(), file=self._stream, flush=True)
            return
        bar = ""
        if self.total:
            full = min(BAR_CELLS, BAR_CELLS * self.done // self.total)
            bar = "[" + "#" * full + "-" * (BAR_CELLS - full) + "] "
        width = max(shutil.get_terminal_size().columns - 1, 20)
        self._stream.write("\r\x1b[K" + (bar + self.line())[:width])
        self._stream.flush()

    def _clear(self) -> None:
        if self._terminal:
            self._stream.write("\r\x1b[K")


@overload
def progress_bar(items: int, *, label: str, stream: TextIO | None = None) -> Progress[int]: ...
@overload
def progress_bar(items: Iterable[T], *, label: str, stream: TextIO | None = None) -> Progress[T]: ...
def progress_bar(items: Iterable[Any] | int, *, label: str, stream: TextIO | None = None) -> Progress[Any]:
    """Progress over an iterable, or over a known number of steps to be counted with `update`; on stderr or `stream`.

    `for path in progress_bar(paths, label="develop"): ...` or
    `with progress_bar(3000, label="train") as bar: bar.update(note="loss 0.1")`.
    """
    if isinstance(items, int):
        items = range(items)
    return Progress(
        items, len(items) if isinstance(items, Sized) else None, label, stream or sys.stderr or io.StringIO()
    )


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
