"""Tasks in processes and on a cluster: in order, bounded, and what goes wrong reaches the caller."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from eguot_sdk import workers
from eguot_sdk.cli import main
from eguot_sdk.errors import EguotError, MissingDependency, UsageError


def square(number: int) -> tuple[int, int]:
    if number < 0:
        raise UsageError("no negative numbers")
    return number * number, os.getpid()


def test_processes_keep_the_order() -> None:
    values, processes = zip(*workers.map_processes(square, range(20), workers=2), strict=True)
    assert list(values) == [n * n for n in range(20)]
    assert os.getpid() not in processes


def test_an_error_in_a_process_is_raised_here() -> None:
    with pytest.raises(UsageError, match="no negative"):
        list(workers.map_processes(square, [1, -1, 2], workers=2))


def test_a_missing_package_is_said_across_processes() -> None:
    error = MissingDependency("LiteRT", needed_for="running a TFLite file", pip="ai-edge-litert")
    there = pickle.loads(pickle.dumps(error))
    assert (str(there), there.package, there.pip) == (str(error), "LiteRT", "ai-edge-litert")


def test_without_dask_the_pip_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(MissingDependency, match=r"eguot-sdk\[cluster\]"):
        list(workers.map_cluster(square, [1], "tcp://127.0.0.1:9"))


def test_process_on_a_cluster_writes_what_it_writes_here(shipped: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    raws = tmp_path / "raws"
    raws.mkdir()
    (raws / "a.kdc").write_bytes((shipped / "kodak_dc50_0012L.kdc").read_bytes())
    (raws / "b.kdc").write_bytes((shipped / "kodak_dc50_0012L.kdc").read_bytes())
    (raws / "bad.dng").write_bytes(b"II*\0 no raw")
    here, there = tmp_path / "here", tmp_path / "there"
    run = CliRunner().invoke
    assert run(main, ["process", str(raws), "-o", str(here), "--format", "png"]).exit_code == 1
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        address = cluster.scheduler_address
        result = run(main, ["process", str(raws), "-o", str(there), "--format", "png", "--cluster", address, "--json"])
        assert result.exit_code == 1
        assert "bad.dng" in result.stderr
        assert result.stdout.count(".png") == 2
        with distributed.Client(address) as client:
            client.retire_workers(list(client.scheduler_info()["workers"]))
        with pytest.raises(EguotError, match="has no workers"):
            list(workers.map_cluster(square, [1], address))
    for name in ("a.png", "b.png"):
        assert np.array_equal(np.asarray(Image.open(here / name)), np.asarray(Image.open(there / name)))


def killed(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_process_is_told_in_one_line() -> None:
    with pytest.raises(EguotError, match="a worker process was killed, often for want of memory"):
        list(workers.map_processes(killed, [1, 2, 3, 4], workers=2))


def unready(words: str) -> None:
    raise UsageError(words)


def test_what_an_initializer_raises_is_raised_here() -> None:
    with pytest.raises(UsageError, match="not today"):
        list(workers.map_processes(square, [1, 2], workers=1, initializer=unready, arguments=("not today",)))


def test_a_script_without_the_guard_is_told_what_it_lacks(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from eguot_sdk.workers import map_processes\nprint(list(map_processes(abs, [1], workers=1)))\n")
    path = os.pathsep.join([str(Path(workers.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, script], env=os.environ | {"PYTHONPATH": path}, capture_output=True)
    assert done.returncode == 1
    assert b"EguotError: a worker process was killed" in done.stderr
    assert b"a script needs the guard `if __name__ == '__main__':`" in done.stderr


@pytest.mark.parametrize(("said", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64), ("", 64)])
def test_cores_are_bounded_by_what_a_container_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(said)
    monkeypatch.setattr(workers, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert workers.core_count() == cores


class Asked(Sequence[int]):
    """Whole numbers that note how many were asked for: a set of thousands of raws must not be queued at once."""

    def __init__(self, count: int) -> None:
        self.count, self.asked = count, 0

    def __len__(self) -> int:
        return self.count

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            self.asked += 1
            yield number


def test_no_more_tasks_wait_than_twice_the_workers() -> None:
    items = Asked(30)
    for done, (value, _) in enumerate(workers.map_processes(square, items, workers=2)):
        assert value == done * done
        assert items.asked <= done + 4
    assert items.asked == 30
