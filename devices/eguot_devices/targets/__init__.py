"""Kinds of device by the word before the colon of `--device`."""

from __future__ import annotations

from collections.abc import Callable

from eguot_sdk.errors import UsageError

from .base import Target
from .local import LocalTarget

TARGETS: dict[str, Callable[[str], Target]] = {"local": LocalTarget}


def open_target(device: str) -> Target:
    """The target a `--device` names. Raises UsageError listing the kinds there are."""
    kind = device.partition(":")[0]
    if kind not in TARGETS:
        raise UsageError(f"--device {device}: no such kind of device; there is {', '.join(TARGETS)}")
    return TARGETS[kind](device)


__all__ = ["TARGETS", "Target", "open_target"]
