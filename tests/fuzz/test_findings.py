"""Everything the fuzzers ever found, and the seeds with a few thousand mutations, tried again."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import targets

FINDINGS = sorted(p for p in (Path(__file__).resolve().parent / "findings").glob("*/*") if p.name != ".gitkeep")


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: f"{path.parent.name}/{path.name}"[:40])
def test_what_was_found_stays_fixed(path: Path) -> None:
    targets.TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("target", sorted(targets.TARGETS))
def test_seeds_are_good_and_mutations_end_well(target: str) -> None:
    rng = np.random.default_rng(0)
    for seed in targets.seeds(target):
        targets.TARGETS[target](seed)
        if len(seed) > 20_000:
            continue
        for _ in range(60):
            data = bytearray(seed)
            for at in rng.integers(0, min(len(data), 700), rng.integers(1, 5)):
                data[at] = rng.integers(0, 256)
            targets.TARGETS[target](bytes(data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.2 else data))
