"""Camera raws and photos of the same shots, told by equal stems: ISPW ("ISP in the wild") and alike.

    ROOT[/{train,val,test}]/ANY/NAME.dng    levels, CFA and white balance from the file
    ROOT[/{train,val,test}]/ANY/NAME.jpg

The released folder names of ISPW (Mate 30 Pro raws, Canon 5D Mark IV pictures) could not be verified, so none is
asked for. Raw and picture of a pair must have one size. What is in no pair serves as a raw or as a photo alone.
"""

from __future__ import annotations

from pathlib import Path

from eguot_sdk.raw import RAW_SUFFIXES

from ..crops import PHOTO_SUFFIXES, find_files
from .base import ALL, PARTS, Item, matched


def parts_of(folder: Path) -> dict[str, Path]:
    """Folders of parts by name below a folder of this layout; {} where it is another."""
    parts = {name: folder / name for name in PARTS if _has_pairs(folder / name)}
    if parts:
        return parts
    return {folder.name if folder.name in PARTS else ALL: folder} if _has_pairs(folder) else {}


def load(part: Path) -> tuple[list[Item], list[str]]:
    """Items of one part and notes."""
    return matched(part, find_files(part, RAW_SUFFIXES), find_files(part, PHOTO_SUFFIXES))


def _has_pairs(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    stems = {path.stem for path in find_files(folder, RAW_SUFFIXES)}
    return any(path.stem in stems for path in find_files(folder, PHOTO_SUFFIXES))
