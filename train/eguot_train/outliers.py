"""Which target photos the transport discounts: the mean outlier weight w(y) of each, kept, listed and shown.

w(y) = Psi2*'(-v(y)) is below 1 where a target is too costly to map any raw to (METHOD.md 1.3). One crop says little of
its photo, so the mean over crops is kept, recent ones more. It multiplies what `typical` said of the whole photo before
the first step.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from eguot_sdk.paths import encoded

from .checkpoint import write_file
from .sheet import captioned, save_sheet

MEMORY = 30
"""Crops of a photo that its mean reaches back."""
SHOWN = 6
THUMBNAIL = 240


class PhotoWeights:
    """Mean w(y) of each photo, 1 until it was seen, and how typical the whole photo is (`photo_typicality`)."""

    def __init__(self, names: Sequence[str], typical: Sequence[float] | None = None) -> None:
        self.names = list(names)
        self.typical = [1.0] * len(self.names) if typical is None else list(typical)
        self.means = [1.0] * len(self.names)
        self.counts = [0] * len(self.names)

    @property
    def weights(self) -> list[float]:
        """What each photo counts, both taken together."""
        return [typical * mean for typical, mean in zip(self.typical, self.means, strict=True)]

    def update(self, photos: Sequence[int], weights: Tensor) -> None:
        """Blend in the weights [B] of crops of `photos`; an index of -1 is of no photo that is kept."""
        for photo, weight in zip(photos, weights.tolist(), strict=True):
            if photo >= 0:
                self.counts[photo] += 1
                rate = 1 / min(self.counts[photo], MEMORY)
                self.means[photo] += rate * (weight - self.means[photo])

    def state(self) -> dict[str, list[float] | list[int]]:
        """What `restore` takes back."""
        return {"means": self.means, "counts": self.counts}

    def restore(self, state: dict[str, list[float] | list[int]]) -> None:
        """Go on from what `state` gave."""
        self.means = [float(x) for x in state["means"]]
        self.counts = [int(x) for x in state["counts"]]

    def save(self, run: Path, photos: Sequence[NDArray[np.uint8]]) -> None:
        """RUN/outliers.csv, all photos with the most discounted first; RUN/outliers.jpg: those, then the least."""
        weights = self.weights
        order = sorted(range(len(self.names)), key=lambda i: weights[i])
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["photo", "weight", "typical", "w", "crops"])
        rows.writerows(
            [self.names[i], *(f"{x:.4f}" for x in (weights[i], self.typical[i], self.means[i])), self.counts[i]]
            for i in order
        )
        write_file(run / "outliers.csv", encoded(text.getvalue()))
        captions = [f"weight {weight:.3f}  {name}" for weight, name in zip(weights, self.names, strict=True)]
        shown = [order[:SHOWN], order[::-1][:SHOWN]]
        save_sheet(run / "outliers.jpg", [[_thumbnail(photos[i], captions[i]) for i in row] for row in shown])


def _thumbnail(photo: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    image = Image.fromarray(photo)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return captioned(np.asarray(image), caption)
