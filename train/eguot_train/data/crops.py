"""Random crops of raws, photos and pairs, ready for training; all randomness comes from the caller's generator.

Raws go through the SDK's `Ingest`, the code the device runs. The eight flips and turns act on the mosaic and on
the truth alike, and the CFA phase follows, so augmentation never misregisters colours. Crop sizes are in packed
pixels: a crop of c gives planes [c, c, 4] and pictures [2c, 2c, 3].
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from eguot_sdk.errors import UsageError
from eguot_sdk.icc import as_srgb
from eguot_sdk.ingest import Ingest
from eguot_sdk.output import lying, turned_by_loading
from eguot_sdk.pairs import PHOTO_FORMATS
from eguot_sdk.paths import visible_files
from eguot_sdk.raw import RawFrame
from eguot_sdk.spec import ColorInput, IspSpec

Planes = NDArray[np.float32]
Picture = NDArray[np.uint8]

PHOTO_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"))
MAX_PHOTO_PIXELS = 178_000_000
"""Pillow refuses little more by itself."""
MIN_PHOTO_SIDE = 8
"""Colours of photos are compared by means of 8x8 pixels."""


def find_files(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """Files below a folder with one of the suffixes, sorted by their path inside it."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    return sorted(visible_files(folder, folder.rglob("*"), suffixes))


def load_photo(path: Path, source: BinaryIO | None = None, *, upright: bool = True) -> Picture:
    """A photo as sRGB, uint8 [H, W, 3], whatever its profile, turned as its EXIF says unless told otherwise.

    Read from `source` where given, and then `path` only names it. Raises UsageError on whatever is wrong with the file.
    """
    try:
        opened = nullcontext(source) if source else path.open("rb")
        with opened as file, Image.open(file, formats=PHOTO_FORMATS) as image:
            if image.width * image.height > MAX_PHOTO_PIXELS:
                most = MAX_PHOTO_PIXELS // 10**6
                raise UsageError(f"{path.name}: {image.width}x{image.height} is too large (at most {most} megapixels)")
            if min(image.size) < MIN_PHOTO_SIDE:
                size, least = f"{image.width}x{image.height}", f"{MIN_PHOTO_SIDE}x{MIN_PHOTO_SIDE}"
                raise UsageError(f"{path.name}: {size} pixels are too few (at least {least})")
            if image.mode == "F":
                raise UsageError(f"{path.name}: floating-point photos have no agreed range; save it with 8 or 16 bits")
            turned = turned_by_loading(image)
            if upright:
                return _eight_bit_rgb(ImageOps.exif_transpose(image))
            return np.ascontiguousarray(lying(_eight_bit_rgb(image), turned), np.uint8)
    except UsageError:
        raise
    except Exception as error:  # a damaged file raises nearly anything out of PIL's decoders
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{path.name} is not a readable photo ({reason:.120})") from error


def _eight_bit_rgb(image: Image.Image) -> Picture:
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16-bit grey, which PIL would clip at 255
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) * 255 + 32767) // 65535
        eight_bit = Image.fromarray(grey.astype(np.uint8))
        eight_bit.info = image.info
        image = eight_bit
    return np.asarray(as_srgb(image).convert("RGB"))


def middle(height: int, width: int, side: int) -> tuple[slice, slice]:
    """The middle of a mosaic or a picture, at most `side` high and wide; keeps the CFA phase."""
    top, left = (max(0, (size - side) // 2) // 2 * 2 for size in (height, width))
    return slice(top, top + side), slice(left, left + side)


def float_spec(color_input: ColorInput) -> IspSpec:
    """The spec training ingests with: float planes, the colour input of the run."""
    return IspSpec(name="train", architecture="", parameters=0, halo=0, color_input=color_input)


def raw_fits(frame: RawFrame, crop: int) -> bool:
    """Whether crops can be taken of a raw, also where its grid starts a pixel later."""
    return min(frame.height, frame.width) >= 2 * crop + 2


def photo_fits(photo: Picture, crop: int) -> bool:
    """Whether crops can be taken of a photo."""
    return min(photo.shape[:2]) >= 2 * crop


class RawCrops:
    """Crops of raws, optionally with the aligned truth of each (uint8 [H, W, 3], same size as the mosaic)."""

    def __init__(
        self, frames: Sequence[RawFrame], color_input: ColorInput, crop: int, truths: Sequence[Picture] | None = None
    ) -> None:
        large = [i for i, f in enumerate(frames) if raw_fits(f, crop)]
        if not large:
            raise UsageError(f"every raw is smaller than the crop of {2 * crop} px: use a smaller crop")
        self.crop = crop
        self.frames = [frames[i] for i in large]
        self.truths = None if truths is None else [truths[i] for i in large]
        spec = float_spec(color_input)
        self._ingests = [Ingest(frame, spec).trimmed() for frame in self.frames]
        self._areas = np.array([f.height * f.width for f in self.frames], np.float64) ** 0.5
        self.share = float(self._areas.sum())
        """How often to draw from here rather than from other crops."""

    def sample(self, rng: np.random.Generator) -> tuple[Planes, Picture | None]:
        """One random crop: planes float32 [c, c, 4] and, with truths, the picture uint8 [2c, 2c, 3]."""
        index = int(rng.choice(len(self.frames), p=self._areas / self._areas.sum()))
        turn = int(rng.integers(8))
        ingest = self._ingests[index].turned(turn)
        height, width = ingest.mosaic.shape
        oy, ox = ingest.crop
        top = int(rng.integers(oy, (height + oy - 2 * self.crop) // 2 + 1))
        left = int(rng.integers(ox, (width + ox - 2 * self.crop) // 2 + 1))
        planes = np.empty((self.crop, self.crop, 4), np.float32)
        ingest.fill(planes, top, left)
        if self.truths is None:
            return planes, None
        truth = turn_picture(self.truths[index], turn)
        y, x = 2 * top - oy, 2 * left - ox
        return planes, truth[y : y + 2 * self.crop, x : x + 2 * self.crop]


class PhotoCrops:
    """Crops of photos, uint8 [2c, 2c, 3]; from a photo as often as its weight says (1 by default), times its size."""

    def __init__(self, photos: Sequence[Picture], crop: int, weights: Sequence[float] | None = None) -> None:
        large = [i for i, p in enumerate(photos) if photo_fits(p, crop)]
        if not large:
            raise UsageError(f"every photo is smaller than the crop of {2 * crop} px: use a smaller crop")
        self.crop = crop
        self.photos = [photos[i] for i in large]
        self.kept = large
        self._areas = np.array([p.shape[0] * p.shape[1] for p in self.photos], np.float64) ** 0.5
        if weights is not None:
            self._areas *= [weights[i] for i in large]
        self.share = float(self._areas.sum())

    def sample(self, rng: np.random.Generator) -> tuple[Picture, int]:
        """One random crop and the index of its photo."""
        index = int(rng.choice(len(self.photos), p=self._areas / self._areas.sum()))
        photo = turn_picture(self.photos[index], int(rng.integers(8)))
        side = 2 * self.crop
        y = int(rng.integers(photo.shape[0] - side + 1))
        x = int(rng.integers(photo.shape[1] - side + 1))
        return photo[y : y + side, x : x + side], index


def turn_picture(picture: Picture, turn: int) -> Picture:
    """One of the eight flips and turns as a view: bit 0 flips rows, bit 1 flips columns, bit 2 transposes first."""
    if turn & 4:
        picture = picture.transpose(1, 0, 2)
    return picture[:: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1]
