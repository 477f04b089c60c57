"""Ctrl-C in a training loop: the step at hand is finished, so that it can be kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import ranks


@contextmanager
def finishing_first(echo: Callable[[str], None], until: str = "this step") -> Iterator[Callable[[], bool]]:
    """Within: Ctrl-C is only noted, and the function this gives says so; a second one stops at once.

    Not beside other processes, which would wait for this one, nor where somebody else decides what Ctrl-C does.
    `until`: what the loop will finish first, for the message.
    """
    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        echo(f"stopping after {until}; Ctrl-C again stops at once")

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ranks.world() > 1 or not usual or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
