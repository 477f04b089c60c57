"""Data sets as folders: what a folder is gets recognised by what lies in it, never by its name.

`open_dataset(folder)` gives a `Dataset`; `split_scenes` makes the halves of an unpaired run from one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.pairs import RAW_SUFFIX, read_mosaic

from ..crops import find_files
from . import ispw, mai, ntire26, plain, zrr
from .base import (
    ALL,
    PARTS,
    SETTINGS_FILE,
    Dataset,
    Item,
    Kind,
    RawValues,
    four,
    one,
    pairs_of,
    photos_of,
    raws_of,
    read_npy,
    read_settings,
    spread,
    three,
    with_scenes,
)
from .levels import SAMPLE, RawStatistics, detect

UNREAD_PHOTOS = frozenset((".heic", ".heif"))
"""Photos as phones write them, which Pillow does not read."""

Load = Callable[[Path], tuple[list[Item], list[str]]]
FAMILIES: tuple[tuple[Kind, str, Callable[[Path], dict[str, Path]], Load], ...] = (
    ("pairs", "flat folder of pairs", plain.pair_parts, plain.load_pairs),
    ("zrr", "ZRR (Huawei P20 and Canon 5D Mark IV)", zrr.parts_of, zrr.load),
    ("mai", "MAI21 or Fujifilm UltraISP / MAI22, which share one layout", mai.parts_of, mai.load),
    ("ntire26", "NTIRE 2026 unpaired, arrays of planes", ntire26.parts_of, ntire26.load),
    ("ispw", "camera raws and pictures of equal names, as in ISPW", ispw.parts_of, ispw.load),
)


def open_dataset(folder: str | Path) -> Dataset:
    """Recognise a folder. Levels are not held against the data here: see `levels.contradictions`.

    Raises UsageError where nothing is recognised, saying what was looked for.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    for kind, title, find, load in FAMILIES:
        places = find(folder)
        if places:
            return _opened(kind, title, folder, places, load)
    return _unpaired(folder)


def _opened(kind: Kind, title: str, folder: Path, places: dict[str, Path], load: Load) -> Dataset:
    parts, notes = {}, []
    settings = read_settings(folder, folder.parent)
    for name, place in places.items():
        items, said = load(place)
        notes += said
        if items:
            parts[name] = with_scenes(items, settings)
    if not parts:
        raise UsageError(f"{folder}: looks like {title}, but nothing in it is complete ({'; '.join(notes)})")
    dataset = Dataset(kind, title, folder, parts, notes=tuple(notes))
    if kind not in ("zrr", "mai", "ntire26"):
        _refuse_values(folder, kind)
        return dataset
    return dataset.with_values(_values(kind, dataset, places, load, settings))


def _unpaired(folder: Path) -> Dataset:
    inside = sorted({path.parent.name for path in folder.glob("[!.]*/[!.]*.tar")})
    if inside and not any(folder.glob("[!.]*.tar")):
        readers = "`train --pairs` and `evaluate --pairs` take one of these folders"
        if {"raw", "srgb"} & set(inside):
            readers = "`train` takes the folder as --raw and --srgb"
        raise UsageError(
            f"{folder}: holds shards in {', '.join(inside)}: {readers}; `data check` takes what they were made of"
        )
    if any(folder.glob("[!.]*.tar")):
        readers = "`train` and `evaluate --pairs` read them; `data check` and `prepare` take what they were made of"
        raise UsageError(f"{folder}: holds shards: {readers}")
    items = plain.load_unpaired(folder)
    raws, photos = raws_of(items), photos_of(items)
    if not items:
        layouts = "pairs (NAME_raw.png), huawei_raw, mediatek_raw, raws/*.npy"
        unread = len(find_files(folder, UNREAD_PHOTOS))
        why = f" ({unread} in HEIC, which is not read: convert them to JPEG)" if unread else ""
        links = sorted(path.name for path in folder.rglob("*") if path.is_symlink() and path.is_dir())
        linked = f"; linked folders are not followed, name them: {', '.join(links)}" if links else ""
        raise UsageError(f"{folder}: no data set: no raws, no photos{why}, and none of {layouts}{linked}")
    if any(photo.photo.name.endswith(RAW_SUFFIX) for photo in photos if photo.photo is not None):
        places = {str(p.photo.parent) for p in photos if p.photo is not None and p.photo.name.endswith(RAW_SUFFIX)}
        raise UsageError(
            f"{folder}: holds pairs in a folder of their own, {', '.join(sorted(places))}, among other files: name "
            "that, or another of its folders"
        )
    kind: Kind = "unpaired" if raws and photos else "raws" if raws else "photos"
    title = {"unpaired": "raws and photos of different names", "raws": "camera raws", "photos": "photos"}[kind]
    _refuse_values(folder, kind)
    return Dataset(kind, title, folder, {ALL: with_scenes(items, read_settings(folder))})


