"""What a device is to a profile: it tells what it is, and measures one model in a process of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType

from ..measure import Job, OnProgress
from ..schema import Machine, ModelProfile


class Target(ABC):
    """One device, reachable inside a `with` block. Jobs hold paths of this machine; a target brings files across."""

    device: str
    """As `--device` named it."""

    def check(self, delegate: str | None = None) -> None:  # noqa: B027  # not every device needs something
        """Raise UsageError where the command line lacks what measuring there needs, or a delegate cannot be used there.

        Nothing is reached.
        """

    def open(self, on_progress: OnProgress, end: float | None = None) -> None:  # noqa: B027  # not every device needs to be opened
        """Reach the device and put there what measuring needs. Raises EguotError; then nothing is left there."""

    def close(self) -> None:  # noqa: B027
        """Leave nothing behind. Closing twice is fine."""

    @abstractmethod
    def machine(self) -> Machine:
        """What the device is. Raises EguotError where it cannot be asked."""

    @abstractmethod
    def measure(self, job: Job, on_progress: OnProgress, end: float | None = None) -> ModelProfile:
        """Measure one model there, until the monotonic time `end` at most; results lie in `job.outputs` afterwards.

        Raises EguotError saying what went wrong on the device.
        """

    def look(self) -> Machine:
        """Reach the device only to see what it is, bringing as little there as that takes. Raises EguotError."""
        with self:
            self.open(lambda words: None)
            return self.machine()

    def __enter__(self) -> Target:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
