"""`local`: this machine, each model in a fresh process of this Python."""

from __future__ import annotations

import sys

from eguot_sdk.errors import UsageError

from ..measure import Job, OnProgress
from ..schema import Machine, ModelProfile, from_dict, to_dict
from .base import Target
from .conversation import ask

# -P: no module that happens to lie in the current folder gets imported.
WORKER = (sys.executable, "-P", "-m", "eguot_devices.worker")


class LocalTarget(Target):
    """This machine."""

    def __init__(self, device: str) -> None:
        if device != "local":
            raise UsageError(f"--device {device}: this machine is just `local`")
        self.device = device

    def machine(self) -> Machine:
        return from_dict(Machine, ask(WORKER, {"op": "machine"}, lambda words: None), "machine")

    def measure(self, job: Job, on_progress: OnProgress, end: float | None = None) -> ModelProfile:
        answer = ask(WORKER, {"op": "measure", "job": to_dict(job)}, on_progress, end=end)
        return from_dict(ModelProfile, answer, job.name)
