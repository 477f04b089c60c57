"""A synthetic camera: photos become raw files and raw/truth pairs, so results can be checked without a real sensor.

The photo is the truth: it is taken as what the camera's *look* (tone curve, saturation, hue) made of a linear scene.
Shooting undoes the look, then the camera matrix and the white balance, and adds mosaic, noise and quantisation.
A seed fixes the camera whatever the folder; the as-shot white balance and the noise of a photo depend on the seed
and the photo's name alone. Lens effects, motion and the spatial processing of real cameras are left out.
Linear values are in [0, 1] with 1 at the photo's white; planes are R, Gr, Gb, B.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eguot_sdk.bayer import RED_AT
from eguot_sdk.errors import EguotError, MissingDependency, OutputError, UsageError
from eguot_sdk.ingest import PLANE_AT, TYPICAL_MATRIX
from eguot_sdk.metrics import LUMA, SRGB_TO_XYZ
from eguot_sdk.output import written_beside
from eguot_sdk.pairs import write_pair
from eguot_sdk.paths import encoded
from eguot_sdk.progress import progress_bar
from eguot_sdk.raw import MIN_SIDE, RawFrame

from .crops import PHOTO_SUFFIXES, find_files, load_photo
from .datasets.base import distinct_names
from .scenes import make_scene

SCENE_SIZE = (480, 640)
STRIP_ROWS = 256
"""Rows worked on at once; fixed, since the noise is drawn strip by strip."""

RGB_TO_YCC = np.array([LUMA, [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Look:
    """How a camera turns linear sRGB into its picture: v = twist @ tone(srgb_curve(linear)), clipped to [0, 1].

    tone(e) = (1 - contrast) * (1 + lift) e / (1 + lift e) + contrast * smoothstep(e) is monotone, 0 at 0, 1 at 1, and
    not steep at black, where noise is. `twist` [3, 3] scales and turns chroma; its rows sum to 1: greys stay grey.
    """

    lift: float
    contrast: float
    saturation: float
    hue: float
    """Degrees."""

    @property
    def twist(self) -> NDArray[np.float64]:
        """[3, 3], acts on column vectors of tone-mapped RGB."""
        c, s = math.cos(math.radians(self.hue)), math.sin(math.radians(self.hue))
        chroma = np.eye(3)
        chroma[1:, 1:] = self.saturation * np.array([[c, -s], [s, c]])
        return np.linalg.inv(RGB_TO_YCC) @ chroma @ RGB_TO_YCC

    def tone(self, companded: NDArray[Any]) -> NDArray[Any]:
        """The tone curve on companded values in [0, 1]."""
        smooth = companded * companded * (3 - 2 * companded)
        lifted = (1 + self.lift) * companded / (1 + self.lift * companded)
        return (1 - self.contrast) * lifted + self.contrast * smooth

    def apply(self, linear: NDArray[Any]) -> Float32:
        """Linear sRGB [..., 3] -> display sRGB [..., 3] in [0, 1], not rounded."""
        toned = self.tone(_srgb_curve(np.clip(linear, 0, 1)))
        return np.clip(toned @ self.twist.T, 0, 1).astype(np.float32)

    def undo(self, display: NDArray[Any]) -> Float32:
        """The inverse of `apply`; colours that no scene gives are moved to the nearest on the gamut's border."""
        toned = display.astype(np.float32) @ np.linalg.inv(self.twist).T.astype(np.float32)
        knots = np.linspace(0, 1, 4097)
        inverse = _srgb_linear(np.interp(np.linspace(0, 1, 65536), self.tone(knots), knots))
        index = np.clip(toned * 65535 + 0.5, 0, 65535).astype(np.uint16)
        return inverse.astype(np.float32)[index]


