"""What libraries written in C print to stderr on their own, kept away from the person at the command.

For the command only: it redirects file descriptor 2 of the whole process while it lasts. Our own errors say what
matters; anything not known as chatter still passes.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import TextIO

CHATTER = re.compile(
    rb"data corrupted at -?\d+\s*$|Unexpected end of file\s*$"  # LibRaw
    rb"|^(Corrupt|Premature end of|Unsupported|Bogus) .*JPEG"  # its libjpeg
    rb"|^INFO: "  # LiteRT
    rb"|^Error in cpuinfo: "  # its cpuinfo, where /sys does not name the processors
)


@contextlib.contextmanager
def quiet() -> Iterator[TextIO]:
    """Within: lines on stderr are held back, and those that are not chatter are shown at the end.

    Gives a stream that reaches stderr at once, for progress and errors.
    """
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        try:
            caught = stack.enter_context(tempfile.TemporaryFile())
            saved = os.dup(2)
        except OSError:  # no folder for it, or no stderr: then all of it passes
            yield sys.stderr
            return
        # Where sys.stderr is not descriptor 2 (a test, a notebook), it is not held back anyway.
        direct = (
            stack.enter_context(os.fdopen(os.dup(saved), "w", errors="replace")) if _is_descriptor_2() else sys.stderr
        )
        os.dup2(caught.fileno(), 2)
        try:
            yield direct
        finally:
            sys.stderr.flush()
            direct.flush()
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            for line in caught.read().splitlines(keepends=True):
                if not CHATTER.search(line):
                    os.write(2, line)


def _is_descriptor_2() -> bool:
    try:
        return sys.stderr.fileno() == 2
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        return False
