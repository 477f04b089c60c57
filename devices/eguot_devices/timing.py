"""Repeat something until its median is known well enough, and say how well.

The interval of the median is that of order statistics: it assumes independent runs and nothing about their
distribution, which for latencies is skewed by whatever else the machine does. Since runs end once it is narrow, it
holds the median in 93 to 95 % of cases, simulated for scattered times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from .schema import Latency

MIN_PERCENTILE_RUNS = 5
MIN_P99_RUNS = 100
MAX_RUNS = 1000
TARGET_HALF_WIDTH = 0.02
"""Runs end once the median is known to within +-2 % with about 95 % confidence."""
CHECK_EVERY = 5


def repeat(
    call: Callable[[], object],
    *,
    seconds: float,
    min_runs: int,
    on_run: Callable[[int], None],
    max_runs: int | None = None,
) -> Latency:
    """Time `call` once, then again and again until the median is known to within 2 %, or `seconds` have passed.

    At least `min_runs` runs are asked for. No run is begun that would end after `seconds` if it took as long as the
    one before it: of slow things there are fewer runs, or none but the first. `on_run` is called with the number of
    runs after each, outside the timed part.
    """
    end = time.monotonic() + seconds
    last_ms = first_ms = _timed_ms(call)
    on_run(1)
    samples: list[float] = []
    while len(samples) < (max_runs or MAX_RUNS) and time.monotonic() + last_ms / 1e3 <= end:
        last_ms = _timed_ms(call)
        samples.append(last_ms)
        on_run(1 + len(samples))
        if len(samples) >= min_runs and len(samples) % CHECK_EVERY == 0 and _known_well(samples):
            break
    return summarise(first_ms, samples)


def summarise(first_ms: float, samples_ms: Sequence[float]) -> Latency:
    """Percentiles of the samples; None where fewer than five runs stand behind them."""
    enough = len(samples_ms) >= MIN_PERCENTILE_RUNS
    interval = median_interval(samples_ms)
    return Latency(
        first_ms=first_ms,
        p50_ms=float(np.percentile(samples_ms, 50)) if enough else None,
        p50_low_ms=interval[0] if interval else None,
        p50_high_ms=interval[1] if interval else None,
        p90_ms=float(np.percentile(samples_ms, 90)) if enough else None,
        p99_ms=float(np.percentile(samples_ms, 99)) if len(samples_ms) >= MIN_P99_RUNS else None,
        runs=len(samples_ms),
    )


def median_interval(samples: Sequence[float], tail: float = 0.025) -> tuple[float, float] | None:
    """An interval that holds the median with probability 1 - 2 * `tail` or more: k-th smallest to k-th largest sample.

    k is the largest for which Bin(n, 1/2) is below k with probability `tail` at most. None where even the extremes do
    not reach the confidence (fewer than 6 samples for 95 %).
    """
    n = len(samples)
    ways, below, k = 1, 0, 0  # C(n, k), and the sum of those before it
    while below + ways <= tail * 2**n:
        below += ways
        ways = ways * (n - k) // (k + 1)
        k += 1
    if k == 0:
        return None
    ordered = sorted(samples)
    return ordered[k - 1], ordered[n - k]


def noise_pct(samples_ms: Sequence[float]) -> float:
    """Spread of repeated times of one and the same thing: p90 - p10, in percent of p50."""
    low, middle, high = np.percentile(samples_ms, (10, 50, 90))
    return float(100 * (high - low) / middle)


def _known_well(samples: Sequence[float]) -> bool:
    interval = median_interval(samples)
    if interval is None:
        return False
    return interval[1] - interval[0] <= 2 * TARGET_HALF_WIDTH * float(np.median(samples))


def _timed_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6
