"""What `eguot-sdk doctor` shows: versions, whether the base works by trying it, and what each extra still lacks.

Nothing is installed or imported beyond what the base needs; extras are judged by the installed distributions.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from . import __version__
from .chatter import quiet

BASE = ("numpy", "rawpy", "click", "pillow", "tifffile", "flatbuffers", "ai-edge-litert", "tflite-runtime")
EXTRA_ORDER = ("train", "convert", "coreml", "onnx", "tensorflow", "cluster", "devices", "dev")


def examine() -> dict[str, Any]:
    """Facts as JSON-ready values: versions, checks ({"name", "ok", "detail"}), and extras with what they lack."""
    return {
        "eguot_sdk": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: installed(name) for name in BASE},
        "checks": [
            _try("read a raw", _check_raw),
            _try("write pictures", _check_output),
            _try("run the default ISP", _check_isp),
        ],
        "extras": _extras(),
    }


def installed(name: str) -> str | None:
    """Version of an installed distribution; None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _try(name: str, check: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"name": name, "ok": True, "detail": check()}
    except Exception as error:  # whatever breaks is what the person wants to read here
        detail = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ImportError):
            detail += "; that package is damaged or too old: install it anew (pip install --force-reinstall PACKAGE)"
        return {"name": name, "ok": False, "detail": detail}


def _check_raw() -> str:
    from .raw import read_raw

    counts = (np.arange(32 * 32, dtype=np.uint16) * 3 + 64).reshape(32, 32)
    frame = read_raw(_tiny_dng(counts))
    if frame.cfa != "RGGB" or not np.array_equal(frame.mosaic, counts):
        raise RuntimeError("LibRaw decodes a DNG wrongly: run `pip install --force-reinstall rawpy`")
    import rawpy

    return f"rawpy {installed('rawpy')}, LibRaw {'.'.join(map(str, rawpy.libraw_version))}"


def _check_output() -> str:
    import io

    from PIL import Image, features

    from .output import srgb_profile

    Image.new("RGB", (8, 8)).save(io.BytesIO(), "JPEG", icc_profile=srgb_profile())
    return f"Pillow with libjpeg {features.version('jpg')}, zlib {features.version('zlib')}"


def _check_isp() -> str:
    from .isp import ISP
    from .raw import RawFrame

    frame = RawFrame.from_array(np.full((64, 64), 512, np.uint16), cfa="RGGB", black=64, white=1023)
    with quiet(), ISP.load(threads=1) as isp:
        start = time.perf_counter()
        rgb = isp.process(frame)
        elapsed_ms = (time.perf_counter() - start) * 1e3
    if rgb.shape != (64, 64, 3):
        raise RuntimeError(f"the default ISP gives a picture of shape {rgb.shape}, not (64, 64, 3)")
    return f"{isp.spec.name} ({isp.spec.precision}), 64 x 64 pixels in {elapsed_ms:.0f} ms"


def _extras() -> list[dict[str, Any]]:
    """Each extra by the metadata of the installed eguot-sdk: its packages, which are missing, and the pip line."""
    try:
        required = importlib.metadata.requires("eguot-sdk") or []
    except importlib.metadata.PackageNotFoundError:
        required = []
    members: dict[str, list[str]] = {name: [] for name in EXTRA_ORDER}
    for line in required:
        name, extra = re.match(r"[\w.-]+", line), re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        # `eguot-sdk[train]` inside an extra stands for other extras, whose packages are listed there.
        if name and extra and extra[1] in members and name[0].lower().replace("_", "-") != "eguot-sdk":
            members[extra[1]].append(name[0])
    result = []
    for extra_name, packages in members.items():
        missing = [p for p in packages if installed(p) is None]
        result.append(
            {
                "name": extra_name,
                "ok": bool(required) and not missing,
                "missing": missing,
                "pip": f'pip install "eguot-sdk[{extra_name}]"',
            }
        )
    return result


def _tiny_dng(counts: np.ndarray[Any, np.dtype[np.uint16]]) -> bytes:
    """An uncompressed little-endian DNG of an RGGB mosaic."""
    height, width = counts.shape
    entries: list[tuple[int, int, int, bytes]] = [
        (254, 4, 1, struct.pack("<I", 0)),
        (256, 4, 1, struct.pack("<I", width)),
        (257, 4, 1, struct.pack("<I", height)),
        (258, 3, 1, struct.pack("<H", 16)),
        (259, 3, 1, struct.pack("<H", 1)),
        (262, 3, 1, struct.pack("<H", 32803)),
        (273, 4, 1, struct.pack("<I", 8 + 2 + 12 * 16 + 4)),
        (277, 3, 1, struct.pack("<H", 1)),
        (278, 4, 1, struct.pack("<I", height)),
        (279, 4, 1, struct.pack("<I", counts.nbytes)),
        (33421, 3, 2, struct.pack("<HH", 2, 2)),
        (33422, 1, 4, bytes((0, 1, 1, 2))),
        (50706, 1, 4, bytes((1, 4, 0, 0))),
        (50708, 2, 4, b"eg\0\0"),
        (50714, 3, 1, struct.pack("<H", 64)),
        (50717, 4, 1, struct.pack("<I", 4095)),
    ]
    table = b"".join(struct.pack("<HHI", tag, kind, n) + data.ljust(4, b"\0") for tag, kind, n, data in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + struct.pack("<I", 0)
    return head + counts.astype("<u2").tobytes()


def as_text(facts: dict[str, Any]) -> str:
    """The facts for a person."""
    lines = [f"eguot-sdk {facts['eguot_sdk']}, Python {facts['python']}, {facts['platform']}"]
    lines += [f"  {name:16} {found or '-'}" for name, found in facts["packages"].items()]
    lines.append("works")
    lines += [f"  {'yes' if c['ok'] else 'NO':4} {c['name']}: {c['detail']}" for c in facts["checks"]]
    lines.append("extras")
    for extra in facts["extras"]:
        lacks = f"missing {', '.join(extra['missing'])}: run `{extra['pip']}`" if extra["missing"] else extra["pip"]
        lines.append(f"  {'yes' if extra['ok'] else 'no':4} {extra['name']}" + ("" if extra["ok"] else f": {lacks}"))
    return "\n".join(lines)
