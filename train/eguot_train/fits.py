"""What a run fits to its data before the first step: alignment of R(x), scales of costs, how often photos are drawn.

The alignment is fitted once more on the way, with what the potential has said of the photos by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eguot_sdk.pairs import PairLike

from .alignment import fit_alignment, fit_plain_alignment
from .config import TrainConfig
from .cost import Cost
from .data.batches import CALIBRATION, Batches, Sources, pictures
from .losses import pair_loss
from .reference import Alignment, Reference, half_size
from .render import frame_planes
from .typical import photo_typicality

MOST_PAIRS = 50
"""Pairs that the alignment of a mixed run looks at."""


@dataclass(slots=True)
class Fixed:
    """What is fitted once before the first step and then frozen."""

    alignment: Alignment
    cost: Cost
    pair_scale: float
    """Median pair loss between unrelated pictures, so pair costs and transport costs share one scale."""
    typical: list[float] | None = None
    """Weight of each photo among the targets (`typical.photo_typicality`); None: all alike."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "tone": self.alignment.tone,
            "chroma": self.alignment.chroma,
            "cost_scales": self.cost.scales,
            "pair_scale": self.pair_scale,
            "typical": self.typical,
        }


def fit_fixed(config: TrainConfig, sources: Sources) -> Fixed:
    """Alignment from colour samples; cost scales from unrelated references and targets."""
    if not config.unpaired:
        return Fixed(Alignment(), Cost(config.cost_strength, config.cost_weights), 1.0)
    alignment = align(config, sources)
    count = replace(config, pseudo=0.0, batch=32, accumulate=1, mode="unpaired")
    batch = Batches(count, replace(sources, pairs=[]), alignment).at(CALIBRATION)
    assert batch.raw_v is not None
    assert batch.target is not None
    references = Reference(alignment)(batch.raw_v)
    cost = Cost(config.cost_strength, config.cost_weights).calibrate(references, batch.target)
    with torch.no_grad():
        pair_scale = float(pair_loss(references, batch.target).median())
    return Fixed(alignment, cost, pair_scale, typicality(config, sources, alignment))


def typicality(config: TrainConfig, sources: Sources, alignment: Alignment) -> list[float] | None:
    """How often to draw each photo, None: all alike. Balanced transport counts every target in full.

    The alignment is not fitted with it: photos that look like the raws through a first alignment would confirm it.
    """
    if config.psi_target == "linear" or "srgb" in sources.streamed:
        return None
    return photo_typicality(sources.frames, sources.photos, alignment, config.color_input)


def align(config: TrainConfig, sources: Sources, photo_weights: Sequence[float] | None = None) -> Alignment:
    """The alignment between a run's raws and photos, and its pairs; `photo_weights`: mean w(y) of each photo."""
    source, target = colour_samples(config, sources)
    if not config.weighted_alignment:
        return fit_plain_alignment(source, target)
    pairs = [pair_colours(config, pair) for pair in sources.pairs[:MOST_PAIRS]]
    return fit_alignment(source, target, target_weights=photo_weights, pairs=pairs)


def pair_colours(config: TrainConfig, pair: PairLike) -> tuple[Tensor, Tensor]:
    """8x8 means [n, 3] of a pair's unaligned R(x) and of its truth, at most 200."""
    frame, truth = pair.frame(), pair.truth()
    planes, (y, x) = frame_planes(frame, config.color_input, 0, 4)
    half = half_size(planes)
    # Where the mosaic does not start with red, its grid lies a pixel off the truth's: little, of eight.
    rows, columns = (frame.height - y) // 8, (frame.width - x) // 8
    colours = [
        torch.nn.functional.avg_pool2d(half, 4)[0, :, :rows, :columns],
        torch.nn.functional.avg_pool2d(pictures([truth]), 8)[0, :, :rows, :columns],
    ]
    every = max(1, rows * columns // 200)
    first, second = (c.reshape(3, -1).T[::every] for c in colours)
    return first, second


def colour_samples(config: TrainConfig, sources: Sources) -> tuple[list[Tensor], list[Tensor]]:
    """Colours [n, 3] of each unaligned R(raw) and each target: 8x8 means of output pixels, at most 400 a picture."""
    rng = np.random.default_rng(config.seed)
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for frame in sources.frames:
        planes, _ = frame_planes(frame, config.color_input, 0, 4)
        half = half_size(planes)
        found[0].append(_block_means(half, 4, rng))
    for photo in sources.photos:
        found[1].append(_block_means(pictures([photo]), 8, rng))
    return found


def _block_means(rgb: Tensor, block: int, rng: np.random.Generator) -> Tensor:
    means = torch.nn.functional.avg_pool2d(rgb, block)[0].reshape(3, -1).T
    return means[torch.from_numpy(rng.permutation(len(means))[:400])]


def fixed_from_state(config: TrainConfig, state: dict[str, Any]) -> Fixed:
    """The inverse of `Fixed.state`, from the state of a checkpoint."""
    saved = state["fixed"]
    return Fixed(
        alignment_from_state(saved),
        Cost(config.cost_strength, config.cost_weights, tuple(saved["cost_scales"])),
        saved["pair_scale"],
        saved.get("typical"),
    )


def alignment_from_state(saved: dict[str, Any]) -> Alignment:
    """The alignment of a run, from `fixed` of its checkpoint's state."""
    (a, b), (c, d) = saved["chroma"]
    return Alignment(tuple(saved["tone"]), ((a, b), (c, d)))
