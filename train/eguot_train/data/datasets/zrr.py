"""ZRR, Zurich raw to RGB (Ignatov et al. 2020): Huawei P20 raws and Canon 5D Mark IV pictures, 448 px, nearly aligned.

    ROOT/{train,test}/huawei_raw/N.png    16-bit grey, 10-bit counts, RGGB
    ROOT/{train,test}/canon/N.jpg
    ROOT/full_resolution/...              left aside

Published readers disagree on levels: none, 63/1020, and per plane 58 60 61 62 (R, Gr, Gb, B) to 1023, which is what
counts of ten bits with that offset need, and what is used here. `data check` holds it against the data.
"""

from __future__ import annotations

from pathlib import Path

from .base import ALL, PARTS, Item, RawValues, files_in, matched

RAW, PHOTO = "huawei_raw", "canon"
VALUES = RawValues("RGGB", (58.0, 60.0, 61.0, 62.0), 1023.0, "published")


def parts_of(folder: Path) -> dict[str, Path]:
    """Folders of parts by name below a folder of this layout; {} where it is another."""
    return pair_folders(folder, RAW, PHOTO)


def load(part: Path) -> tuple[list[Item], list[str]]:
    """Items of one part and notes."""
    return load_matched(part, RAW, PHOTO)


def pair_folders(folder: Path, raw: str, photo: str) -> dict[str, Path]:
    """`folder` itself, or its parts, where they hold a subfolder called `raw` (photos may be missing)."""
    if (folder / raw).is_dir():
        return {folder.name if folder.name in PARTS else ALL: folder}
    return {name: folder / name for name in PARTS if (folder / name / raw).is_dir()}


def load_matched(part: Path, raw: str, photo: str) -> tuple[list[Item], list[str]]:
    """Pairs of part/raw/N.png and part/photo/N.{jpg,png}, then files in no pair; raws alone without such photos."""
    raws = files_in(part / raw, [".png"])
    if not (part / photo).is_dir():
        return [Item(path.stem, path) for path in raws], [f"{part.name}: no folder {photo}, raws only"]
    items, notes = matched(part, raws, files_in(part / photo, [".jpg", ".jpeg", ".png"]))
    return items, [f"{part.name}: {note}" for note in notes]
