from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from eguot_devices import timing
from eguot_devices.timing import median_interval, noise_pct, repeat, summarise


class Clock:
    """Stands in for `time`: each timed call takes as long as it says."""

    def __init__(self) -> None:
        self.now_ns = 0

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns / 1e9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def takes_ms(clock: Clock, durations: Iterator[float]) -> Callable[[], None]:
    def call() -> None:
        clock.now_ns += round(next(durations) * 1e6)

    return call


def endless(first: float, *later: float) -> Iterator[float]:
    yield first
    while True:
        yield from later


@pytest.mark.parametrize("n", [1, 5, 6, 20, 101, 1000])
def test_the_interval_of_the_median_is_that_of_the_binomial_distribution(n: int) -> None:
    binom = pytest.importorskip("scipy.stats").binom
    samples = list(range(1, n + 1))
    random.Random(n).shuffle(samples)
    interval = median_interval(samples)
    if n < 6:
        assert interval is None
        return
    assert interval is not None
    k = int(interval[0])
    assert interval[1] == n + 1 - k
    assert binom.cdf(k - 1, n, 0.5) <= 0.025 < binom.cdf(k, n, 0.5)


def test_the_interval_covers_the_true_median_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    found = [median_interval(list(rng.exponential(1.0, 30))) for _ in range(2000)]
    covered = np.mean([low <= np.log(2) <= high for low, high in found if (low, high) is not None])  # type: ignore[misc]
    assert 0.95 <= covered <= 0.975


def test_steady_times_end_at_the_smallest_number_of_runs(clock: Clock) -> None:
    seen: list[int] = []
    latency = repeat(takes_ms(clock, endless(50.0, 10.0)), seconds=60, min_runs=20, on_run=seen.append)
    assert (latency.first_ms, latency.p50_ms, latency.p90_ms, latency.runs) == (50.0, 10.0, 10.0, 20)
    assert (latency.p50_low_ms, latency.p50_high_ms) == (10.0, 10.0)
    assert seen == list(range(1, 22))


def test_scattered_times_go_on_until_the_time_is_up(clock: Clock) -> None:
    latency = repeat(takes_ms(clock, endless(5.0, 10.0, 20.0)), seconds=3, min_runs=20, on_run=lambda run: None)
    assert latency.runs == 200
    assert (latency.p50_low_ms, latency.p50_high_ms) == (10.0, 20.0)


def test_a_slow_thing_has_few_runs_and_says_so(clock: Clock) -> None:
    latency = repeat(takes_ms(clock, endless(4000.0, 3000.0)), seconds=8, min_runs=20, on_run=lambda run: None)
    assert (latency.first_ms, latency.runs) == (4000.0, 1)
    assert latency.p50_ms is None
    assert latency.p90_ms is None


def test_a_first_run_that_takes_all_the_time_stays_the_only_one(clock: Clock) -> None:
    latency = repeat(takes_ms(clock, endless(9000.0, 1.0)), seconds=8, min_runs=20, on_run=lambda run: None)
    assert (latency.first_ms, latency.runs, latency.p50_ms, latency.p50_low_ms) == (9000.0, 0, None, None)


def test_runs_are_bounded(clock: Clock) -> None:
    latency = repeat(takes_ms(clock, endless(1.0, 0.1, 0.3)), seconds=1e9, min_runs=5, on_run=lambda run: None)
    assert latency.runs == timing.MAX_RUNS


def test_percentiles_are_those_of_numpy() -> None:
    samples = np.random.default_rng(0).gamma(2.0, 3.0, 57)
    latency = summarise(0.0, list(samples))
    assert latency.p50_ms == pytest.approx(np.median(samples))
    assert latency.p90_ms == pytest.approx(np.quantile(samples, 0.9))


def test_rare_slow_runs_are_told_where_enough_runs_stand_behind_them() -> None:
    samples = np.random.default_rng(0).gamma(2.0, 3.0, 400)
    assert summarise(0.0, list(samples)).p99_ms == pytest.approx(np.quantile(samples, 0.99))
    assert summarise(0.0, list(samples[:100])).p99_ms is not None
    assert summarise(0.0, list(samples[:99])).p99_ms is None
    assert summarise(0.0, list(samples[:5])).p90_ms is not None
    assert summarise(0.0, list(samples[:4])).p90_ms is None


def test_noise_is_the_middle_eight_tenths_over_the_median() -> None:
    assert noise_pct([10.0] * 8) == 0
    assert noise_pct(list(np.linspace(90, 110, 101))) == pytest.approx(16.0)
    assert noise_pct([1000.0 * t for t in np.linspace(90, 110, 101)]) == pytest.approx(16.0)


def test_no_more_runs_than_asked_for(clock: Clock) -> None:
    latency = repeat(
        takes_ms(clock, endless(1.0, 0.1, 0.3)), seconds=1e9, min_runs=5, max_runs=17, on_run=lambda run: None
    )
    assert latency.runs == 17


@pytest.mark.parametrize(("apart", "ends"), [(0.3, True), (0.5, False)])
def test_runs_end_once_the_median_is_known_to_two_percent(clock: Clock, apart: float, ends: bool) -> None:
    """Times that jump between two values leave an interval from the one to the other: 3 or 5% of the median."""
    call = takes_ms(clock, endless(10.0, 10.0, 10.0 + apart))
    latency = repeat(call, seconds=1e9, min_runs=20, max_runs=60, on_run=lambda run: None)
    assert latency.runs == (20 if ends else 60)
