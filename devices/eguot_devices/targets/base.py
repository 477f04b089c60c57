"""What a device is to a profile: it tells what it is, and measures one model in a process of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ..measure import Job, OnProgress
from ..schema import Machine, ModelProfile


class Target(ABC):
    """One device, reachable as long as it is open. Jobs hold paths of this machine; a target brings files across."""

    device: str
    """As `--device` named it."""

    @abstractmethod
    def machine(self) -> Machine:
        """What the device is. Raises EguotError where it cannot be asked."""

    @abstractmethod
    def measure(self, job: Job, on_progress: OnProgress) -> ModelProfile:
        """Measure one model there. Raises EguotError saying what went wrong on the device."""
