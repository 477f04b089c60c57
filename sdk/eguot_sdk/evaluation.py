"""Scores of an ISP on pairs: every metric for every image under a named protocol, their means with intervals, a CSV.

Whatever turns a `RawFrame` into a picture can be scored: an ISP file here, a training run or a reference rendering
elsewhere. Pictures are compared as the sensor lay, so orientation and pixel aspect of the frames are set aside.
`evaluate` renders in this process, one picture after the other, with metrics of earlier ones beside it; `evaluate_each`
lets processes of their own do all of it. Both hold a few images at a time, whatever the number of pairs.

Protocols:
    plain     all pixels, picture and truth of the size of the mosaic
    aligned   the truth warped onto the picture by `registration.register`; pixels without a match are left out
    ntire26   as plain, the truth resized (bicubic) to the picture where sizes differ
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import EguotError, OutputError, UsageError
from .likeness import SPECTRUM, PictureSet, PictureSummary, summarise
from .metrics import WINDOW, delta_e_2000, ms_ssim, psnr, psnr_affine, ssim
from .output import written_beside
from .pairs import PairLike
from .paths import encoded
from .progress import progress_bar
from .raw import RawFrame
from .registration import LEAST_SIDE, register
from .workers import core_count, map_processes

Protocol = Literal["plain", "aligned", "ntire26"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
MAX_DB = 100.0
"""PSNR counted for pictures without any error, so that means stay finite."""

Picture = NDArray[np.uint8]
Render = Callable[[RawFrame], Picture]
"""A frame -> uint8 sRGB [H, W, 3] of the size of its mosaic."""
Perceptual = Callable[[Picture, Picture], float | None]
"""Picture and truth -> their LPIPS, or None where they are too small. Picklable, and safe to call from threads."""


@dataclass(frozen=True, slots=True)
class ImageScore:
    """The metrics of one image."""

    name: str
    psnr_db: float
    ssim: float
    de2000: float
    psnr_affine_db: float
    ms_ssim: float | None = None
    """None: too small for it, or not defined under the protocol."""
    matched: float | None = None
    """Share of the pixels compared, protocol `aligned`; where nothing matched all were, and it is 0."""
    lpips: float | None = None
    """None: too small for it, or without weights."""


METRICS = ("psnr_db", "ssim", "de2000", "psnr_affine_db")
ALL_METRICS = (*METRICS, "ms_ssim", "matched", "lpips")
DRAWS = 2000
LEAST_MATCHED = 0.01


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of all images; `mean` and `summary` take the mean over images."""

    scores: tuple[ImageScore, ...]
    protocol: str = "plain"
    likeness: dict[str, float] = field(default_factory=dict)
    """Distances between the set of pictures and the set of truths, see `likeness`; empty: not asked for."""
    skipped: tuple[str, ...] = ()
    """A line for each pair that could not be read."""

    def mean(self, metric: str) -> float:
        """Mean over images of one of METRICS."""
        return float(np.mean([getattr(score, metric) for score in self.scores]))

    def interval(self, metric: str) -> tuple[float, float]:
        """95% interval of the mean by bootstrap over images (seeded)."""
        return bootstrap_interval(np.array([getattr(score, metric) for score in self.scores]))

    def summary(self) -> dict[str, Any]:
        """protocol, images, the mean and interval of each metric that all images have, ready for JSON."""
        known = [m for m in ALL_METRICS if all(getattr(score, m) is not None for score in self.scores)]
        means = {m: self.mean(m) for m in known}
        intervals = {m: list(self.interval(m)) for m in known}
        result: dict[str, Any] = {"protocol": self.protocol, "images": len(self.scores)}
        return result | means | {"intervals_95": intervals} | self.likeness

    def worst(self, count: int = 10) -> list[str]:
        """Names of the images of lowest PSNR, the worst first."""
        return [score.name for score in sorted(self.scores, key=lambda s: s.psnr_db)[:count]]

    def write_csv(self, path: Path) -> Path:
        """One row per image under a header row; the folder is made if absent. Raises OutputError.

        Without weights for LPIPS there is no such column.
        """
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        columns = [m for m in ALL_METRICS if m != "lpips" or any(score.lpips is not None for score in self.scores)]
        rows.writerow(("name", *columns))
        for score in self.scores:
            values = (getattr(score, metric) for metric in columns)
            rows.writerow((score.name, *("n/a" if value is None else f"{value:.6f}" for value in values)))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent}: cannot be made ({error.strerror or error})") from error
        with written_beside(path) as file:
            file.write(encoded(text.getvalue()))
        return path