@dataclass(frozen=True, eq=False)
class SynthCamera:
    """One camera body. Build it with `from_seed`; the fields are the truth a trained ISP has to find."""

    seed: int
    cfa: str
    bits: int
    black: tuple[int, int, int, int]
    """Counts, R, Gr, Gb, B."""
    white: int
    """Count at which the sensor saturates, all planes."""
    matrix: NDArray[np.float64]
    """[3, 3] white-balanced camera RGB -> linear sRGB, rows sum to 1."""
    daylight: tuple[float, float, float]
    """White-balance gains under the illuminant of the matrix, G = 1."""
    exposure: float
    """Linear raw value of the photo's white in the green planes; the rest is headroom."""
    shot: float
    """Variance of the noise per unit of linear raw signal."""
    read: float
    """Standard deviation of the noise at black, as a share of the linear range."""
    look: Look

    @classmethod
    def from_seed(cls, seed: int, cfa: str = "RGGB") -> SynthCamera:
        """The camera of a seed; `cfa` (RGGB GRBG GBRG BGGR) changes nothing else about it."""
        if cfa not in RED_AT:
            raise UsageError(f"cfa must be one of {', '.join(RED_AT)}, not {cfa!r}")
        if seed < 0:
            raise UsageError(f"seed must be 0 or more, not {seed}")
        rng = np.random.default_rng([seed, 0xCA3E])
        bits = int(rng.integers(10, 15))
        base = int(rng.uniform(0.012, 0.06) * 2**bits)
        blacks = [base + int(offset) for offset in rng.integers(-2, 3, 4)]
        return cls(
            seed=seed,
            cfa=cfa,
            bits=bits,
            black=(blacks[0], blacks[1], blacks[2], blacks[3]),
            white=2**bits - 1 - int(rng.uniform(0, 0.02) * 2**bits),
            matrix=_random_matrix(rng),
            daylight=(float(rng.uniform(1.6, 2.2)), 1.0, float(rng.uniform(1.4, 2.0))),
            exposure=float(rng.uniform(0.8, 0.95)),
            shot=float(np.exp(rng.uniform(np.log(5e-5), np.log(3e-4)))),
            read=float(np.exp(rng.uniform(np.log(3e-4), np.log(1.2e-3)))),
            look=Look(
                lift=float(rng.uniform(0.2, 0.9)),
                contrast=float(rng.uniform(0.2, 0.6)),
                saturation=float(rng.uniform(1.1, 1.35)),
                hue=float(rng.uniform(-6, 6)),
            ),
        )

    def at_iso(self, times: float) -> SynthCamera:
        """The camera at so many times the ISO: so many times less light, hence the variance of the shot noise.

        Read noise comes partly from before the amplifier, which grows with it, and partly from after it: in between.
        """
        return dataclasses.replace(self, shot=self.shot * times, read=self.read * times**0.7)

    def gains(self, name: str) -> tuple[float, float, float]:
        """As-shot white-balance gains of the photo called `name`: the daylight gains moved along warm-cold and tint."""
        rng = self._rng(name, 1)
        warm, tint = rng.normal(0, 0.10), rng.normal(0, 0.03)
        red, blue = self.daylight[0] * math.exp(-warm + tint), self.daylight[2] * math.exp(warm + tint)
        # Kept to six digits: that is what the DNG can hold.
        return 1 / round(1 / max(red, 1.05), 6), 1.0, 1 / round(1 / max(blue, 1.05), 6)

    def expose(self, photo: UInt8) -> Float32:
        """The scene behind a photo as the sensor sees it: uint8 sRGB [H, W, 3] -> white-balanced camera RGB, linear."""
        inverse = np.linalg.inv(self.matrix).T.astype(np.float32)
        camera = self.look.undo(photo.astype(np.float32) / np.float32(255)) @ inverse
        return np.clip(camera, 0, 1) * np.float32(self.exposure)

    def develop(self, camera: NDArray[Any]) -> Float32:
        """The inverse of `expose`, the ideal ISP after demosaicing: camera RGB [..., 3] -> display sRGB in [0, 1]."""
        return self.look.apply(camera / self.exposure @ self.matrix.T)

    def shoot(self, photo: UInt8, name: str) -> RawFrame:
        """The raw frame of which `photo` (uint8 sRGB [H, W, 3], even H and W) is the perfect picture."""
        if (
            photo.ndim != 3
            or photo.shape[2] != 3
            or photo.dtype != np.uint8
            or photo.shape[0] % 2
            or photo.shape[1] % 2
        ):
            raise UsageError(f"shoot needs an even uint8 [H, W, 3] photo, not {photo.dtype} {photo.shape}")
        gains = self.gains(name)
        rng = self._rng(name, 2)
        mosaic = np.empty(photo.shape[:2], np.uint16)
        for top in range(0, len(photo), STRIP_ROWS):
            self._expose_strip(mosaic[top : top + STRIP_ROWS], photo[top : top + STRIP_ROWS], gains, rng)
        return RawFrame.from_array(
            mosaic,
            cfa=self.cfa,
            black=tuple(float(b) for b in self.black),
            white=(float(self.white),) * 4,
            white_balance=gains,
            matrix=self.matrix,
        )

    def _expose_strip(
        self, out: NDArray[np.uint16], photo: UInt8, gains: tuple[float, float, float], rng: np.random.Generator
    ) -> None:
        camera = self.expose(photo)
        for plane, (y, x) in enumerate(plane_offsets(self.cfa)):
            channel = (0, 1, 1, 2)[plane]
            signal = camera[y::2, x::2, channel].astype(np.float64) / gains[channel]
            signal = rng.poisson(signal / self.shot) * self.shot + rng.normal(0, self.read, signal.shape)
            counts = np.rint(self.black[plane] + signal * (self.white - self.black[plane]))
            out[y::2, x::2] = np.clip(counts, 0, self.white)

    def _rng(self, name: str, purpose: int) -> np.random.Generator:
        digest = int.from_bytes(hashlib.sha256(encoded(name)).digest()[:8], "big")
        return np.random.default_rng([self.seed, purpose, digest])


