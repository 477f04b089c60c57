"""Scores of an ISP on a folder of pairs: every metric for every image, their means, and a CSV of them.

Whatever turns a `RawFrame` into a picture can be scored: an ISP file here, a training run or a reference rendering
elsewhere. Pictures are compared as the sensor lay and at the size of the mosaic, so orientation and pixel aspect of the
frames are set aside. One picture is rendered at a time, metrics of earlier ones run beside it: memory is bounded by a
few images.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import EguotError, OutputError, UsageError
from .metrics import PROTOCOL, delta_e_2000, psnr, psnr_affine, ssim
from .output import written_beside
from .pairs import PairLike
from .progress import progress_bar
from .raw import RawFrame

MAX_DB = 100.0
"""PSNR counted for pictures without any error, so that means stay finite."""

Picture = NDArray[np.uint8]
Render = Callable[[RawFrame], Picture]
"""A frame -> uint8 sRGB [H, W, 3] of the size of its mosaic."""


@dataclass(frozen=True, slots=True)
class ImageScore:
    """The metrics of one image, protocol `plain`."""

    name: str
    psnr_db: float
    ssim: float
    de2000: float
    psnr_affine_db: float


METRICS = ("psnr_db", "ssim", "de2000", "psnr_affine_db")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of all images of a folder; `mean` and `summary` take the mean over images."""

    scores: tuple[ImageScore, ...]
    protocol: str = PROTOCOL

    def mean(self, metric: str) -> float:
        """Mean over images of one of METRICS."""
        return float(np.mean([getattr(score, metric) for score in self.scores]))

    def summary(self) -> dict[str, Any]:
        """protocol, images and the mean of each metric, ready for JSON."""
        return {"protocol": self.protocol, "images": len(self.scores)} | {m: self.mean(m) for m in METRICS}

    def write_csv(self, path: Path) -> Path:
        """One row per image under a header row; the folder is made if absent. Raises OutputError."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("name", *METRICS))
        for score in self.scores:
            rows.writerow((score.name, *(f"{getattr(score, metric):.6f}" for metric in METRICS)))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent}: cannot be made ({error.strerror or error})") from error
        with written_beside(path) as file:
            file.write(text.getvalue().encode())
        return path


def evaluate(render: Render, pairs: Sequence[PairLike], *, label: str = "evaluate") -> Evaluation:
    """Score `render` on pairs, with a progress bar on stderr. Raises EguotError naming the pair that failed.

    `render` is called from one thread, one frame after the other.
    """
    if not pairs:
        raise UsageError("no pairs to evaluate on")
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        try:
            scores = tuple(_scores(render, pairs, pool, waiting=workers, label=label))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Evaluation(scores)


def _scores(
    render: Render, pairs: Sequence[PairLike], pool: ThreadPoolExecutor, *, waiting: int, label: str
) -> Iterator[ImageScore]:
    """Scores in the order of the pairs; at most `waiting` rendered pictures are held."""
    running: deque[Future[ImageScore]] = deque()
    with progress_bar(pairs, label=label) as bar:
        for pair in pairs:
            frame = dataclasses.replace(pair.frame(), orientation=1, pixel_aspect=1.0)
            running.append(pool.submit(score_image, pair.name, render(frame), pair.truth()))
            if len(running) > waiting:
                yield running.popleft().result()
                bar.update()
        for future in running:
            yield future.result()
            bar.update()


def score_image(name: str, picture: Picture, truth: Picture) -> ImageScore:
    """All metrics of one image; both uint8 sRGB [H, W, 3]. Raises EguotError where the sizes differ."""
    if picture.shape != truth.shape:
        raise EguotError(f"pair {name}: the picture is {list(picture.shape)}, the truth {list(truth.shape)}")
    return ImageScore(
        name=name,
        psnr_db=min(psnr(picture, truth), MAX_DB),
        ssim=ssim(picture, truth),
        de2000=delta_e_2000(picture, truth),
        psnr_affine_db=min(psnr_affine(picture, truth), MAX_DB),
    )
