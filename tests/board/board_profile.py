"""A pytest plugin for the board: few examples a property and no deadlines, for the emulation is slow."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "board", max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
