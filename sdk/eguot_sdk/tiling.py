"""Where tiles lie. Every tile of a frame has the same input size, so one runtime serves them all without resizing.

Sizes are packed pixels of the virtual mosaic (see `ingest`). A tile's input is its core plus `halo` on each side;
what lies outside the frame is filled by reflection there, so a network's own zero padding never reaches a core and
cores computed apart equal cores computed together. Cores start at multiples of `multiple`; the last ones may reach
past the frame.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from .errors import UsageError
from .spec import IspSpec
from .workers import CONTROL_GROUP

TileSide = int | Literal["whole"]
MAX_AUTO_TILE = 1024
MIN_AUTO_TILE = 64
DEFAULT_CACHE_BYTES = 1 << 20
MEMORY_SHARE = 0.25
IN_FLIGHT_BYTES = 96 << 20
MEMORY = Path("/proc/meminfo")
BYTES_IN_FLIGHT = 12
"""What a runtime takes for a tile, in bytes of its input and output together; 11 was measured for the default ISP."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tiles of one frame; see `plan`."""

    cores: tuple[tuple[int, int], ...]
    """Row and column of the first core pixel of each tile, row by row."""
    core: tuple[int, int]
    """Height and width of every core."""
    halo: int

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of every tile's input: the core with its halo."""
        return self.core[0] + 2 * self.halo, self.core[1] + 2 * self.halo


def plan(height: int, width: int, spec: IspSpec, tile: TileSide | None = None, *, threads: int = 1) -> Tiling:
    """Tiles that cover [height, width]. `tile`: side of a core at most, "whole" for one tile, None for the spec's own.

    Cores are made as equal as `multiple` allows, so little is computed that no one sees. Where few of them would leave
    some of `threads` idle at the end, they are made narrower. Raises UsageError where the ISP cannot be run with
    such tiles.
    """
    side = tile_side(spec, tile)
    if spec.global_context and side != "whole" and (height > side or width > side):
        raise UsageError(
            f"this ISP looks at the whole frame, {height} x {width} packed pixels, and cannot run in tiles of {side}: "
            + (
                f"it takes frames of at most {side} x {side}; convert its run to .tflite, which takes any size"
                if spec.fixed_tile
                else "leave the tile out, or use `whole`"
            )
        )
    if spec.fixed_tile:
        core_height = core_width = spec.tile
    else:
        core_height = _even_core(height, side, spec.multiple)
        core_width = _even_core(width, side, spec.multiple)
        rows, columns = -(-height // core_height), -(-width // core_width)
        if 1 < rows * columns < 8 * threads:
            columns = next(c for c in range(columns, columns + threads) if rows * c % threads == 0)
            core_width = -(-width // (columns * spec.multiple)) * spec.multiple
    tops, lefts = range(0, height, core_height), range(0, width, core_width)
    return Tiling(tuple((top, left) for top in tops for left in lefts), (core_height, core_width), spec.halo)


def auto_tile(spec: IspSpec, threads: int) -> TileSide:
    """The side of a core for this machine: the larger, the less is computed twice in halos.

    Bounded by the cache, so that what two layers of the network exchange stays in a thread's share of it, but not
    below what the file prefers; and by memory: all tiles in flight take 96 MB, less where little is free.
    """
    preferred = tile_side(spec, None)
    if preferred == "whole" or spec.fixed_tile:
        return preferred
    # Tensors inside are not known without the model; those of ISPs that run fast are about as large as its output.
    cell_bytes = 4 * np.dtype(spec.input.dtype).itemsize
    cell_bytes += 3 * spec.scale_factor**2 * np.dtype(spec.output.dtype).itemsize

    def side(budget: int, bytes_per_cell: int) -> int:
        return math.isqrt(budget // threads // bytes_per_cell) - 2 * spec.halo

    free = int(MEMORY_SHARE * free_memory_bytes())
    wanted = min(
        side(last_level_cache_bytes(), 2 * cell_bytes),
        side(IN_FLIGHT_BYTES, BYTES_IN_FLIGHT * cell_bytes),
        MAX_AUTO_TILE,
    )
    allowed = max(side(free, BYTES_IN_FLIGHT * cell_bytes), MIN_AUTO_TILE)
    return max(min(max(wanted, preferred), allowed) // spec.multiple, 1) * spec.multiple


@functools.cache
def last_level_cache_bytes() -> int:
    """Size of the largest cache of the first processor; 1 MB where the system does not say."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = file.read_text().strip()
            sizes.append(int(text.rstrip("KM")) * {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1))
        except (OSError, ValueError):
            continue
    return max(sizes, default=DEFAULT_CACHE_BYTES)


def free_memory_bytes() -> int:
    """What may be allocated without swapping, at most what the control group allows; 4 GB where unknown."""
    free = 4 << 30
    try:
        with MEMORY.open(encoding="ascii") as lines:
            free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
        limit = int((CONTROL_GROUP / "memory.max").read_text())
        held = int((CONTROL_GROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CONTROL_GROUP / "memory.stat").read_text().splitlines())
        free = min(free, limit - held + int(stat["inactive_file"]))  # files that were read are let go for the asking
    except (OSError, ValueError, KeyError, StopIteration):
        pass
    return max(free, 0)


def tile_side(spec: IspSpec, tile: TileSide | None) -> TileSide:
    """The tile a spec and a request lead to. Raises UsageError where the request does not fit the spec."""
    if tile is None:
        return "whole" if spec.global_context and not spec.fixed_tile else spec.tile
    if spec.fixed_tile and tile != spec.tile:
        raise UsageError(f"this ISP file takes tiles of exactly {spec.tile} packed pixels, not {tile}: leave it out")
    if tile == "whole":
        return tile
    if isinstance(tile, bool) or not isinstance(tile, int) or not 1 <= tile <= 1 << 16:
        raise UsageError(f"a tile is a number of packed pixels from 1 to 65536, or `whole`, not {tile!r}")
    if tile % spec.multiple:
        raise UsageError(f"the tile of this ISP must be a multiple of {spec.multiple} packed pixels, not {tile}")
    return tile


def _even_core(size: int, side: TileSide, multiple: int) -> int:
    """Side of equal cores, a multiple of `multiple` and at most `side`, that cover `size`."""
    count = 1 if side == "whole" else -(-size // side)
    return -(-size // (count * multiple)) * multiple
