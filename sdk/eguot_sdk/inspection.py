"""What `eguot-sdk inspect` shows: the facts of a raw or of an ISP file, as plain JSON-ready values and as text.

Gains and matrix are those ingest will use, defaults and estimates included, each with its origin.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .errors import RawError
from .ingest import balanced_gains, color_matrix
from .ispfile import describe
from .output import square_size
from .paths import kind_of, refuse_run
from .protofile import describe_mlpackage, describe_onnx
from .raw import RawFrame
from .shading import shaded

PLANES = "R, Gr, Gb, B"


def inspect_file(path: Path) -> dict[str, Any]:
    """Facts of a raw or an ISP file (.tflite, .onnx, .mlpackage). Raises RawError, IspFileError, UsageError."""
    suffix, kind = path.suffix.lower(), kind_of(path, RawError)
    if suffix == ".mlpackage" and kind == "folder":
        return _facts(path, describe_mlpackage(path))
    if kind != "file":
        refuse_run(path)
        raise RawError(f"{path}: {'a folder' if kind else 'no such file'}; expected a raw or an ISP file")
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise RawError(f"{path}: cannot be opened ({error.strerror or error})") from error
    if head[4:8] == b"TFL3" or suffix == ".tflite":
        return _facts(path, describe(path))
    if suffix == ".onnx":
        return _facts(path, describe_onnx(path))
    from .chatter import quiet
    from .decoding import Decoder

    with quiet(), Decoder() as decoder:
        return raw_facts(decoder.read(path))


def raw_facts(frame: RawFrame) -> dict[str, Any]:
    """Every value of a raw that the ISP will use: {"value", "from"} each, with counts and warnings."""
    gains, gains_origin = balanced_gains(shaded(frame, "auto"))
    matrix, matrix_origin = color_matrix(frame)
    height, width = square_size(frame.height, frame.width, frame.pixel_aspect)
    if frame.orientation >= 5:
        height, width = width, height
    origin, counts = frame.origins.get, _counts(frame)

    def value(name: str, shown: Any) -> dict[str, Any]:
        return {"value": shown, "from": origin(name, "unknown")}

    return {
        "kind": "raw",
        "file": frame.source,
        "height": frame.height,
        "width": frame.width,
        "picture_height": height,
        "picture_width": width,
        "cfa": value("cfa", frame.cfa),
        "black": value("black", list(frame.black)),
        "white": value("white", list(frame.white)),
        "white_balance": value("white_balance", list(frame.white_balance) if frame.white_balance else None),
        "gains_used": {"value": [round(g, 6) for g in gains], "from": gains_origin},
        "matrix_used": {"value": np.round(matrix, 6).tolist(), "from": matrix_origin},
        "lens_shading": value("gain_maps", _shading(frame)),
        "orientation": value("orientation", frame.orientation),
        "pixel_aspect": value("pixel_aspect", round(frame.pixel_aspect, 6)),
        "exif": dict(frame.exif),
        "counts": counts,
        "warnings": _warnings(frame, counts),
    }


def _shading(frame: RawFrame) -> str | None:
    """Sizes of the gain maps of R, Gr, Gb, B."""
    if frame.gain_maps is None:
        return None
    sizes = ["none" if m is None else "{} x {}".format(*m.points.shape) for m in frame.gain_maps]
    return (sizes[0] if len(set(sizes)) == 1 else ", ".join(sizes)) + " points"


def _counts(frame: RawFrame) -> dict[str, Any]:
    mosaic = frame.mosaic
    return {
        "lowest": int(mosaic.min()),
        "highest": int(mosaic.max()),
        "mean": round(float(mosaic.mean()), 2),
        "share_at_white": round(float(np.mean(mosaic >= min(frame.white))), 6),
        "share_below_black": round(float(np.mean(mosaic < min(frame.black))), 6),
    }


def _warnings(frame: RawFrame, counts: dict[str, Any]) -> list[str]:
    """What a person should know before trusting the picture."""
    found = []
    if frame.white_balance is None:
        found.append("no as-shot white balance: gains are estimated, colours may lean")
    elif max(frame.white_balance) > 6 or min(frame.white_balance) < 0.3:
        found.append(f"unusual white balance {_numbers(frame.white_balance)}: colours may lean")
    if frame.matrix is None:
        found.append("no camera matrix: a typical camera's is used, colours may be off")
    elif np.abs(frame.matrix.sum(axis=1) - 1).max() > 0.05:
        found.append("rows of the camera matrix do not sum to 1: white will not stay white")
    white, black = min(frame.white), max(frame.black)
    if counts["share_at_white"] > 0.2:
        found.append(
            f"{counts['share_at_white']:.0%} of the pixels are at the white level: overexposed or white too low"
        )
    if counts["highest"] < black + 0.05 * (white - black):
        found.append(f"the highest count {counts['highest']} is far below white {white:g}: very dark or white too high")
    if counts["share_below_black"] > 0.2:
        found.append(
            f"{counts['share_below_black']:.0%} of the pixels are below the black level: black may be too high"
        )
    if counts["lowest"] > black + 0.25 * (white - black):
        found.append(f"the lowest count {counts['lowest']} is far above black {black:g}: black may be too low")
    return found


def _facts(path: Path, contents: dict[str, Any]) -> dict[str, Any]:
    spec = contents.pop("spec")
    warnings = [] if spec else ["no ISP spec inside: this is a model, but not one that `eguot-sdk convert` wrote"]
    if contents["format"] != "tflite":
        warnings.append("`eguot-sdk process` runs .tflite files; this one is for the program that embeds it")
    return {"kind": "isp", **contents, "file": str(path), "spec": spec, "warnings": warnings}


def as_text(facts: dict[str, Any]) -> str:
    """The facts for a person, one value a line."""
    lines = [f"{facts['file']}: {'raw' if facts['kind'] == 'raw' else 'ISP file'}"]
    if facts["kind"] == "isp":
        rest = {key: value for key, value in facts.items() if key not in ("kind", "file", "warnings")}
        return "\n".join([*lines, *_tree(rest, "  "), *(f"Warning: {text}" for text in facts["warnings"])])
    lines.append(f"  {'mosaic':14} {facts['width']} x {facts['height']} pixels")
    lines.append(f"  {'picture':14} {facts['picture_width']} x {facts['picture_height']} pixels, upright and square")
    for key in (
        "cfa",
        "black",
        "white",
        "white_balance",
        "gains_used",
        "matrix_used",
        "lens_shading",
        "orientation",
        "pixel_aspect",
    ):
        shown = facts[key]["value"]
        if key == "matrix_used":
            text = "; ".join(_numbers(row) for row in shown)
        else:
            text = "none" if shown is None else _numbers(shown) if isinstance(shown, list) else str(shown)
        lines.append(f"  {key.replace('_', ' '):14} {text}  ({facts[key]['from']})")
    lines += [f"  {key:14} {value}" for key, value in facts["exif"].items()]
    lines += [f"  {key.replace('_', ' '):14} {value}" for key, value in facts["counts"].items()]
    lines.append(f"  levels are in the order {PLANES}; gains and matrix rows in the order R, G, B")
    return "\n".join(lines + [f"Warning: {text}" for text in facts["warnings"]])


def _numbers(values: Any) -> str:
    return " ".join(f"{v:.0f}" if float(v).is_integer() else f"{v:.4g}" for v in values)


def _tree(value: Any, indent: str) -> list[str]:
    """Nested values as indented lines; short lists stay on one."""
    lines = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{indent}{key}", *_tree(item, indent + "  ")]
        elif isinstance(item, list | tuple) and any(isinstance(v, dict) for v in item):
            lines.append(f"{indent}{key}")
            lines += [f"{indent}  - " + ", ".join(f"{k}={v}" for k, v in dict(entry).items()) for entry in item]
        else:
            shown = ", ".join(map(str, item)) if isinstance(item, list | tuple) else item
            lines.append(f"{indent}{key:16} {shown}")
    return [_printable(line) for line in lines]


def _printable(text: str) -> str:
    """Texts of a file could move the cursor, or look like lines of ours."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
