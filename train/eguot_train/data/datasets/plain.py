"""Folders without a layout of their own: flat pairs, camera raws, photos, or raws and photos of different scenes."""

from __future__ import annotations

from pathlib import Path

from eguot_sdk.pairs import RAW_SUFFIX, find_pairs
from eguot_sdk.raw import RAW_SUFFIXES

from ..crops import PHOTO_SUFFIXES, find_files
from .base import ALL, PARTS, FlatItem, Item, distinct_names, natural


def pair_parts(folder: Path) -> dict[str, Path]:
    """Parts of a flat pairs folder, or of several in train, val and test (each possibly in `pairs`)."""
    if _has_pairs(folder):
        return {folder.name if folder.name in PARTS else ALL: folder}
    found = {}
    for name in PARTS:
        for place in (folder / name, folder / name / "pairs"):
            if _has_pairs(place):
                found[name] = place
                break
    return found


def load_pairs(part: Path) -> tuple[list[Item], list[str]]:
    """Complete pairs, and a note for each that is not."""
    pairs, incomplete = find_pairs(part)
    return [FlatItem(p.name, p.raw_path, p.truth_path, pair=p) for p in pairs], incomplete


def load_unpaired(folder: Path) -> list[Item]:
    """Camera raws and photos below a folder; names are paths inside it, so that they are different."""
    raws, photos = find_files(folder, RAW_SUFFIXES), find_files(folder, PHOTO_SUFFIXES)
    name = distinct_names(folder, [*raws, *photos], whole=True)
    items = [Item(name[p], p) for p in raws] + [Item(name[p], photo=p) for p in photos]
    return sorted(items, key=lambda item: natural(item.name))


def _has_pairs(folder: Path) -> bool:
    return folder.is_dir() and next(folder.glob("[!.]*" + RAW_SUFFIX), None) is not None
