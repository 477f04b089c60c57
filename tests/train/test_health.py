"""Health gates: which numbers stop a run, which warn, and what the message asks for."""

from __future__ import annotations

import pytest

from eguot_train.health import MEMORY, Health, TrainingDiverged, check_finite


def run(values: dict[str, float], steps: int, *, balanced: bool = False) -> list[str]:
    lines: list[str] = []
    health = Health(lines.append, balanced=balanced)
    for step in range(steps):
        health.check(values, step)
    return lines


GOOD = {"v_real": 1.0, "v_fake": -1.0, "w_mean": 1.0, "sign_colour": 0.7, "loss_v": 0.1}


def test_a_sound_run_says_nothing() -> None:
    assert run(GOOD, 5 * MEMORY) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stops_at_once(value: float) -> None:
    with pytest.raises(TrainingDiverged, match=r"step 7: loss_v is .*; lower lr"):
        check_finite({"cost": 1.0, "loss_v": value}, 7)
    with pytest.raises(TrainingDiverged, match="step 0"):
        run(GOOD | {"loss_v": value}, 1)


@pytest.mark.parametrize("key", ["v_fake", "v_real"])
@pytest.mark.parametrize("value", [9.5, -9.5])
def test_a_potential_at_its_limit_warns_once(key: str, value: float) -> None:
    """v is bounded, and its term is balanced by its gradient: the run goes on without its say."""
    assert run(GOOD | {key: value}, MEMORY - 1) == []
    (line,) = run(GOOD | {key: value}, 3 * MEMORY)
    assert f"{key} is {value:.1f}: the potential is at its limit" in line
    assert run(GOOD | {key: 0.7 * value}, 2 * MEMORY) == []


def test_weights_that_collapse_stop_and_odd_ones_warn_once() -> None:
    with pytest.raises(TrainingDiverged, match=r"mean w\(y\) is 0.20, below 0.3.*raise alpha"):
        run(GOOD | {"w_mean": 0.2}, MEMORY)
    for value in (0.5, 1.4):
        (line,) = run(GOOD | {"w_mean": value}, 3 * MEMORY)
        assert f"mean w(y) is {value:.2f}, usual is 0.8-1.2; the run goes on" in line
    assert run(GOOD | {"w_mean": 0.2}, 2 * MEMORY, balanced=True) == [], "balanced transport has no weights"


@pytest.mark.parametrize(("share", "why"), [(0.5, "learns nothing"), (0.95, "tells fakes too easily")])
def test_experts_that_are_too_weak_or_too_strong_warn(share: float, why: str) -> None:
    (line,) = run(GOOD | {"sign_colour": share}, 3 * MEMORY)
    assert f"the colour expert {why}" in line


def test_one_odd_batch_stops_nothing() -> None:
    health = Health(lambda line: pytest.fail(line), balanced=False)
    for step in range(3 * MEMORY):
        odd = {"v_real": 9.9, "w_mean": 0.05} if step == MEMORY + 20 else {}
        health.check(GOOD | odd, step)
