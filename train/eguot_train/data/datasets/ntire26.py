"""NTIRE 2026 learned ISP with unpaired data: raws as arrays, photos of other scenes beside them.

    ROOT/train/raws/*.npy     [h, w, 4] planes R, Gr, Gb, B (the organisers write R, G, G, B)
    ROOT/train/jpegs/*        photos, unpaired
    ROOT/test/raws/*.npy      rendered at twice the size; pictures of the same names in test/jpegs are the truth

A plain folder of .npy raws is read the same way. The organisers' baseline divides by 1023 and subtracts nothing;
levels are detected here, and dataset.json overrules that.
"""

from __future__ import annotations

from pathlib import Path

from ..crops import PHOTO_SUFFIXES
from .base import ALL, PARTS, Item, distinct_names, files_in, matched

RAW, PHOTO = "raws", "jpegs"


def parts_of(folder: Path) -> dict[str, Path]:
    """Folders of parts by name below a folder of this layout; {} where it is another."""
    if _arrays(folder / RAW) or _arrays(folder):
        return {folder.name if folder.name in PARTS else ALL: folder}
    return {name: folder / name for name in PARTS if _arrays(folder / name / RAW) or _arrays(folder / name)}


def load(part: Path) -> tuple[list[Item], list[str]]:
    """Items of one part and notes: pairs where names match on both sides, else raws and photos apart."""
    raws = files_in(part / RAW if (part / RAW).is_dir() else part, [".npy"])
    photos = files_in(part / PHOTO, PHOTO_SUFFIXES) if (part / PHOTO).is_dir() else []
    if part.name == "test" and photos:
        return matched(part, raws, photos)
    names = distinct_names(part, [*raws, *photos], whole=False)  # both sides are numbered from 0
    return [Item(names[p], p) for p in raws] + [Item(names[p], photo=p) for p in photos], []


def _arrays(folder: Path) -> bool:
    return folder.is_dir() and bool(files_in(folder, [".npy"]))
