"""Teachers: runs whose renderings are targets."""

from __future__ import annotations

from pathlib import Path

from eguot_sdk.errors import UsageError
from eguot_train.checkpoint import LoadedRun, load_run, named_run


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
