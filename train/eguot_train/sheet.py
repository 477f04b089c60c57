"""Sample sheets: pictures side by side in one JPEG, for a person to look at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from eguot_sdk.output import written_beside

GAP = 4


def save_sheet(path: Path, rows: Sequence[Sequence[np.ndarray]], *, quality: int = 90) -> None:
    """Write rows of uint8 pictures [H, W, 3] on white, each row as high as its highest picture."""
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
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "JPEG", quality=quality, subsampling=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(path) as file:
        file.write(buffer.getvalue())
