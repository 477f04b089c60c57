"""Health gates: what says that a run is on its way to nowhere, and what to change (METHOD.md 7).

A value that is not a number stops at once, before any weight is touched. The others are judged on running means over
about a hundred steps, so a single odd batch stops nothing. A stop keeps the run's checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from eguot_sdk.errors import EguotError

from .potential import LIMIT

MEMORY = 100
"""Steps that the running means reach back, and steps before the first verdict."""
HIGHEST_V = 0.9 * LIMIT
LOWEST_WEIGHT = 0.3
USUAL_WEIGHT = (0.8, 1.2)
USUAL_SIGN = (0.55, 0.85)


class TrainingDiverged(EguotError):
    """The run stopped because a health gate tripped; the last checkpoint is whole."""


def check_finite(values: Mapping[str, float], step: int) -> None:
    """Raise TrainingDiverged, naming the first value that is not a finite number."""
    for key, value in values.items():
        if not math.isfinite(value):
            raise TrainingDiverged(f"step {step}: {key} is {value}; lower lr, lr_potential, lr_experts or transport")


class Health:
    """Watches what is logged of each step; `echo` gets warnings, once each. `balanced`: every target weighs 1."""

    def __init__(self, echo: Callable[[str], None], *, balanced: bool) -> None:
        self._echo, self._balanced = echo, balanced
        self._means: dict[str, float] = {}
        self._seen: dict[str, int] = {}
        self._warned: set[str] = set()

    def check(self, logged: Mapping[str, float], step: int) -> None:
        """Raise TrainingDiverged with the reason and the settings to change; warn of what is only unusual."""
        check_finite(logged, step)
        for key, value in logged.items():
            if key in ("v_real", "v_fake", "w_mean") or key.startswith("sign_"):
                seen = self._seen[key] = self._seen.get(key, 0) + 1
                rate = max(1 / MEMORY, 1 / seen)
                self._means[key] = (1 - rate) * self._means.get(key, 0.0) + rate * value
        for key, mean in self._means.items():
            if self._seen[key] >= MEMORY:
                self._judge(key, mean, step)

    def _judge(self, key: str, mean: float, step: int) -> None:
        if key in ("v_real", "v_fake") and abs(mean) >= HIGHEST_V:  # v is bounded, and the other terms go on
            self._warn(
                key,
                step,
                f"{key} is {mean:.1f}: the potential is at its limit and has no say; raise r1 or lower lr_potential",
            )
        if key == "w_mean" and not self._balanced:
            if mean < LOWEST_WEIGHT:
                raise TrainingDiverged(
                    f"step {step}: nearly all targets are discounted (mean w(y) is {mean:.2f}, below {LOWEST_WEIGHT}); "
                    "raise alpha, or lower cost_strength or lr_potential; are the photos of scenes like the raws'?"
                )
            if not USUAL_WEIGHT[0] <= mean <= USUAL_WEIGHT[1]:
                self._warn(key, step, f"mean w(y) is {mean:.2f}, usual is {USUAL_WEIGHT[0]}-{USUAL_WEIGHT[1]}")
        if key.startswith("sign_") and not USUAL_SIGN[0] <= mean <= USUAL_SIGN[1]:
            name = key.removeprefix("sign_")
            what = "learns nothing" if mean < USUAL_SIGN[0] else "tells fakes too easily"
            self._warn(key, step, f"the {name} expert {what} (right in {mean:.0%} of pairs, usual is 55-85%)")

    def _warn(self, key: str, step: int, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            self._echo(f"step {step}: {text}; the run goes on")
