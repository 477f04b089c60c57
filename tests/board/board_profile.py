"""A pytest plugin for the board: few examples a property, no deadlines, and no lines of progress, for it is slow."""

import math

import pytest
from hypothesis import HealthCheck, settings

from eguot_sdk import progress

settings.register_profile(
    "board", max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


@pytest.fixture(autouse=True)
def no_progress(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands' tests count lines on stderr, and what takes 10 s there says how far it is."""
    if request.path.name == "test_cli.py":
        monkeypatch.setattr(progress, "LINE_S", math.inf)
