"""A folder of pairs: raw mosaics beside the picture each should become.

Flat, three files a pair: NAME_raw.png (16-bit grey, raw counts), NAME.json (`cfa`, `black` in the order R, Gr, Gb, B,
`white`, `camera_wb` R, G, B[, G2] where not positive means unknown, and optionally `matrix`, `orientation`; other keys
are ignored), and NAME_srgb.png or .jpg, the truth: sRGB, of the size of the mosaic and lying as the sensor lay.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import CorruptRaw, EguotError, OutputError, RawError, UsageError
from .icc import as_srgb
from .output import lying, turned_by_loading, written_beside
from .paths import kind_of
from .raw import RawFrame
from .shading import evened

PHOTO_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP")
"""What photos may be: Pillow would try all it knows by content, and hand EPS to Ghostscript."""
MAX_PAIR_PIXELS = 80_000_000
MAX_JSON_BYTES = 1 << 20
RAW_SUFFIX = "_raw.png"
TRUTH_SUFFIXES = ("_srgb.png", "_srgb.jpg", "_srgb.jpeg")


class PairLike(Protocol):
    """What can be scored or trained on: a raw and the picture it should become."""

    @property
    def name(self) -> str:
        """For messages and tables."""

    def frame(self) -> RawFrame:
        """The raw."""

    def truth(self) -> NDArray[np.uint8]:
        """uint8 sRGB [H, W, 3], lying as the sensor lay."""


@dataclass(frozen=True)
class Pair:
    """The three files of one pair; nothing is read until asked for."""

    name: str
    raw_path: Path
    json_path: Path
    truth_path: Path

    def frame(self) -> RawFrame:
        """The mosaic with its values. Raises RawError naming the file."""
        return _frame(_read_json(self.json_path), read_mosaic(self.raw_path), self.json_path)

    def truth(self) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] sRGB of the size of the mosaic, in the mosaic's orientation. Raises RawError."""
        from PIL import Image

        with _reading(self.raw_path), Image.open(self.raw_path, formats=("PNG",)) as image:
            expected = image.size
        truth = read_picture(self.truth_path)
        if truth.shape[1::-1] != expected:
            found = _size((truth.shape[1], truth.shape[0]))
            raise RawError(f"{self.truth_path}: {found} pixels, but the mosaic of the pair has {_size(expected)}")
        return truth


def list_pairs(folder: str | Path) -> list[Pair]:
    """All pairs of a folder by name. Raises UsageError where there is none or one is incomplete."""
    pairs, incomplete = find_pairs(folder)
    if incomplete:
        raise UsageError(incomplete[0])
    return pairs


def find_pairs(folder: str | Path) -> tuple[list[Pair], list[str]]:
    """The complete pairs of a folder by name, and a line for each incomplete one. Raises UsageError without any."""
    folder = Path(folder)
    if kind_of(folder, UsageError) != "folder":
        raise UsageError(
            f"{folder}: no such folder; expected one with NAME_raw.png, NAME.json and NAME_srgb.png or .jpg"
        )
    pairs, incomplete = [], []
    for raw_path in sorted(p for p in folder.glob("*" + RAW_SUFFIX) if not p.name.startswith(".")):
        name = raw_path.name.removesuffix(RAW_SUFFIX)
        json_path = folder / f"{name}.json"
        truths = [folder / (name + suffix) for suffix in TRUTH_SUFFIXES]
        truth = next((p for p in truths if kind_of(p, UsageError) == "file"), None)
        if kind_of(json_path, UsageError) != "file":
            incomplete.append(f"{raw_path}: its {json_path.name} is missing")
        elif truth is None:
            incomplete.append(f"{raw_path}: its {name}_srgb.png or .jpg is missing")
        else:
            pairs.append(Pair(name, raw_path, json_path, truth))
    if not pairs and not incomplete:
        raise UsageError(f"{folder}: no pairs; expected NAME_raw.png, NAME.json and NAME_srgb.png or .jpg")
    return pairs, incomplete


def encode_frame(frame: RawFrame) -> tuple[bytes, bytes]:
    """The bytes of NAME_raw.png and of NAME.json for a frame; gain maps, which have no place there, are applied."""
    from PIL import Image

    frame = evened(frame)
    png = io.BytesIO()
    Image.fromarray(frame.mosaic).save(png, "PNG", compress_level=4)
    return png.getvalue(), json.dumps(_meta(frame), indent=1).encode()


def decode_frame(mosaic: bytes, meta: bytes, where: str) -> RawFrame:
    """The inverse of `encode_frame`; `where` names the source in messages. Raises RawError."""
    path = Path(where)
    return _frame(_read_json(path, io.BytesIO(meta)), read_mosaic(path, io.BytesIO(mosaic)), path)


