"""A Raspberry Pi camera developed live: raw frames of picamera2 through an ISP file, one picture after another.

    python examples/picamera2/live.py --frames 100 --out last.jpg

Was not run on a Raspberry Pi: written from picamera2 0.3.38, and tested (tests/examples) with a stand-in for its camera
that gives arrays and metadata of the same shapes. Needs `picamera2` (apt on Raspberry Pi OS) beside eguot-sdk.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eguot_sdk import ISP, RawFrame
from eguot_sdk.output import write_image


def first_frame(mosaic: NDArray[np.uint16], raw_format: str, metadata: dict[str, Any]) -> RawFrame:
    """The camera's frame with all that later ones share. `raw_format` such as SBGGR12, unpacked.

    libcamera gives black levels for 16 bits, gains for red and blue, and a matrix from balanced colours to sRGB.
    """
    bits = int(raw_format.lstrip("SRGB"))
    black = [level / 2 ** (16 - bits) for level in metadata["SensorBlackLevels"]]
    red, blue = metadata["ColourGains"]
    matrix = metadata.get("ColourCorrectionMatrix")
    return RawFrame.from_array(
        mosaic,
        cfa=raw_format[1:5],
        black=black,  # R, Gr, Gb, B
        white=2**bits - 1,
        white_balance=(red, 1.0, blue),
        matrix=None if matrix is None else np.reshape(matrix, (3, 3)),
    )


def mosaics(camera: Any) -> Iterator[NDArray[np.uint16]]:
    """Raw frames for ever."""
    width = camera.camera_configuration()["raw"]["size"][0]
    while True:
        rows = camera.capture_array("raw")  # uint8 [H, stride], a copy of the camera's buffer
        yield rows.view(np.uint16)[:, :width]


def main() -> None:
    """Develop frames and say how many a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("last.jpg"))
    options = parser.parse_args()

    try:
        from picamera2 import Picamera2
    except ImportError:
        hint = "apt install python3-picamera2, in a virtual environment made with --system-site-packages"
        raise SystemExit(f"picamera2 is missing: {hint}") from None

    camera = Picamera2()
    order = camera.sensor_format.lstrip("S")[:4]  # the sensor's own phase
    camera.configure(camera.create_video_configuration(raw={"format": f"S{order}12", "size": camera.sensor_resolution}))
    camera.start()
    time.sleep(1)  # until exposure and balance have settled
    metadata, raw_format = camera.capture_metadata(), camera.camera_configuration()["raw"]["format"]
    stream = mosaics(camera)
    like = first_frame(next(stream), raw_format, metadata)
    start = time.monotonic()
    with ISP.load(options.model) as isp:
        for number, picture in enumerate(isp.stream(stream, like=like), 1):  # noqa: B007
            if number == options.frames:
                break
    print(f"{options.frames / (time.monotonic() - start):.1f} frames a second")
    camera.stop()
    write_image(options.out, picture)


if __name__ == "__main__":
    main()
