"""Runtimes by file suffix. Nothing here is imported before a model of its kind is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import UsageError
from ..paths import refuse_run
from .base import Runtime, check_tensors

RuntimeFactory = Callable[[int], Runtime]
"""Number of threads -> a new runtime of one model."""


def _tflite(path: Path, delegate: str | Path | None) -> RuntimeFactory:
    from .litert import litert_factory

    return litert_factory(path, delegate)


RUNTIMES: dict[str, Callable[[Path, str | Path | None], RuntimeFactory]] = {".tflite": _tflite}


def runtime_factory(path: str | Path, *, delegate: str | Path | None = None) -> RuntimeFactory:
    """What opens runtimes of one ISP file. The file is read once, so all of them run the same model.

    `delegate`: path of a TFLite delegate library. Raises UsageError, IspFileError or MissingDependency.
    """
    path = Path(path)
    if path.suffix.lower() not in RUNTIMES:
        refuse_run(path)
        kinds = " or ".join(RUNTIMES)
        if not path.exists() or path.is_dir():
            what = "a folder" if path.exists() else "no such file"
            raise UsageError(f"{path}: {what}; an ISP file that runs here ends in {kinds}")
        raise UsageError(f"{path.name}: an ISP file that runs here ends in {kinds}, not in {path.suffix or 'nothing'}")
    return RUNTIMES[path.suffix.lower()](path, delegate)


def open_runtime(path: str | Path, *, threads: int = 1, delegate: str | Path | None = None) -> Runtime:
    """One runtime of an ISP file that computes with `threads` threads. Its spec, if any, is not looked at."""
    return runtime_factory(path, delegate=delegate)(threads)


__all__ = ["RUNTIMES", "Runtime", "RuntimeFactory", "check_tensors", "open_runtime", "runtime_factory"]