def _frame(meta: dict[str, Any], mosaic: NDArray[np.uint16], source: Path) -> RawFrame:
    try:
        return RawFrame.from_array(
            mosaic,
            cfa=meta["cfa"],
            black=meta["black"],
            white=meta["white"],
            white_balance=meta.get("camera_wb"),
            matrix=meta.get("matrix"),
            orientation=meta.get("orientation", 1),
        )
    except KeyError as error:
        raise RawError(f"{source}: the key {error} is missing; cfa, black and white are needed") from error
    except RawError as error:
        raise RawError(f"{source}: {error}") from error


def write_pair(folder: str | Path, name: str, frame: RawFrame, truth: NDArray[np.uint8]) -> Pair:
    """Write one pair into a folder, made if absent; an existing pair of that name is replaced.

    `truth`: uint8 [H, W, 3] sRGB of the size of the mosaic, lying as the mosaic lies. Raises UsageError, OutputError.
    """
    from PIL import Image

    folder = Path(folder)
    if not name or name.startswith(".") or Path(name).name != name or "\\" in name:
        raise UsageError(f"the name of a pair must be a plain file name, not {name!r}")
    if truth.dtype != np.uint8 or truth.shape != (frame.height, frame.width, 3):
        raise UsageError(
            f"pair {name}: the truth must be uint8 [{frame.height}, {frame.width}, 3], not {truth.dtype} {truth.shape}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror or error})") from error
    pair = Pair(name, folder / (name + RAW_SUFFIX), folder / f"{name}.json", folder / f"{name}_srgb.png")
    with written_beside(pair.truth_path) as file:
        Image.fromarray(np.ascontiguousarray(truth)).save(file, "PNG", compress_level=4)
    mosaic, meta = encode_frame(frame)
    # The mosaic last: it is what `list_pairs` looks for.
    for path, data in ((pair.json_path, meta), (pair.raw_path, mosaic)):
        with written_beside(path) as file:
            file.write(data)
    return pair


def _meta(frame: RawFrame) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "cfa": frame.cfa,
        "width": frame.width,
        "height": frame.height,
        "black": list(frame.black),
        "white": list(frame.white) if len(set(frame.white)) > 1 else frame.white[0],
        "camera_wb": list(frame.white_balance or (0.0, 1.0, 0.0)),
        "orientation": frame.orientation,
    }
    if frame.matrix is not None:
        meta["matrix"] = frame.matrix.tolist()
    return meta


def _read_json(path: Path, source: BinaryIO | None = None) -> dict[str, Any]:
    with _reading(path):
        with contextlib.nullcontext(source) if source else path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise RawError(f"{path}: more than {MAX_JSON_BYTES} bytes, too many for the values of a pair")
        meta = json.loads(data)
    if not isinstance(meta, dict):
        raise RawError(f"{path}: expected a JSON object, found {type(meta).__name__}")
    return meta


def read_mosaic(path: Path, source: BinaryIO | None = None) -> NDArray[np.uint16]:
    """uint16 [H, W] of a 16-bit grey PNG of raw counts, from `source` where given. Raises RawError naming the path."""
    from PIL import Image

    with _reading(path), Image.open(source or path, formats=("PNG",)) as image:
        _check_pixels(path, image.size)
        if not image.mode.startswith("I"):
            raise RawError(f"{path}: expected a 16-bit grey PNG of raw counts, found Pillow mode {image.mode}")
        mosaic = np.array(image)
    return mosaic.astype(np.uint16)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """uint8 sRGB [H, W, 3] of an 8-bit picture, whatever its profile, lying as in the file.

    Raises RawError naming the file.
    """
    from PIL import Image

    with _reading(path), path.open("rb") as file, Image.open(file, formats=PHOTO_FORMATS) as image:
        _check_pixels(path, image.size)
        if image.mode not in ("RGB", "L", "P"):
            raise RawError(f"{path}: expected an 8-bit RGB picture, found Pillow mode {image.mode}")
        turned = turned_by_loading(image)
        picture = np.array(as_srgb(image).convert("RGB"), np.uint8)
    return np.ascontiguousarray(lying(picture, turned), np.uint8)


def _check_pixels(path: Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PAIR_PIXELS:
        raise RawError(
            f"{path}: {_size(size)} pixels; a picture of a pair may have {MAX_PAIR_PIXELS // 10**6} megapixels"
        )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside while a file is read becomes one RawError that names it."""
    from PIL import Image

    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RawError(f"{path}: too many pixels; a pair may have {MAX_PAIR_PIXELS // 10**6} megapixels") from error
    except FileNotFoundError as error:
        raise RawError(f"{path}: no such file") from error
    except EguotError:
        raise
    except Exception as error:  # a damaged file raises nearly anything out of Pillow's decoders
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CorruptRaw(f"{path}: cannot be read ({reason}); the file is damaged or of another kind") from error
