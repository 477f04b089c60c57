"""Runs that others start from: those named on the command line, and teachers, whose renderings are targets."""

from __future__ import annotations

from pathlib import Path

from eguot_sdk.errors import UsageError
from eguot_train.checkpoint import LoadedRun, load_run
from eguot_train.trainer import DEFAULT_RUN

DEFAULT = Path("default")
"""Names the float network behind the default ISP, where no folder of that name lies here."""


def named_run(run: Path) -> Path:
    """The folder of a run as a person names it."""
    return DEFAULT_RUN if run == DEFAULT and not run.exists() else run


def load_teacher(teacher: Path, student: LoadedRun) -> LoadedRun:
    """The run named `teacher`, its network frozen. Raises UsageError where it sees other colours than the student."""
    loaded = load_run(named_run(teacher))
    if loaded.config.color_input != student.config.color_input:
        raise UsageError(
            f"--teacher {teacher} takes {loaded.config.color_input} input, the run takes {student.config.color_input}: "
            "both must take the same"
        )
    loaded.net.requires_grad_(False)
    return loaded
