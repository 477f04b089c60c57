"""Where tiles lie. Every tile of a frame has the same input size, so one runtime serves them all without resizing.

Sizes are packed pixels of the virtual mosaic (see `ingest`). A tile's input is its core plus `halo` on each side;
what lies outside the frame is filled by reflection there, so a network's own zero padding never reaches a core and
cores computed apart equal cores computed together. Cores start at multiples of `multiple`; the last ones may reach
past the frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import UsageError
from .spec import IspSpec

TileSide = int | Literal["whole"]


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


def plan(height: int, width: int, spec: IspSpec, tile: TileSide | None = None) -> Tiling:
    """Tiles that cover [height, width]. `tile`: side of a core at most, "whole" for one tile, None for the spec's own.

    Cores are made as equal as `multiple` allows, so little is computed that no one sees. Raises UsageError where the
    ISP cannot be run with such tiles.
    """
    side = tile_side(spec, tile)
    if spec.global_context and side != "whole" and (height > side or width > side):
        raise UsageError(
            f"this ISP looks at the whole frame, {height} x {width} packed pixels, and cannot run in tiles of {side}: "
            "leave the tile out, or use `whole`"
        )
    if spec.fixed_tile:
        core_height = core_width = spec.tile
    else:
        core_height = _even_core(height, side, spec.multiple)
        core_width = _even_core(width, side, spec.multiple)
    tops, lefts = range(0, height, core_height), range(0, width, core_width)
    return Tiling(tuple((top, left) for top in tops for left in lefts), (core_height, core_width), spec.halo)


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
