"""Names of files: what lies at one, what the word `default` stands for, which of a folder count, and their bytes."""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from .errors import EguotError, UsageError

DEFAULT = "default"
"""What names the default ISP, or its run, where a command takes a path and none of that name exists."""
DEFAULT_ISP = Path(__file__).parent / "models" / "default.w8a8.tflite"

AS_ON_DISK = "eguot-as-on-disk"
"""What `errors` of an encoding may be: names of files that are not UTF-8 become the bytes they are on disk, and what an
encoding cannot hold at all an escape such as \\u65e5."""


def _as_on_disk(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    error.end = error.start + 1  # one by one: what follows may be of the other kind
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(AS_ON_DISK, _as_on_disk)


def encoded(text: str) -> bytes:
    """UTF-8 of any text; names of files that are not UTF-8 become the bytes they are on disk."""
    return text.encode("utf-8", AS_ON_DISK)


def kind_of(path: Path, error: type[EguotError]) -> Literal["file", "folder"] | None:
    """What lies at a path, links followed; None: neither. Raises `error` where the system does not say.

    `Path.is_file` and its like raise OSError there: in a folder without search permission, for a name too long.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a null byte is a ValueError
        return None
    except OSError as problem:
        raise error(f"{path}: cannot be looked at ({problem.strerror or problem})") from problem
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else None


def means_default(path: Path) -> bool:
    """Whether a path is the word `default`, where nothing of that name lies."""
    return path == Path(DEFAULT) and not os.path.lexists(path)


def named_isp(model: str | Path) -> Path:
    """Where an ISP file lies: `DEFAULT_ISP` for the word `default`."""
    path = Path(model)
    return DEFAULT_ISP if means_default(path) else path


def refuse_run(path: Path) -> None:
    """Raises UsageError where a run folder of `train` is given in the place of an ISP file."""
    if os.path.isfile(path / "config.json"):  # unlike Path's, False also where it may not be looked at
        raise UsageError(f"{path}: a run folder; `eguot-sdk convert` makes an ISP file of it")


def visible_files(folder: Path, paths: Iterable[Path], suffixes: frozenset[str]) -> Iterator[Path]:
    """Those of the paths inside a folder that are files with one of the suffixes.

    Names that begin with a dot are a system's own (macOS's ._IMG.dng, thumbnails) and left out, folders too.
    """
    for path in paths:
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in suffixes and not hidden and path.is_file():
            yield path
