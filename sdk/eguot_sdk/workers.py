"""Many like tasks at once: on the cores of this machine, or on a Dask cluster. Results come in the order of the items.

The function and the items must be picklable (a function of a module, `functools.partial` of one, dataclasses, paths).
On a cluster every worker needs this package and must see the same files under the same paths.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from .errors import EguotError, MissingDependency

Item = TypeVar("Item")
Result = TypeVar("Result")
CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Of this process, as containers see it (version 2)."""


def core_count() -> int:
    """Cores this process may use, at most what the control group allows."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (CONTROL_GROUP / "cpu.max").read_text().split()
        return max(min(count, math.ceil(int(quota) / int(period))), 1)
    except (OSError, ValueError, ZeroDivisionError):  # no limit, or not known
        return count


def map_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    initializer: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """Results of `function` in processes of their own, at most twice as many as workers in flight.

    `initializer(*arguments)` runs once in each. An error of it or of the function is raised here, and the rest is
    dropped.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    count = workers or core_count()
    # spawn: the caller may hold threads of torch or of a runtime, which a fork would not survive.
    with ProcessPoolExecutor(count, get_context("spawn"), _initialise, (initializer, arguments)) as pool:
        running: deque[Future[Result]] = deque()
        try:
            for item in items:
                running.append(pool.submit(_call, function, item))
                if len(running) >= 2 * count:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        except BrokenProcessPool as error:
            raise EguotError(
                "a worker process was killed, often for want of memory: free some, or give fewer cores (taskset); or "
                "could not start: a script needs the guard `if __name__ == '__main__':`"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_not_ready: Exception | None = None
"""Of a worker: what its initializer raised. Raised there, it would only be printed, and the pool be broken."""


def _initialise(initializer: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    global _not_ready
    try:
        if initializer is not None:
            initializer(*arguments)
    except Exception as error:
        _not_ready = error


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    if _not_ready is not None:
        raise _not_ready
    return function(item)


def require_cluster() -> None:
    """Raises MissingDependency where the package that reaches a cluster is not installed."""
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise MissingDependency("distributed", needed_for="--cluster", pip="'eguot-sdk[cluster]'") from error


def map_cluster(function: Callable[[Item], Result], items: Sequence[Item], address: str) -> Iterator[Result]:
    """Results of `function` from the workers of a Dask cluster (`tcp://HOST:8786`); a few tasks a worker are in flight.

    Raises EguotError where the cluster does not answer or its workers are lost, MissingDependency.
    """
    require_cluster()
    import distributed

    scheduler: Any = distributed.Client
    try:
        distributed.comm.get_address_host_port(address)  # a client that is given none prints a traceback later
        client: Any = scheduler(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EguotError(
            f"no Dask scheduler answers at {address} ({reason:.120}); start one with `dask scheduler`"
        ) from error
    with client:
        threads = sum(client.nthreads().values())
        if threads == 0:
            raise EguotError(f"the Dask cluster at {address} has no workers; start some with `dask worker {address}`")
        running: deque[Any] = deque()
        for item in items:
            running.append(client.submit(function, item, pure=False))
            if len(running) >= 4 * threads:
                yield _result(running.popleft(), address)
        while running:
            yield _result(running.popleft(), address)


def _result(future: Any, address: str) -> Any:
    from distributed import CancelledError, KilledWorker

    try:
        return future.result()
    except (KilledWorker, CancelledError, OSError) as error:
        raise EguotError(f"the Dask cluster at {address} lost a task: {' '.join(str(error).split()):.160}") from error