def bootstrap_interval(values: NDArray[Any]) -> tuple[float, float]:
    """95% percentile interval of the mean of values over images, from 2,000 seeded draws."""
    rng = np.random.default_rng(0)
    means = [float(values[rng.integers(len(values), size=len(values))].mean()) for _ in range(DRAWS)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def evaluate(
    render: Render,
    pairs: Sequence[PairLike],
    *,
    label: str = "evaluate",
    protocol: Protocol = "plain",
    perceptual: Perceptual | None = None,
    skip_damaged: bool = False,
) -> Evaluation:
    """Score `render` on pairs and say how alike the sets of pictures are, with a progress bar on stderr.

    `render` is called from one thread, one frame after the other. Raises EguotError naming the pair that failed; with
    `skip_damaged` such pairs are left out and named in `skipped`, and it raises where none can be scored.
    """
    if not pairs:
        raise UsageError("no pairs to evaluate on")
    workers = core_count()
    score = partial(score_image, protocol=protocol, perceptual=perceptual)
    results = _Results()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for result in _scored(render, pairs, pool, score, waiting=workers, label=label):
                if isinstance(result, EguotError) and not skip_damaged:
                    raise result
                results.add(result)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results.evaluation(protocol)


def evaluate_each(
    open_render: Callable[[], Render],
    pairs: Sequence[PairLike],
    *,
    label: str = "evaluate",
    protocol: Protocol = "plain",
    perceptual: Perceptual | None = None,
    workers: int | None = None,
) -> Evaluation:
    """Like `evaluate` with `skip_damaged`, in processes, one a core.

    `open_render` is called once in each process and must be picklable, as must the pairs.
    """
    results = _Results()
    score = partial(score_image, protocol=protocol, perceptual=perceptual)
    shared = map_processes(
        _score_there, pairs, workers=workers, initializer=_open_there, arguments=(open_render, score)
    )
    with progress_bar(len(pairs), label=label) as bar:
        for result in shared:
            results.add(result)
            bar.update()
    return results.evaluation(protocol)


Score = Callable[[str, Picture, Picture], ImageScore]
Scored = tuple[ImageScore, PictureSummary | None, PictureSummary | None]
"""The metrics of an image, and summaries of picture and truth; None where they are too small for one."""


class _Results:
    """Gathers what becomes of each pair, in their order."""

    def __init__(self) -> None:
        self._scores: list[ImageScore] = []
        self._problems: list[str] = []
        self._pictures, self._truths = PictureSet(), PictureSet()
        self._whole = True

    def add(self, result: Scored | EguotError) -> None:
        if isinstance(result, EguotError):
            self._problems.append(str(result))
            return
        score, of_picture, of_truth = result
        self._scores.append(score)
        if of_picture is None or of_truth is None:
            self._whole = False
        else:
            self._pictures.add(of_picture)
            self._truths.add(of_truth)

    def evaluation(self, protocol: Protocol) -> Evaluation:
        """Raises EguotError where no pair was scored."""
        if not self._scores:
            raise EguotError(self._problems[0] if self._problems else "no pairs to evaluate on")
        likeness = self._pictures.distances(self._truths) if self._whole else {}
        return Evaluation(tuple(self._scores), protocol, likeness, tuple(self._problems))


_THERE: dict[str, Any] = {}
"""Of a worker process: how it renders, and how it scores."""


def _open_there(open_render: Callable[[], Render], score: Score) -> None:
    _THERE.update(render=open_render(), score=score)


def _score_there(pair: PairLike) -> Scored | EguotError:
    try:
        return _with_summaries(_THERE["score"], pair.name, _THERE["render"](_as_sensor(pair.frame())), pair.truth())
    except UsageError:
        raise
    except EguotError as error:
        return error


def _with_summaries(score: Score, name: str, picture: Picture, truth: Picture) -> Scored:
    scored = score(name, picture, truth)
    if min(*picture.shape[:2], *truth.shape[:2]) < SPECTRUM:
        return scored, None, None
    return scored, summarise(picture), summarise(truth)


def _as_sensor(frame: RawFrame) -> RawFrame:
    return dataclasses.replace(frame, orientation=1, pixel_aspect=1.0)


def _scored(
    render: Render,
    pairs: Sequence[PairLike],
    pool: ThreadPoolExecutor,
    score: Score,
    *,
    waiting: int,
    label: str,
) -> Iterator[Scored | EguotError]:
    """What becomes of each pair, in their order; at most `waiting` rendered pictures are held."""
    running: deque[Future[Scored] | EguotError] = deque()
    with progress_bar(pairs, label=label) as bar:
        for pair in pairs:
            try:
                picture, truth = render(_as_sensor(pair.frame())), pair.truth()
                running.append(pool.submit(_with_summaries, score, pair.name, picture, truth))
            except UsageError:
                raise
            except EguotError as error:
                running.append(error)
            if len(running) > waiting:
                yield _result(running.popleft())
                bar.update()
        for waited in running:
            yield _result(waited)
            bar.update()


def _result(waited: Future[Scored] | EguotError) -> Scored | EguotError:
    if isinstance(waited, EguotError):
        return waited
    try:
        return waited.result()
    except UsageError:
        raise
    except EguotError as error:
        return error


def score_image(
    name: str,
    picture: Picture,
    truth: Picture,
    protocol: Protocol = "plain",
    perceptual: Perceptual | None = None,
) -> ImageScore:
    """All metrics of one image; both uint8 sRGB [H, W, 3]. Raises EguotError where sizes differ or are too small."""
    if protocol == "ntire26" and picture.shape != truth.shape:
        truth = _resized(truth, picture.shape[:2])
    if picture.shape != truth.shape:
        raise EguotError(f"pair {name}: the picture is {list(picture.shape)}, the truth {list(truth.shape)}")
    least = LEAST_SIDE if protocol == "aligned" else WINDOW
    if min(picture.shape[:2]) < least:
        raise EguotError(f"pair {name}: {list(picture.shape)}, too small to score: {least} x {least} pixels are needed")
    if protocol == "aligned":
        return _aligned_score(name, picture, truth, perceptual)
    return ImageScore(
        name=name,
        psnr_db=min(psnr(picture, truth), MAX_DB),
        ssim=ssim(picture, truth),
        de2000=delta_e_2000(picture, truth),
        psnr_affine_db=min(psnr_affine(picture, truth), MAX_DB),
        ms_ssim=ms_ssim(picture, truth),
        lpips=perceptual(picture, truth) if perceptual is not None else None,
    )


def _aligned_score(name: str, picture: Picture, truth: Picture, perceptual: Perceptual | None) -> ImageScore:
    """Against the registered truth, over the matched pixels; over all, as they lie, where hardly any matched.

    For LPIPS, which needs a whole picture, the others are black in both.
    """
    warped, mask = register(picture, truth)
    matched = float(mask.mean())
    if matched < LEAST_MATCHED:
        score = score_image(name, picture, truth, perceptual=perceptual)
        return dataclasses.replace(score, ms_ssim=None, matched=0.0)
    seen, wanted = picture[mask][:, None], warped[mask][:, None]
    return ImageScore(
        name=name,
        psnr_db=min(psnr(seen, wanted), MAX_DB),
        ssim=ssim(picture, warped, mask),
        de2000=delta_e_2000(seen, wanted),
        psnr_affine_db=min(psnr_affine(seen, wanted), MAX_DB),
        matched=matched,
        lpips=perceptual(picture * mask[..., None], warped * mask[..., None]) if perceptual is not None else None,
    )


def _resized(picture: Picture, size: tuple[int, int]) -> Picture:
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC))