def _srgb_curve(linear: NDArray[Any]) -> NDArray[Any]:
    """The transfer curve of sRGB (IEC 61966-2-1) on [0, 1]."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.power(linear, 1 / 2.4) - 0.055)


def _srgb_linear(encoded: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `_srgb_curve`."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def plane_offsets(cfa: str) -> list[tuple[int, int]]:
    """Row and column in the 2x2 pattern of the planes R, Gr, Gb, B."""
    row, col = RED_AT[cfa]
    return [((row + dy) % 2, (col + dx) % 2) for dy, dx in PLANE_AT]


def _random_matrix(rng: np.random.Generator) -> NDArray[np.float64]:
    """A camera matrix around a typical one. Its inverse has no negative entry, so every colour is a sensor signal."""
    while True:
        matrix = TYPICAL_MATRIX + np.where(np.eye(3) > 0, 0, rng.normal(0, 0.08, (3, 3)))
        np.fill_diagonal(matrix, 0)
        np.fill_diagonal(matrix, 1 - matrix.sum(axis=1))
        if np.linalg.inv(matrix).min() >= 0:
            return matrix


def dng_bytes(frame: RawFrame, *, model: str = "Synthetic") -> bytes:
    """An uncompressed 16-bit DNG of a Bayer frame that has white balance and matrix; the same bytes every time.

    ColorMatrix1 (XYZ -> camera, D65) is chosen so that a reader that scales its rows to white gets `frame.matrix`.
    """
    try:
        import tifffile
    except ImportError as error:
        raise MissingDependency("tifffile", needed_for="writing DNG", pip="'eguot-sdk[train]'") from error
    if frame.white_balance is None or frame.matrix is None:
        raise UsageError("a DNG needs a white balance and a camera matrix: this frame lacks one")
    neutral = 1 / np.array(frame.white_balance)
    xyz_to_camera = np.diag(neutral) @ np.linalg.inv(SRGB_TO_XYZ @ frame.matrix)
    offsets = plane_offsets(frame.cfa)
    colours, blacks = bytearray(4), [0] * 4
    for plane, (y, x) in enumerate(offsets):
        colours[2 * y + x] = (0, 1, 1, 2)[plane]
        blacks[2 * y + x] = round(frame.black[plane])
    short, text, byte, long, rational, srational = 3, 2, 1, 4, 5, 10
    tags = [
        (271, text, 0, "eguot-sdk", True),
        (272, text, 0, model, True),
        (33421, short, 2, (2, 2), True),  # CFARepeatPatternDim
        (33422, byte, 4, bytes(colours), True),  # CFAPattern
        (50706, byte, 4, bytes((1, 4, 0, 0)), True),  # DNGVersion
        (50707, byte, 4, bytes((1, 1, 0, 0)), True),  # DNGBackwardVersion
        (50708, text, 0, f"eguot-sdk {model}", True),  # UniqueCameraModel
        (50713, short, 2, (2, 2), True),  # BlackLevelRepeatDim
        (50714, short, 4, tuple(blacks), True),  # BlackLevel
        (50717, long, 1, round(frame.white[0]), True),  # WhiteLevel
        (50721, srational, 9, _rationals(xyz_to_camera.ravel()), True),  # ColorMatrix1
        (50728, rational, 3, _rationals(neutral), True),  # AsShotNeutral
        (50778, short, 1, 21, True),  # CalibrationIlluminant1: D65
    ]
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, frame.mosaic, photometric="cfa", software="eguot-sdk", metadata=None, extratags=tags, byteorder="<"
    )
    return buffer.getvalue()


def _rationals(values: NDArray[np.float64]) -> tuple[int, ...]:
    return tuple(part for value in values for part in (round(float(value) * 1_000_000), 1_000_000))


def photo_names(folder: Path) -> dict[str, Path]:
    """Photos below a folder by name: the stem of the file, or its path in the folder where stems collide."""
    names = distinct_names(folder, find_files(folder, PHOTO_SUFFIXES), whole=False)
    return {name: path for path, name in names.items()}


@dataclass(frozen=True)
class SynthResult:
    """What `synth_folder` did: names written, and one line for each file that failed."""

    written: list[str]
    failed: list[str]


def synth_folder(
    out: Path, *, srgb: Path | None = None, scenes: int = 0, first_scene: int = 0, cfa: str = "RGGB", seed: int = 0
) -> SynthResult:
    """Shoot every photo below `srgb`, and `scenes` procedural scenes from number `first_scene` on, with the camera of
    `seed`. A scene is the same whatever the seed.

    Writes OUT/raw/NAME.dng and OUT/pairs/NAME_raw.png, NAME.json, NAME_srgb.png; `out` must be absent or empty. Shows a
    progress bar on stderr. A photo that cannot be read is listed and skipped. Raises UsageError, OutputError.
    """
    camera = SynthCamera.from_seed(seed, cfa)
    sources: dict[str, Callable[[], UInt8]] = {}
    for name, path in (photo_names(srgb) if srgb else {}).items():
        sources[name] = partial(load_photo, path)
    for i in range(first_scene, first_scene + scenes):
        name = f"scene_{i:05d}"
        while name in sources:  # a photo is called so
            name += "_"
        sources[name] = partial(make_scene, i, *SCENE_SIZE)
    if not sources:
        where = f"{srgb} holds no photos ({' '.join(sorted(PHOTO_SUFFIXES))})" if srgb else "no photos given"
        raise UsageError(f"{where} and no scenes are asked for: nothing to shoot; give --srgb PHOTOS or --scenes N")
    _make_empty(out)
    result = SynthResult([], [])
    with progress_bar(len(sources), label="synth") as bar:
        for name, problem in _shoot_all(camera, sources, out):
            if problem is None:
                result.written.append(name)
            else:
                result.failed.append(problem)
            bar.update()
    return result


def _shoot_all(
    camera: SynthCamera, sources: dict[str, Callable[[], UInt8]], out: Path
) -> Iterator[tuple[str, str | None]]:
    def one(item: tuple[str, Callable[[], UInt8]]) -> tuple[str, str | None]:
        try:
            _shoot_one(camera, item[0], item[1], out)
        except OutputError:
            raise
        except EguotError as error:
            return item[0], str(error)
        return item[0], None

    with warnings.catch_warnings(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # PIL on broken EXIF in sound photos; sizes are bounded by `load_photo`
        yield from pool.map(one, sources.items())


def _shoot_one(camera: SynthCamera, name: str, load: Callable[[], UInt8], out: Path) -> None:
    photo = load()
    truth = np.ascontiguousarray(photo[: photo.shape[0] // 2 * 2, : photo.shape[1] // 2 * 2])
    if min(truth.shape[:2]) < MIN_SIDE:
        size = f"{photo.shape[1]}x{photo.shape[0]}"
        raise EguotError(f"{name}: a photo of {size} pixels is too small, {MIN_SIDE}x{MIN_SIDE} at least")
    frame = camera.shoot(truth, name)
    write_pair(out / "pairs", name, frame, truth)
    with written_beside(out / "raw" / f"{name}.dng") as file:
        file.write(dng_bytes(frame, model=f"Synthetic {camera.seed}"))


def _make_empty(out: Path) -> None:
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out}: exists and is not an empty folder; name another or remove it")
        for sub in ("raw", "pairs"):
            (out / sub).mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be made ({error.strerror or error})") from error
