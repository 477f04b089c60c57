"""Sample sheets: pictures side by side in one, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from eguot_sdk.errors import OutputError, UsageError
from eguot_sdk.output import write_image

GAP = 4


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """A copy of uint8 [H, W, 3] with a line of text on white in its top left corner."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    text = text.encode("ascii", "replace").decode()  # all that Pillow's smallest font has
    _, _, right, bottom = draw.textbbox((3, 2), text)
    draw.rectangle((0, 0, right + 3, bottom + 2), fill=(255, 255, 255))
    draw.text((3, 2), text, fill=(0, 0, 0))
    return np.asarray(image)


def save_sheet(path: Path, rows: Sequence[Sequence[np.ndarray]], *, quality: int = 90) -> None:
    """Write rows of uint8 pictures [H, W, 3] on white, each row as high as its highest picture, in the suffix's format.

    `quality`: of JPEG. Raises OutputError, UsageError where there are no rows.
    """
    if not rows:
        raise UsageError(f"{path}: nothing to draw")
    height = sum(max(p.shape[0] for p in row) + GAP for row in rows) + GAP
    width = max(sum(p.shape[1] + GAP for p in row) for row in rows) + GAP
    canvas = np.full((height, width, 3), 255, np.uint8)
    y = GAP
    for row in rows:
        x = GAP
        for picture in row:
            canvas[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
            x += picture.shape[1] + GAP
        y += max(p.shape[0] for p in row) + GAP
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be made ({error.strerror or error})") from error
    write_image(path, canvas, quality=quality)
