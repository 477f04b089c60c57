"""A thousand files, one bad among ten, a kill in the middle: every good one is developed once, in flat memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eguot_devices.machine import family_memory_mb
from eguot_sdk import cli

FILES = 1000
PATH = os.pathsep.join([str(Path(cli.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATH}
MakeDng = Callable[..., bytes]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_thousand_files_and_a_kill(make_dng: MakeDng, tmp_path: Path) -> None:
    raws, out = tmp_path / "raws", tmp_path / "out"
    raws.mkdir()
    rng = np.random.default_rng(0)
    good = set()
    for number in range(FILES):
        mosaic = rng.integers(64, 4000, (64, 96)).astype(np.uint16)
        data = make_dng(mosaic)
        bad = number % 10 == 3
        # Cut short, garbage, empty, no Bayer mosaic: each kind in turn.
        kinds = (data[: len(data) // 2], os.urandom(900), b"", make_dng(mosaic, t33422=(1, (0, 0, 0, 0))))
        (raws / f"{number:04}.dng").write_bytes(kinds[number // 10 % 4] if bad else data)
        if not bad:
            good.add(f"{number:04}.png")
    command = [sys.executable, "-m", "eguot_sdk.cli", "process", str(raws), "-o", str(out), "--format", "png"]
    command += ["--skip-existing", "--json", "--threads", "1"]

    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    while first.poll() is None and (not out.is_dir() or len(list(out.glob("*.png"))) < FILES // 3):
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert FILES // 3 <= len(before) < len(good)

    second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    sizes: list[tuple[int, float]] = []
    while len(list(out.glob("*.png"))) < len(good) and second.poll() is None:
        sizes.append((len(list(out.glob("*.png"))), family_memory_mb(second.pid)))
        time.sleep(0.2)
    stdout, stderr = second.communicate()
    assert second.returncode == 1
    said = json.loads(stdout)
    assert sorted(p.name for p in out.iterdir()) == sorted(good)  # nothing half written, nothing left over
    written = {Path(path).name for path in said["written"]}
    assert len(said["written"]) == len(written)
    assert written == good - set(before)
    assert {Path(path).stem for path in said["skipped"]} == {Path(name).stem for name in before}
    assert len(said["failed"]) == FILES // 10
    assert f"developed {len(written)} pictures into {out}, skipped {len(before)}" in stderr.splitlines()[-1]
    assert f"{FILES // 10} failed" in stderr.splitlines()[-1]
    assert len([line for line in stderr.splitlines() if line.startswith("Error: ")]) == FILES // 10
    for path in out.iterdir():
        if path.name in before:
            assert path.stat().st_mtime_ns == before[path.name]
        with Image.open(path) as image:
            assert image.size == (96, 64)
            image.load()
    warm = [size for count, size in sizes if count > len(before) + 50]
    assert len(warm) > 3
    assert max(warm) - min(warm) < 30, sizes


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
@pytest.mark.parametrize(
    ("kind", "words"),
    [("tiff", "not all of it: the disk may be full"), ("png", "File too large"), ("jpg", "File too large")],
)
def test_a_full_disk_is_said_and_leaves_nothing(make_dng: MakeDng, tmp_path: Path, kind: str, words: str) -> None:
    raw = tmp_path / "a.dng"
    raw.write_bytes(make_dng(np.random.default_rng(0).integers(64, 4000, (200, 300)).astype(np.uint16)))
    # A limit on the size of a file stops a write half way, as a full disk does, and needs no disk of its own.
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from eguot_sdk.cli import main; main(sys.argv[1:])"
    )
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", limited, "process", str(raw), "-o", str(out), "--format", kind],
        capture_output=True,
        text=True,
        # Python 3.11 keeps a module's bytecode also where the limit cut it off, and could not import it afterwards.
        env={**ENVIRONMENT, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert done.returncode == 1
    assert f"{out / f'a.{kind}'}: cannot be written ({words})" in done.stderr
    assert list(out.iterdir()) == []


def test_a_full_file_system_is_said(make_dng: MakeDng, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here: that needs root")
    try:
        raw = tmp_path / "a.dng"
        raw.write_bytes(make_dng(np.random.default_rng(0).integers(64, 4000, (200, 300)).astype(np.uint16)))
        done = subprocess.run(
            [sys.executable, "-m", "eguot_sdk.cli", "process", str(raw), "-o", str(disk), "--format", "png"],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            check=False,
        )
        assert done.returncode == 1
        assert f"{disk / 'a.png'}: cannot be written (No space left on device)" in done.stderr
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)
