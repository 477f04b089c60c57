"""A report as one HTML page that needs no network: `page.html` with the report and small crops written into it.

Everything comes from report.json; the crops from what each device made of the pairs. Pictures that came out alike on
several devices are in the page once.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eguot_sdk.errors import EguotError
from eguot_sdk.pairs import list_pairs

from .judge import read_picture
from .schema import Report, to_dict

TEMPLATE = Path(__file__).with_name("page.html")
MAX_IMAGES = 2
CROP = 128
"""Side of the crops, in pixels of the picture."""
JPEG_QUALITY = 90


def to_html(report: Report, *, pictures: Path | None = None, pairs: Path | None = None) -> str:
    """The page. `pictures`: what `profile` kept, as DEVICE-MODEL/NAME.png; `pairs`: the folder with the truths."""
    data = {"report": to_dict(report), **_crops(report, pictures, pairs)}
    # In a script element only `<` could end it; JSON may write it as an escape anywhere it occurs.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return TEMPLATE.read_text(encoding="utf-8").replace("@DATA@", text)


def _crops(report: Report, pictures: Path | None, folder: Path | None) -> dict[str, Any]:
    """`images`: data URLs; `crops`: for each picture its name, and where its crops are in `images` by who made them."""
    images: dict[str, int] = {}
    crops: list[dict[str, Any]] = []
    if pictures is None or folder is None or report.pairs is None:
        return {"images": [], "crops": []}
    for pair in list_pairs(folder)[:MAX_IMAGES]:
        truth = pair.truth()
        top, left = _busiest(truth)
        by: dict[str, int] = {}
        made = {"truth": truth}
        for d, device in enumerate(report.devices):
            for m in range(len(device.models)):
                try:
                    made[f"{d}-{m}"] = read_picture(pictures / f"{d}-{m}", pair.name)
                except EguotError:
                    continue  # adb devices make no pictures
        for key, picture in made.items():
            url = _data_url(picture[top : top + CROP, left : left + CROP])
            by[key] = images.setdefault(url, len(images))
        crops.append({"name": pair.name, "by": by})
    return {"images": list(images), "crops": crops}


def _busiest(picture: NDArray[np.uint8]) -> tuple[int, int]:
    """Top and left of the crop with the most detail, on a coarse grid."""
    height, width = picture.shape[:2]
    grey = picture.mean(axis=2)
    detail = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    tops, lefts = (range(0, max(size - CROP, 0) + 1, CROP // 2) for size in (height, width))
    return max(
        ((t, x) for t in tops for x in lefts), key=lambda p: detail[p[0] : p[0] + CROP, p[1] : p[1] + CROP].sum()
    )


def _data_url(picture: NDArray[np.uint8]) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
