"""Ctrl-C in a training loop, and what else is to stop it: the step at hand is finished, so that it can be kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import ranks


@contextmanager
def finishing_first(echo: Callable[[str], None], until: str = "this step") -> Iterator[Callable[[], bool]]:
    """Within: Ctrl-C is only noted, and the function this gives says so; a second one stops at once.

    So is every other signal that does what Ctrl-C does, as SIGTERM in `eguot-sdk`. Not beside other processes, which
    would wait for this one, nor where somebody else decides what Ctrl-C does. `until`: what the loop will finish first,
    for the message.
    """
    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        asked = True
        restore()
        echo(f"stopping after {until}; Ctrl-C again stops at once")

    def restore() -> None:
        for number in usual:
            signal.signal(number, signal.default_int_handler)

    usual = [n for n in signal.valid_signals() if signal.getsignal(n) is signal.default_int_handler]
    if ranks.world() > 1 or threading.current_thread() is not threading.main_thread():
        usual = []
    for number in usual:
        signal.signal(number, note)
    try:
        yield lambda: asked
    finally:
        restore()
