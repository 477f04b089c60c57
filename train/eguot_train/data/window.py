"""Reading while training: an endless order of samples, and the window of it that is in memory.

For what does not fit in memory: shards (`shards.py`), or the files of a large folder. Both the order and the window are
functions of seed and position, so a run can go on from anywhere; ranks see different samples and together all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from eguot_sdk.errors import EguotError, UsageError

from .datasets import Item

Role = Literal["raw", "srgb", "pairs"]
T = TypeVar("T")
S = TypeVar("S", bound="Labelled")
DECODERS = 4


class Labelled(Protocol):
    """A sample that messages can name."""

    @property
    def label(self) -> str:
        """What to call it."""


class Stream(Generic[S]):
    """Samples in the endless order of a seed, and what was wrong with them so far."""

    def __init__(self, role: Role, *, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self._role: Role = role
        self._seed, self._rank, self._world = seed, rank, world
        self._known: set[str] = set()
        self.skipped: list[str] = []
        """One line per damaged sample or file met so far."""

    def sample(self, position: int) -> S:
        """The sample at a position of this rank: of all ranks together every `world`-th one."""
        raise NotImplementedError

    def skip(self, line: str) -> None:
        """Note a problem, once."""
        if line not in self._known:
            self._known.add(line)
            self.skipped.append(line)

    def _shuffled(self, count: int, *key: int) -> NDArray[np.int64]:
        code = ("raw", "srgb", "pairs").index(self._role)
        return np.random.default_rng([self._seed, code, *key]).permutation(count)


class ItemStream(Stream[Item]):
    """The items of a folder, shuffled in every epoch."""

    def __init__(self, items: Sequence[Item], role: Role, *, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        super().__init__(role, seed=seed, rank=rank, world=world)
        self._items = items
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    def sample(self, position: int) -> Item:
        """The item at a position of this rank."""
        epoch, place = divmod(position * self._world + self._rank, len(self._items))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(len(self._items), epoch)
        return self._items[int(self._order[place])]


class Window(Generic[T]):
    """The part of a stream that is in memory: `size` samples, decoded once, the oldest replaced by the next.

    `at(first)` holds positions first .. first + size - 1, without the damaged ones, whatever was asked before: a window
    is a function of its position. `decode` makes of a sample what is drawn from, and raises EguotError.
    """

    def __init__(self, stream: Stream[Any], size: int, decode: Callable[[Any], T]) -> None:
        self.stream, self.size = stream, size
        self._decode = decode
        self._held: dict[int, T | None] = {}

    def at(self, first: int) -> list[T]:
        """What the window holds at a position. Raises UsageError where all of it is damaged."""
        wanted = range(first, first + self.size)
        self._held = {position: kept for position, kept in self._held.items() if position in wanted}
        new = [(position, self.stream.sample(position)) for position in wanted if position not in self._held]
        with ThreadPoolExecutor(DECODERS) as pool:
            for (position, sample), decoded in zip(new, pool.map(self._try, [s for _, s in new]), strict=True):
                if isinstance(decoded, EguotError):
                    self.stream.skip(f"{sample.label}: {decoded}")
                self._held[position] = None if isinstance(decoded, EguotError) else decoded
        whole = [kept for position in wanted if (kept := self._held[position]) is not None]
        if not whole:
            raise UsageError(f"{self.size} samples in a row are unusable, first: {self.stream.skipped[0]}")
        return whole

    def _try(self, sample: Any) -> T | EguotError:
        try:
            return self._decode(sample)
        except EguotError as error:
            return error
