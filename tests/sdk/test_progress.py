"""Progress on a terminal and in a pipe, with a clock of our own."""

from __future__ import annotations

import io

import pytest

from eguot_sdk import progress
from eguot_sdk.progress import Progress, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Stands in for the time module of `progress`."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_pipe_gets_a_line_now_and_then(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(range(100), 100, "develop", stream) as bar:
        for _ in range(100):
            clock.now += 0.5
            bar.update(note="IMG.dng")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5  # one in 10 s; the last is the end, which is not said twice
    assert lines[0] == "develop  20/100  0:40 left  IMG.dng"
    assert lines[-1] == "develop  100/100  0:50  IMG.dng"
    assert "\r" not in stream.getvalue()


def test_a_short_task_says_nothing_in_a_pipe(clock: Clock) -> None:
    stream = io.StringIO()
    assert list(Progress([1, 2, 3], 3, "develop", stream)) == [1, 2, 3]
    assert stream.getvalue() == ""


def test_a_terminal_gets_one_line_that_redraws(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with Progress(range(4), 4, "train", stream) as bar:
        for _ in range(4):
            clock.now += 1
            bar.update()
        bar.message("Error: one failed")
    text = stream.getvalue()
    states = text.split("\r\x1b[K")
    assert any(s.startswith("[############------------] train  2/4  0:02 left") for s in states)
    assert "Error: one failed\n" in text
    assert text.endswith("[########################] train  4/4  0:04\n")
    assert max(len(s.rstrip("\n")) for s in states) < 80


def test_a_terminal_is_not_redrawn_all_the_time(clock: Clock) -> None:
    stream = Terminal()
    with Progress(range(10_000), 10_000, "train", stream) as bar:
        for _ in range(10_000):
            clock.now += 0.001
            bar.update()
    assert stream.getvalue().count("\r") < 110


def test_a_long_line_is_cut_to_the_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    with Progress(range(5), 5, "x", stream) as bar:
        clock.now += 1
        bar.update(note="n" * 500)
    assert max(len(s.rstrip("\n")) for s in stream.getvalue().split("\r\x1b[K")) == 59


def test_without_a_total_it_counts(clock: Clock) -> None:
    bar = Progress(iter("abc"), None, "read", io.StringIO())
    assert list(bar) == ["a", "b", "c"]
    clock.now += 3723
    assert bar.line() == "read  3  1:02:03"


def test_a_program_without_stderr_has_progress_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)  # as under pythonw, and where it was closed
    with progress_bar(2, label="x") as bar:
        bar.message("Error: nobody hears it")
    assert list(progress_bar([1, 2], label="x")) == [1, 2]


def test_progress_bar_takes_items_or_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(["a", "b"], label="x")) == ["a", "b"]
    assert list(progress_bar(3, label="x")) == [0, 1, 2]
    assert progress_bar(iter([1]), label="x").total is None
    with progress_bar(2, label="x") as bar:
        bar.update(2)
    assert bar.done == 2
    assert capsys.readouterr().out == ""