def _refuse_values(folder: Path, kind: Kind) -> None:
    """Raises UsageError where the folder's own dataset.json gives what nothing in it would be changed by."""
    given = sorted(set(read_settings(folder)) - {"scene_separator"})
    if given:
        instead = ", and correct it in each NAME.json" if kind == "pairs" else ""
        raise UsageError(
            f"{folder / SETTINGS_FILE} gives {', '.join(given)}, which only sets without metadata (ZRR, MAI, NTIRE) "
            f"take: take it out{instead}"
        )


def _values(kind: Kind, dataset: Dataset, places: dict[str, Path], load: Load, settings: dict[str, Any]) -> RawValues:
    """Of raws without metadata: what dataset.json says, else what was published, else what the data show.

    The white balance is one for all, also where lights differ: a crop does not show its light. All parts get what the
    training part shows, also where only another part is opened.
    """
    cfa = settings.get("cfa", zrr.VALUES.cfa)
    told: dict[str, Any] = {"cfa": settings["cfa"]} if "cfa" in settings else {}
    if "black" in settings:
        told["black"] = four(settings["black"], SETTINGS_FILE)
    if "white" in settings:
        told["white"] = one(settings["white"], SETTINGS_FILE)
    if "white_balance" in settings:
        told["white_balance"] = three(settings["white_balance"], SETTINGS_FILE)
    if {"black", "white", "white_balance"} <= set(told):
        return RawValues(**{"cfa": cfa, **told}, origin=SETTINGS_FILE)
    statistics = _seen(_representative(dataset, places, load))
    base = zrr.VALUES if kind == "zrr" else detect(statistics, cfa)
    found = replace(base, **told, origin=SETTINGS_FILE) if told else base
    return found if found.white_balance else replace(found, white_balance=statistics.white_balance(found))


def _representative(dataset: Dataset, places: dict[str, Path], load: Load) -> Sequence[Item]:
    if "train" in dataset.parts:
        return dataset.parts["train"]
    place = next(iter(places.values()))
    sibling = place.parent / "train"
    if place.name in PARTS and sibling.is_dir():
        items, _ = load(sibling)
        if items:
            return items
    return dataset.items()


def _seen(items: Sequence[Item]) -> RawStatistics:
    """Of a sample."""
    statistics = RawStatistics()
    problem = None
    for item in spread(raws_of(items), SAMPLE):
        assert item.raw is not None
        try:
            statistics.add(read_npy(item.raw) if item.raw.suffix.lower() == ".npy" else read_mosaic(item.raw))
        except EguotError as error:
            problem = error
    if not statistics.raws:
        raise problem or UsageError("no raw to detect levels from")
    return statistics


def split_scenes(items: Sequence[Item], share: float = 0.5) -> tuple[list[Item], list[Item], str]:
    """Raws and photos of different scenes, from items that may be pairs; and how they were told apart, in words.

    Known scenes are dealt whole, in the order of the items. Where scenes are unknown the first items are the raws and
    the last the photos: crops of one shot have neighbouring numbers in the field's data sets, so one scene may be cut.
    Items that have one side only stay on it, but photos of a scene that is among the raws. Raises UsageError where one
    half would be empty.
    """
    both = pairs_of(items)
    raws = [item for item in items if item.photo is None]
    photos = [item for item in items if item.raw is None]
    how = "raws and photos are different files already"
    if both:
        scenes = list(dict.fromkeys(item.scene for item in both))
        if None in scenes:
            cut = round(share * len(both))
            raws, photos = raws + both[:cut], photos + both[cut:]
            how = (
                f"the first {cut} pairs are raws, the last {len(both) - cut} photos: a scene may be on both sides, "
                f"unless scene_separator in {SETTINGS_FILE} tells scenes apart"
            )
        else:
            cut = round(share * len(scenes))
            first = set(scenes[:cut])
            raws += [item for item in both if item.scene in first]
            photos += [item for item in both if item.scene not in first]
            how = f"{cut} scenes are raws, {len(scenes) - cut} other ones photos: no scene is on both sides"
    shown = {item.scene for item in raws} - {None}
    photos = [item for item in photos if item.scene not in shown]
    if not raws or not photos:
        alone = "" if both else "; `train` takes a folder of each, `data prepare` one kind without --unpaired"
        raise UsageError(f"too few scenes for an unpaired split: {len(raws)} raws and {len(photos)} photos{alone}")
    return (
        [replace(item, photo=None) for item in raws],
        [replace(item, raw=None) for item in photos],
        how,
    )


__all__ = [
    "PARTS",
    "Dataset",
    "Item",
    "Kind",
    "RawValues",
    "open_dataset",
    "pairs_of",
    "photos_of",
    "raws_of",
    "split_scenes",
    "spread",
]
