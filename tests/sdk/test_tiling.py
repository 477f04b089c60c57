"""Tiles cover every frame, once, in equal sizes, at the places an ISP asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eguot_sdk import tiling as tiling_module
from eguot_sdk.errors import UsageError
from eguot_sdk.spec import IspSpec, TensorSpec
from eguot_sdk.tiling import auto_tile, plan, tile_side

INT8 = TensorSpec(dtype="int8", scale=1 / 255, zero_point=-128)


def spec(**fields: object) -> IspSpec:
    return IspSpec(name="t", architecture="t", parameters=0, **{"halo": 8, **fields})  # type: ignore[arg-type]


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    multiple=st.sampled_from([1, 2, 3, 4]),
    steps=st.integers(1, 40),
    whole=st.booleans(),
)
def test_cores_cover_the_frame_once(height: int, width: int, multiple: int, steps: int, whole: bool) -> None:
    side = steps * multiple
    tiling = plan(height, width, spec(halo=2 * multiple, multiple=multiple, tile=multiple), "whole" if whole else side)
    core_height, core_width = tiling.core
    seen = np.zeros((height + core_height, width + core_width), int)
    for top, left in tiling.cores:
        assert top % multiple == left % multiple == 0
        assert top < height
        assert left < width
        seen[top : top + core_height, left : left + core_width] += 1
    assert (seen[:height, :width] == 1).all()
    assert core_height % multiple == core_width % multiple == 0
    assert tiling.input_size == (core_height + 4 * multiple, core_width + 4 * multiple)
    if whole:
        assert len(tiling.cores) == 1
    else:
        assert max(tiling.core) <= side


@given(size=st.integers(1, 5000), steps=st.integers(1, 64))
def test_little_is_computed_in_vain(size: int, steps: int) -> None:
    tiling = plan(size, 2, spec(multiple=2, tile=2), 2 * steps)
    assert len(tiling.cores) <= -(-size // (2 * steps))  # no more tiles than the side asks for
    assert len(tiling.cores) * tiling.core[0] - size < tiling.core[0]
    assert len(tiling.cores) * tiling.core[0] <= size + 2 * len(tiling.cores)


def test_default_is_the_tile_of_the_spec() -> None:
    assert plan(512, 512, spec(tile=256)).core == (256, 256)
    assert plan(100, 60, spec(tile=256)).core == (100, 60)
    assert plan(101, 61, spec(tile=256, multiple=2)).core == (102, 62)


def test_a_file_of_one_size_gets_only_that_size() -> None:
    fixed = spec(tile=96, fixed_tile=True)
    tiling = plan(100, 50, fixed)
    assert tiling.core == (96, 96)
    assert tiling.input_size == (112, 112)
    assert tiling.cores == ((0, 0), (96, 0))
    assert plan(100, 50, fixed, 96) == tiling
    for other in (64, "whole"):
        with pytest.raises(UsageError, match="exactly 96"):
            plan(100, 50, fixed, other)  # type: ignore[arg-type]


def test_an_isp_that_needs_the_whole_frame_is_not_cut() -> None:
    wide = spec(global_context=True, tile=64)
    assert len(plan(500, 700, wide).cores) == 1
    assert len(plan(500, 700, wide, "whole").cores) == 1
    assert len(plan(500, 700, wide, 1024).cores) == 1
    for tile in (64, 512):
        with pytest.raises(UsageError, match="whole frame"):
            plan(500, 700, wide, tile)
    with pytest.raises(UsageError, match="frames of at most 64 x 64; convert its run"):
        plan(500, 700, spec(global_context=True, tile=64, fixed_tile=True))


@pytest.mark.parametrize("tile", [0, -4, 1 << 17, True, 1.5, "hole", "64"])
def test_what_is_no_tile_is_refused(tile: object) -> None:
    with pytest.raises(UsageError, match="whole"):
        tile_side(spec(), tile)  # type: ignore[arg-type]


def test_a_tile_off_the_grid_is_refused() -> None:
    with pytest.raises(UsageError, match=r"multiple of 4 .*, not 66"):
        tile_side(spec(multiple=4), 66)


def test_tiles_for_this_machine_follow_cache_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def side(of: IspSpec, threads: int, cache_mb: float, free_mb: float) -> int | str:
        monkeypatch.setattr(tiling_module, "last_level_cache_bytes", lambda: int(cache_mb * 2**20))
        monkeypatch.setattr(tiling_module, "free_memory_bytes", lambda: int(free_mb * 2**20))
        return auto_tile(of, threads)

    int8 = spec(halo=10, multiple=2, tile=256).replace(input=INT8, output=INT8)
    wide = side(int8, 1, 32, 8000)
    assert isinstance(wide, int)
    assert 256 < wide <= 1024
    assert side(int8, 4, 32, 8000) < wide  # type: ignore[operator]
    assert side(int8, 4, 1, 8000) == 256  # never below what the file prefers for want of cache
    assert side(int8, 4, 32, 20) < 256  # type: ignore[operator]
    assert side(int8, 4, 32, 0) == 64
    assert side(int8.replace(tile=256, fixed_tile=True), 4, 32, 8000) == 256
    assert side(int8.replace(global_context=True), 4, 32, 8000) == "whole"
    assert side(spec(halo=9, multiple=3, tile=255), 2, 32, 8000) % 3 == 0  # type: ignore[operator]


def test_few_tiles_are_shared_evenly() -> None:
    small = spec(halo=10, multiple=2, tile=256)
    for threads in (1, 2, 3, 4):
        tiling = plan(1500, 2000, small, 704, threads=threads)
        assert len(tiling.cores) % threads == 0
        assert max(tiling.core) <= 704
    assert len(plan(60, 60, small, 704, threads=4).cores) == 1


def test_what_files_were_read_counts_as_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container of 2 GB that has read 1.9 GB of files: all but what programs hold is there for the asking."""
    group = {"memory.max": "2000000000\n", "memory.current": "1990000000\n",
             "memory.stat": "anon 90000000\nfile 1900000000\ninactive_file 1900000000\n"}  # fmt: skip
    for name, text in group.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(tiling_module, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(tiling_module, "MEMORY", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable: 60000000 kB\n")
    assert tiling_module.free_memory_bytes() == 1_910_000_000


def machine(monkeypatch: pytest.MonkeyPatch, root: Path, files: dict[str, str]) -> None:
    """A system that has these files under /proc and /sys, and no others."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(tiling_module, "MEMORY", root / "proc/meminfo")
    monkeypatch.setattr(tiling_module, "CONTROL_GROUP", root / "sys/fs/cgroup")
    monkeypatch.setattr(tiling_module, "Path", lambda name: root / name.removeprefix("/"))
    tiling_module.last_level_cache_bytes.cache_clear()


MEMINFO = "MemTotal:       32000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\nBuffers: 5 kB\n"


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [
        (None, None, 8_000_000 << 10),
        ("max\n", "5000000000\n", 8_000_000 << 10),
        ("2000000000\n", "1500000000\n", 500_000_000),  # a container of 2 GB
        ("64000000000\n", "1000000000\n", 8_000_000 << 10),
        ("2000000000\n", "2000001000\n", 0),
    ],
)
def test_free_memory_is_what_system_and_container_leave(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str | None, used: str | None, expected: int
) -> None:
    group = {}
    if limit is not None and used is not None:
        group = {"memory.max": limit, "memory.current": used, "memory.stat": "anon 7\ninactive_file 0\n"}
    files = {"proc/meminfo": MEMINFO} | {f"sys/fs/cgroup/{name}": text for name, text in group.items()}
    machine(monkeypatch, tmp_path, files)
    assert tiling_module.free_memory_bytes() == expected


def test_a_system_that_does_not_say_has_4_gb_and_a_cache_of_1_mb(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine(monkeypatch, tmp_path, {"sys/devices/system/cpu/cpu0/cache/index0/size": "a lot\n"})
    assert tiling_module.free_memory_bytes() == 4 << 30
    assert tiling_module.last_level_cache_bytes() == 1 << 20
    tiling_module.last_level_cache_bytes.cache_clear()


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [(["48K", "32K", "2048K", "266240K"], 260 << 20), (["32K", "8M"], 8 << 20), (["524288"], 1 << 19)],
)
def test_the_largest_cache_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sizes: list[str], expected: int
) -> None:
    place = "sys/devices/system/cpu/cpu0/cache/index{}/size"
    machine(monkeypatch, tmp_path, {place.format(i): f"{size}\n" for i, size in enumerate(sizes)})
    assert tiling_module.last_level_cache_bytes() == expected
    tiling_module.last_level_cache_bytes.cache_clear()
