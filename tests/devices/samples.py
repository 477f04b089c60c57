"""Small makers that tests of this folder share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from eguot_devices.measure import Job
from eguot_devices.schema import ModelProfile, Report


def job(model: Path, outputs: Path, **changes: Any) -> Job:
    """A job with nothing but a model."""
    return replace(
        Job(
            name="tiny",
            model=str(model),
            raw=None,
            pairs=None,
            golden=None,
            outputs=str(outputs),
            threads=(),
            sustained_s=0.0,
            budget_s=None,
        ),
        **changes,
    )


def with_models(report: Report, *models: ModelProfile) -> Report:
    """The report with other models on its one device."""
    return replace(report, devices=(replace(report.devices[0], models=models),))
