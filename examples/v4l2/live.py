"""Any V4L2 camera that gives unpacked Bayer frames (RG10, BG12, ...), developed live.

    python examples/v4l2/live.py --device 0 --size 1920x1080 --format RG10 --black 64 --frames 100 --out last.jpg

V4L2 knows no white balance, so the first frame's is estimated and kept; --wb gives it. Was not run on a camera: written
from linuxpy 0.25, tested (tests/examples) with a stand-in for its frames. Needs `pip install linuxpy` beside eguot-sdk.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eguot_sdk import ISP, RawFrame
from eguot_sdk.ingest import balanced_gains
from eguot_sdk.output import write_image

# V4L2 writes GRBG as BA with 10 and 12 bits and as GR with 14 and 16, and BGGR with 16 bits as BYR2.
FORMATS = {
    f"{letters}{bits}": (phase, bits)
    for bits, green_first in ((10, "BA"), (12, "BA"), (14, "GR"), (16, "GR"))
    for letters, phase in (("RG", "RGGB"), (green_first, "GRBG"), ("GB", "GBRG"), ("BG", "BGGR"))
    if (letters, bits) != ("BG", 16)
} | {"BYR2": ("BGGR", 16)}


def cfa_and_bits(fourcc: str) -> tuple[str, int]:
    """RG10 -> RGGB, 10. The four letters of V4L2's 10, 12, 14 and 16-bit formats in 16-bit words."""
    if fourcc not in FORMATS:
        raise SystemExit(f"{fourcc}: expected one of {', '.join(sorted(FORMATS))}; packed ones end in P")
    return FORMATS[fourcc]


def check_format(given: Any, asked: tuple[int, int, str]) -> None:
    """Leave where the driver took another format than was asked for, as it may: its frames would be read as Bayer."""
    found = given.width, given.height, int(given.pixel_format).to_bytes(4, "little").decode("latin-1")
    if found != asked:
        raise SystemExit(
            "asked for {}x{} {}, the driver gives {}x{} {}: `v4l2-ctl --list-formats-ext` shows what it can do".format(
                *asked, *found
            )
        )


def mosaics(frames: Iterable[Any], bytes_per_line: int) -> Iterator[NDArray[np.uint16]]:
    """The counts of linuxpy's frames; copied, for the driver takes its buffer back."""
    for frame in frames:
        rows = np.frombuffer(bytes(frame), np.uint16).reshape(-1, bytes_per_line // 2)
        yield rows[: frame.height, : frame.width]


def first_frame(mosaic: NDArray[np.uint16], fourcc: str, black: float, wb: tuple[float, ...] | None) -> RawFrame:
    """The frame that later ones share everything with but the counts."""
    cfa, bits = cfa_and_bits(fourcc)
    frame = RawFrame.from_array(mosaic, cfa=cfa, black=black, white=2**bits - 1, white_balance=wb)
    if frame.white_balance is None:  # once, so that colours do not change from frame to frame
        red, green, blue = balanced_gains(frame)[0]
        frame = dataclasses.replace(frame, white_balance=(red / green, 1.0, blue / green))
    return frame


def main() -> None:
    """Develop frames and write the last one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--format", default="RG10")
    parser.add_argument("--black", type=float, default=64)
    parser.add_argument("--wb", help="Gains R,G,B.")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("last.jpg"))
    options = parser.parse_args()
    cfa_and_bits(options.format)

    try:
        from linuxpy.video.device import Device, VideoCapture
    except ImportError:
        raise SystemExit("linuxpy is missing: pip install linuxpy") from None

    width, height = (int(side) for side in options.size.split("x"))
    wb = tuple(float(v) for v in options.wb.split(",")) if options.wb else None
    with Device.from_id(options.device) as device, ISP.load(options.model) as isp:
        capture = VideoCapture(device)
        capture.set_format(width, height, options.format)
        given = capture.get_format()
        check_format(given, (width, height, options.format))
        with capture:
            stream = mosaics(capture, given.bytes_per_line)
            like = first_frame(next(stream), options.format, options.black, wb)
            for number, picture in enumerate(isp.stream(stream, like=like), 1):  # noqa: B007
                if number == options.frames:
                    break
    write_image(options.out, picture)


if __name__ == "__main__":
    main()
