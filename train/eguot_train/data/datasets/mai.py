"""Raws of the Mobile AI challenges: MAI21 (Sony IMX586 beside Fujifilm GFX100), and Fujifilm UltraISP of MAI22 and 25.

    ROOT[/raw_images]/{train,val,test}/mediatek_raw/N.png    16-bit grey, 256 x 256, RGGB
    ROOT[/raw_images]/{train,val,test}/fujifilm/N.{png,jpg}
    .../mediatek_raw_normal, .../fujifilm_full_resolution    left aside

All share one layout, and public readers of UltraISP disagree on 10 or 12 bits: the levels are detected from the data.
"""

from __future__ import annotations

from pathlib import Path

from .base import Item
from .zrr import load_matched, pair_folders

RAW, PHOTO = "mediatek_raw", "fujifilm"


def parts_of(folder: Path) -> dict[str, Path]:
    """Folders of parts by name below a folder of this layout; {} where it is another."""
    return pair_folders(folder, RAW, PHOTO) or pair_folders(folder / "raw_images", RAW, PHOTO)


def load(part: Path) -> tuple[list[Item], list[str]]:
    """Items of one part and notes."""
    return load_matched(part, RAW, PHOTO)
