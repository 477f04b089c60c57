"""The decoder's process, where nobody waits for what it reads any more."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from eguot_sdk import decoding
from eguot_sdk.errors import CorruptRaw


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
