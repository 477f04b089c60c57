"""Kinds of device by the word before the colon of `--device`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from eguot_sdk.errors import UsageError

from .adb import AdbTarget
from .base import Target
from .local import LocalTarget
from .ssh import SshTarget

TARGETS: dict[str, Callable[[str], Target]] = {"local": LocalTarget, "ssh": SshTarget, "adb": AdbTarget}
FORMS = "local, ssh://[user@]host[:port][/path/to/python3], adb[:serial]"


def open_target(device: str, *, benchmark_model: Path | None = None) -> Target:
    """The target a `--device` names, not reached yet. Raises UsageError listing the kinds there are.

    `benchmark_model`: LiteRT's tool for Android, which adb devices need.
    """
    kind = device.partition(":")[0]
    if kind not in TARGETS:
        raise UsageError(f"--device {device}: no such kind of device; there is {FORMS}")
    if kind == "adb":
        return AdbTarget(device, benchmark_model=benchmark_model)
    return TARGETS[kind](device)


__all__ = ["FORMS", "TARGETS", "Target", "open_target"]
