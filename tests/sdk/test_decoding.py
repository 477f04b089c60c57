"""The decoder's process, where nobody waits for what it reads any more."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eguot_sdk import ISP, Overrides, decoding, read_raw
from eguot_sdk.errors import CorruptRaw

MakeDng = Callable[..., bytes]


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is another thing there")
def test_ctrl_c_is_left_to_the_process_that_waits(shipped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    raw = shipped / "kodak_dc50_0012L.kdc"
    with decoding.Decoder() as decoder:
        first = decoder.read(raw)
        process = decoder._process
        assert process is not None
        process.send_signal(signal.SIGINT)
        np.testing.assert_array_equal(decoder.read(raw).mosaic, first.mosaic)
        assert decoder._process is process
    assert "Traceback" not in capfd.readouterr().err


def test_closing_does_not_wait_for_what_is_being_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    (tmp_path / "rawpy.py").write_text(f"open({str(started)!r}, 'w').close()\nimport time\ntime.sleep(60)\n")
    monkeypatch.setattr(decoding, "PACKAGES", f"{tmp_path}{os.pathsep}{decoding.PACKAGES}")
    raw = tmp_path / "a.dng"
    raw.write_bytes(bytes(range(200)))
    problems: list[Exception] = []

    def read() -> None:
        try:
            decoder.read(raw)
        except CorruptRaw as error:
            problems.append(error)

    with decoding.Decoder() as decoder:
        reader = threading.Thread(target=read)
        reader.start()
        while not started.exists():
            time.sleep(0.05)
        start = time.monotonic()
        decoder.close()
        reader.join()
        assert time.monotonic() - start < 20
    assert len(problems) == 1


def test_a_decoder_gives_the_very_frame_of_the_file(make_dng: MakeDng, tmp_path: Path) -> None:
    """Counts, levels and gain maps as `read_raw` has them: a mosaic of this camera can be developed like it."""
    rng = np.random.default_rng(3)
    grids = [
        rng.uniform(1, 3, (128, 128)).astype(">f4") for _ in range(4)
    ]  # 65,536 points: none may be lost on the way
    codes = struct.pack(">I", 4)
    for site, grid in enumerate(grids):
        data = struct.pack(">10I4dI", site // 2, site % 2, 32, 48, 0, 1, 2, 2, 128, 128, 1 / 127, 1 / 127, 0, 0, 1)
        codes += struct.pack(">4I", 9, 0x01030000, 0, len(data) + grid.nbytes) + data + grid.tobytes()
    path = tmp_path / "a.dng"
    mosaic = rng.integers(64, 1000, (32, 48)).astype(np.uint16)
    path.write_bytes(make_dng(mosaic, t51009=(1, tuple(codes))))
    with decoding.Decoder() as decoder:
        there = decoder.read(path)
    here = read_raw(path)
    np.testing.assert_array_equal(there.mosaic, here.mosaic)
    assert (there.black, there.white, there.cfa, there.origins) == (here.black, here.white, here.cfa, here.origins)
    assert there.gain_maps is not None
    assert here.gain_maps is not None
    for one, other, grid in zip(there.gain_maps, here.gain_maps, grids, strict=True):
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one.points, grid)
        assert (one.spacing, one.origin, one.area) == (other.spacing, other.origin, other.area)
    isp = ISP.fake()
    np.testing.assert_array_equal(isp.process(mosaic, like=there), isp.process(path))
    np.testing.assert_array_equal(
        isp.process(there, overrides=Overrides(black=500)), isp.process(path, overrides=Overrides(black=500))
    )


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at the processes of Linux")
def test_a_decoder_that_hangs_ends_though_nobody_is_left_to_end_it(tmp_path: Path) -> None:
    """The one who asked is gone, and its clock with it; the decoder spins without ever letting Python run."""
    (tmp_path / "rawpy.py").write_text("import re\nre.match('(a+)+$', 'a' * 60 + 'b')\n")
    raw = tmp_path / "a.dng"
    raw.write_bytes(bytes(range(200)))
    program = (
        "import pathlib, sys\nfrom eguot_sdk import decoding\ndecoding.GRACE_S = 9\n"
        f"decoding.PACKAGES = {str(tmp_path)!r} + ':' + str(decoding.PACKAGES)\n"
        "decoder = decoding.Decoder(max_seconds=1)\ndecoder.start()\nprint(decoder._process.pid, flush=True)\n"
        f"decoder.max_seconds = 600\ndecoder.read(pathlib.Path({str(raw)!r}))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as asker:
        assert asker.stdout is not None
        decoder = int(asker.stdout.readline())
        try:
            wait_until(lambda: state(decoder)[0] == "R" and state(decoder)[1] > 0.5)
            asker.kill()
            wait_until(lambda: state(decoder)[0] in ("Z", ""))
        finally:
            asker.kill()
            if state(decoder)[0] not in ("Z", ""):
                os.kill(decoder, signal.SIGKILL)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def state(process: int) -> tuple[str, float]:
    """R: it computes, Z: it ended, "": it is gone; and seconds of the processor that it took."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0.0
    return fields[0], int(fields[11]) / os.sysconf("SC_CLK_TCK")
