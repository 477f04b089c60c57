"""Every error this project raises on purpose, one tree, one cause per leaf.

    EguotError                exit 1   base; catch this one
    |-- UsageError            exit 2   the call itself is wrong (also a ValueError)
    |-- RawError              exit 1   a raw file or mosaic cannot be used
    |   |-- UnsupportedRaw             it is whole, but not a Bayer mosaic this SDK can read
    |   `-- CorruptRaw                 it is damaged, cut short, or contradicts itself
    |-- IspFileError          exit 1   an ISP file or its spec cannot be used
    |-- CheckpointError       exit 1   a run folder or checkpoint cannot be used
    |-- MissingDependency     exit 1   an optional package is not installed; says the pip line
    |-- OutputError           exit 1   a result cannot be written
    |-- TrainingDiverged      exit 1   a health gate stopped training (`eguot_train.health`)
    `-- GateError             exit 3   a quality gate asked for was not met

Messages are one line: what was expected, what was found, what to do.
"""

from __future__ import annotations

from typing import Any

STOPPED = 130
"""Exit code of a command that Ctrl-C ended, as shells have it."""


class EguotError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command returns."""

    exit_code = 1


class UsageError(EguotError, ValueError):
    """An argument is wrong or arguments contradict each other."""

    exit_code = 2


class RawError(EguotError):
    """A raw file or mosaic cannot be used."""


class UnsupportedRaw(RawError):
    """The file is whole, but holds something other than a Bayer mosaic we can read."""


class CorruptRaw(RawError):
    """The file is damaged, cut short, or its values contradict each other."""


class IspFileError(EguotError):
    """An ISP file, or the spec inside it, cannot be used."""


class CheckpointError(EguotError):
    """A run folder or a checkpoint cannot be used."""


class MissingDependency(EguotError):
    """An optional package is not installed."""

    def __init__(self, package: str, *, needed_for: str, pip: str) -> None:
        super().__init__(f"{needed_for} needs {package}, not installed here: run `pip install {pip}`")
        self.package = package
        self.pip = pip
        self._needed_for = needed_for

    def __reduce__(self) -> tuple[Any, ...]:  # it comes from processes and clusters, too
        return _missing, (self.package, self._needed_for, self.pip)


def _missing(package: str, needed_for: str, pip: str) -> MissingDependency:
    return MissingDependency(package, needed_for=needed_for, pip=pip)


class OutputError(EguotError):
    """A result cannot be written."""


class GateError(EguotError):
    """A quality gate that was asked for is not met."""

    exit_code = 3
