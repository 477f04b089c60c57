"""ICC profiles of pictures: colours that are not sRGB become sRGB, all others stay as they are, bit for bit.

A profile is judged by what it does to colours, not by its name: many profiles mean sRGB, with tables of their own.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

MAX_PROFILE_BYTES = 4 << 20
"""Those of presses, the largest in use, have some two megabytes."""
NEAR = 3
"""Levels of 255 by which profiles that mean sRGB differ; those of other spaces move some colours by dozens."""
MODES = {"RGB": "RGB", "RGBA": "RGB", "P": "RGB", "L": "L", "LA": "L", "CMYK": "CMYK"}
"""Mode of an image -> mode of its colours."""
SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour space of a profile -> mode of what it describes."""

GREYS = np.arange(256, dtype=np.uint8)[None]


def as_srgb(image: Image.Image) -> Image.Image:
    """The 8-bit picture in sRGB, mode RGB, where its profile says that it is not; else the image itself.

    Profiles that are damaged, too large or of another kind of picture are passed over.
    """
    profile_bytes = image.info.get("icc_profile")
    if not isinstance(profile_bytes, bytes) or len(profile_bytes) > MAX_PROFILE_BYTES:  # a TIFF may hold numbers
        return image
    from PIL import Image, ImageCms

    try:  # ImportError: a Pillow without LittleCMS
        profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes))
        mode = SPACES.get(profile.profile.xcolor_space.strip())
        if mode is None or mode != MODES.get(image.mode):
            return image
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        if mode == "L":  # optimised, the shadows of linear profiles are off by up to 10 levels
            flags |= ImageCms.Flags.NOOPTIMIZE
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags,
        )
        if mode != "CMYK" and _means_srgb(transform, mode):
            return image
        if mode == "L":  # there are but 256 greys, and LittleCMS takes long where it does not optimise
            table = np.asarray(ImageCms.applyTransform(Image.fromarray(GREYS), transform))[0]
            return Image.fromarray(table[np.asarray(image.convert("L"))])
        converted: Image.Image | None = ImageCms.applyTransform(image.convert(mode), transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError):
        return image
    return converted or image


def _means_srgb(transform: object, mode: str) -> bool:
    """Whether a transform to sRGB leaves colours spread over all of RGB, or all greys, where they are."""
    from PIL import Image, ImageCms

    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3) if mode == "RGB" else GREYS
    moved = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform), np.int16)  # type: ignore[arg-type]
    return bool(np.abs(moved - (colours if mode == "RGB" else colours[..., None])).max() <= NEAR)
