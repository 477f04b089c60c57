"""What all tests share: where data lies. Nothing here imports the packages under test."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported. Tests work on small tensors, and two threads that wait for each other on a busy machine make
# them many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An example takes milliseconds, and now and then much longer on a machine that does other work.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "board"))

from make_board import Board, BoardError, find_board  # noqa: E402


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The folder of raws that come with the tests."""
    return ROOT / "tests" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A larger collection of raws, pairs and broken files that is not part of the repository; skips without it."""
    folder = Path(os.environ.get("EGUOT_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no larger data collection: set EGUOT_SHARED_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def board() -> Board:
    """An emulated arm64 board; skips where `make board` was not run."""
    try:
        return find_board(Path(os.environ.get("EGUOT_BOARD") or ROOT / ".board"))
    except BoardError as error:
        pytest.skip(str(error))


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """As in a shell, whatever runs the tests: background jobs ignore Ctrl-C."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    kept = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
