"""Ctrl-C in a training loop, and what else is to stop it: the step at hand is finished, so that it can be kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eguot_sdk.cli import ends_of_a_job

from . import ranks


@contextmanager
def finishing_first(echo: Callable[[str], None], until: str = "this step") -> Iterator[Callable[[], bool]]:
    """Within: Ctrl-C is only noted, and the function this gives says so; a second one stops at once.

    So is every other signal that does what Ctrl-C does, as SIGTERM in `eguot-sdk`, and under torchrun SIGTERM and
    SIGHUP, which it hands on. Several processes must all ask at the same step: where one was told, all hear of it.
    Nothing changes where somebody else decides what Ctrl-C does. `until`: what the loop will finish first, for the
    message.
    """
    told = False

    def note(*_: object) -> None:
        nonlocal told
        told = True
        restore()
        if ranks.world() == 1:  # torchrun also sends it to the others of a process that died
            echo(f"stopping after {until}; Ctrl-C again stops at once")

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    usual: dict[int, signal.Handlers | Callable[..., object]] = {}
    if threading.current_thread() is threading.main_thread():
        ctrl_c = signal.default_int_handler
        usual = dict.fromkeys((n for n in signal.valid_signals() if signal.getsignal(n) is ctrl_c), ctrl_c)
        if ranks.job() is not None:
            usual |= {n: signal.SIG_DFL for n in ends_of_a_job() if signal.getsignal(n) == signal.SIG_DFL}
    for number in usual:
        signal.signal(number, note)
    try:
        yield lambda: ranks.any_of(told)
    finally:
        restore()
