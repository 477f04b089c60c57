"""Boards behind a real sshd: the emulated arm64 one, and this machine's own shell for everything that goes wrong."""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from make_board import Board
from samples import job
from ssh_boards import SshBoard, ssh_board

from eguot_devices import agent, wheels
from eguot_devices.profile import Asked, profile
from eguot_devices.report import to_table
from eguot_devices.schema import DeviceReport, Report
from eguot_devices.targets import open_target
from eguot_devices.targets.ssh import BOOT, SshTarget, _Link
from eguot_sdk.errors import EguotError
from eguot_sdk.evaluation import evaluate
from eguot_sdk.isp import ISP
from eguot_sdk.pairs import list_pairs

HERE = f"ssh://board{sys.executable}"
"""This machine's Python, which has the SDK: nothing needs to be brought."""


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBoard]:
    """sshd with this machine's shell, and a folder of its own for temporary files."""
    folder = tmp_path_factory.mktemp("ssh") / "native"
    with ssh_board(folder, ["env", f"TMPDIR={folder}/tmp", "/bin/sh"]) as board:
        yield board


def test_a_worker_that_cannot_be_started_is_told_at_once() -> None:
    """The agent at the end of a pipe instead of ssh."""
    link = _Link("ssh://b", [sys.executable, "-u", "-c", BOOT], "", None)
    try:
        link.hello("python3")
        link.call({"op": "folder"})
        start = time.monotonic()
        with pytest.raises(EguotError, match="ssh://b: argument list too long on the board"):
            link.work({}, lambda words: None, None, module="x" * (1 << 22))
        assert time.monotonic() - start < 30
        assert link.call({"op": "clear", "path": "job"})["ok"]
    finally:
        link.close()


def test_an_upload_ends_with_its_time_and_short_messages_still_go() -> None:
    link = _Link("ssh://b", [sys.executable, "-c", "import sys; sys.stdin.buffer.read()"], "", time.monotonic() - 1)
    try:
        link._write(b'{"op": "ping"}\n')
        with pytest.raises(EguotError, match="ssh://b: not ready within --max-seconds"):
            link._write(bytes(1 << 20))
    finally:
        link.close()


@pytest.fixture
def here(native: SshBoard, monkeypatch: pytest.MonkeyPatch) -> SshBoard:
    """The native board as `ssh://board` for the client."""
    monkeypatch.setenv("PATH", f"{native.bin_folder}:{os.environ['PATH']}")
    return native


@pytest.fixture(scope="module")
def emulated_run(
    board: Board, shipped: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Report, list[str], list[str]]:
    """One profile on the emulated board, which has Python and nothing else: report, leftovers there, files kept."""
    folder = tmp_path_factory.mktemp("ssh") / "emulated"
    pictures = tmp_path_factory.mktemp("pictures")
    shell = board.command(["/bin/sh"], binds={folder / "tmp": "/tmp"}, with_wheels=False)
    with pytest.MonkeyPatch.context() as patch, ssh_board(folder, shell) as server:
        patch.setenv("PATH", f"{server.bin_folder}:{os.environ['PATH']}")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(board.wheelhouse))
        asked = Asked(pairs=pairs, max_seconds=400)
        models = [shipped / "tiny.w8a8.tflite"]
        report = profile(models, device="ssh://board", asked=asked, pictures=pictures)
        left = server.left_behind()
    return report, left, sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))


def emulated(run: tuple[Report, list[str], list[str]]) -> DeviceReport:
    return run[0].devices[0]


def test_a_board_with_python_alone_is_profiled_by_one_command(
    emulated_run: tuple[Report, list[str], list[str]],
) -> None:
    report, left, pictures = emulated_run
    device = emulated(emulated_run)
    assert device.failed == ()
    assert device.machine.system.endswith("aarch64")
    assert left == []
    assert pictures == [f"0-0/noise-{i}.png" for i in range(3)]
    assert "noise-" not in str(report)  # nothing names a file of the person


def test_an_emulated_board_has_no_latency(emulated_run: tuple[Report, list[str], list[str]]) -> None:
    device = emulated(emulated_run)
    (model,) = device.models
    assert device.machine.emulated == "QEMU"
    assert model.frame is not None
    for latency in (model.tile.latency, model.frame.latency):
        assert latency.runs < 5
        assert (latency.p50_ms, latency.p90_ms, latency.p99_ms) == (None, None, None)
    assert "emulated: not latency" in device.notes[0]
    row = next(line for line in to_table(Report(**fields(emulated_run[0], device))).splitlines() if "w8a8" in line)
    assert [*row.split()[2:3], *row.split()[4:8]] == ["n/a"] * 5  # between them: the size of the tile


def fields(report: Report, device: DeviceReport) -> dict[str, object]:
    return {name: getattr(report, name) for name in report.__slots__} | {"devices": (device,)}


def test_pictures_of_the_board_score_as_those_made_here(
    emulated_run: tuple[Report, list[str], list[str]], shipped: Path, pairs: Path
) -> None:
    (there,) = emulated(emulated_run).models
    here = evaluate(ISP.load(shipped / "tiny.w8a8.tflite").process, list_pairs(pairs))  # type: ignore[arg-type]
    assert there.accuracy is not None
    assert there.accuracy.psnr_db == pytest.approx(here.mean("psnr_db"), abs=0.05)
    assert there.accuracy.ssim == pytest.approx(here.mean("ssim"), abs=0.01)
    assert there.parity is not None
    assert there.parity.max_levels <= 1.01
    assert there.sha256 == hashlib.sha256((shipped / "tiny.w8a8.tflite").read_bytes()).hexdigest()


def test_a_board_that_has_the_sdk_measures_with_ours_and_nothing_is_left(
    here: SshBoard, shipped: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one version there may be older files on the board: what comes from there says it is of this one."""
    own = wheels.own_wheel

    def marked(folder: Path) -> Path:
        path = own(folder)
        with zipfile.ZipFile(path) as before:
            files = {name: before.read(name) for name in before.namelist()}
        files["eguot_devices/machine.py"] = files["eguot_devices/machine.py"].replace(
            b"cores=core_count()", b"cores=77"
        )
        with zipfile.ZipFile(path, "w") as after:
            for name, data in files.items():
                after.writestr(name, data)
        return path

    monkeypatch.setattr(wheels, "own_wheel", marked)
    asked = Asked(pairs=pairs, max_seconds=30)
    (device,) = profile([shipped / "tiny.w8a8.tflite"], device=HERE, asked=asked).devices
    assert device.failed == ()
    assert device.models[0].accuracy is not None
    assert device.machine.cores == 77
    assert device.machine.emulated is None
    assert here.left_behind() == []


def test_what_a_board_is_can_be_asked(here: SshBoard) -> None:
    machine = open_target(HERE).look()
    assert machine.cores >= 1
    assert "ai-edge-litert" in machine.packages
    assert here.left_behind() == []


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("ssh://locked", "none of your keys is accepted there .*Permission denied"),
        ("ssh://changed", "host key is unknown or has changed"),
        ("ssh://board:1", "cannot be reached .*Connection refused.*`ssh -o BatchMode=yes -p 1 -- board true` works"),
        ("ssh://me@board:1/bin/false", "`ssh -o BatchMode=yes -p 1 -- me@board true` works"),
        ("ssh://no-such-host.invalid", "cannot be reached .*not resolve"),
        ("ssh://board/no/such/python3", "there is no /no/such/python3 on the board: install Python 3.11"),
        ("ssh://board/bin/false", "/bin/false ended with code 1"),
    ],
)
@pytest.mark.usefixtures("here")
def test_why_a_board_cannot_be_used_is_one_line(native: SshBoard, shipped: Path, device: str, message: str) -> None:
    start = time.monotonic()
    (found,) = profile([shipped / "tiny.w8a8.tflite"], device=device).devices
    (failure,) = found.failed
    assert found.models == ()
    with pytest.raises(EguotError, match=message):
        raise EguotError(failure.message)
    assert "\n" not in failure.message
    assert time.monotonic() - start < 60
    assert native.left_behind() == []


def test_a_python_that_is_too_old_is_told(here: SshBoard, tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    code = "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[3])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c {shlex.quote(code)} "$@"\n')
    old.chmod(0o755)
    with pytest.raises(EguotError, match=r"python3\.9 is 3\.9\.1, and 3\.11 or newer is needed"):
        open_target(f"ssh://board{old}").open(lambda words: None)
    assert here.left_behind() == []


def test_a_shell_that_greets_does_not_disturb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "board"
    greeting = tmp_path / "greeting"
    greeting.write_text(f'#!/bin/sh\necho Welcome; echo "{{}}"\nTMPDIR={folder}/tmp exec /bin/sh "$@"\n')
    greeting.chmod(0o755)
    with ssh_board(folder, [str(greeting)]) as board:
        monkeypatch.setenv("PATH", f"{board.bin_folder}:{os.environ['PATH']}")
        assert open_target(HERE).look().cores >= 1
        assert board.left_behind() == []


def test_a_full_disk_is_told_and_left_clean(here: SshBoard, shipped: Path, tmp_path: Path) -> None:
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", here.tmp], check=False).returncode
    ):
        pytest.skip("a small file system can be mounted by root only")
    try:
        (device,) = profile([shipped / "tiny.w8a8.tflite"], device=HERE).devices
        (failure,) = device.failed
        assert "no space left on device on the board" in failure.message
        assert here.left_behind() == []
    finally:
        subprocess.run(["umount", "-l", here.tmp], check=True)


def test_a_connection_that_vanishes_is_told_and_the_board_cleans_up_itself(
    here: SshBoard, shipped: Path, tmp_path: Path
) -> None:
    target = open_target(HERE)
    assert isinstance(target, SshTarget)
    said: list[str] = []

    def cut(words: str) -> None:
        said.append(words)
        if words == "loaded":
            assert len(list(here.tmp.iterdir())) == 1  # a folder is there while it works
            for pid in children(here.pid):
                os.kill(pid, signal.SIGKILL)

    with target:
        target.open(cut)
        with pytest.raises(EguotError, match="the connection was lost"):
            target.measure(job(shipped / "tiny.w8a8.tflite", tmp_path), cut)
    assert said[-1] != "fetching results"
    assert here.left_behind() == []
    assert workers_in(here.tmp) == []


def test_a_worker_that_takes_too_long_is_ended_on_the_board(here: SshBoard, shipped: Path, tmp_path: Path) -> None:
    with open_target(HERE) as target:
        target.open(lambda words: None)
        asked = job(shipped / "tiny.w8a8.tflite", tmp_path, sustained_s=600.0, budget_s=1.0)
        with pytest.raises(EguotError, match="--max-seconds"):
            target.measure(asked, lambda words: None, time.monotonic() + 8)
        assert workers_in(here.tmp) == []
        assert target.machine().cores >= 1  # the board is still there for the next model
    assert here.left_behind() == []


def test_silence_is_taken_for_a_lost_connection(tmp_path: Path) -> None:
    source = Path(agent.__file__).read_text().replace("SILENCE_S = 120", "SILENCE_S = 1")
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert b"eguot-agent" in running.stdout.readline()
        running.stdin.write(b'{"op": "folder"}\n')
        running.stdin.flush()
        assert b"folder" in running.stdout.readline()
        assert len(list(tmp_path.iterdir())) == 1
        assert running.wait(30) == 0
    assert list(tmp_path.iterdir()) == []


def test_every_piece_of_a_slow_upload_is_a_word_said() -> None:
    sent = io.BytesIO(b'{"op": "put", "path": "x", "size": 8}\nabcdefgh{"op": "end"}\n')

    class Slow(io.RawIOBase):
        """Three bytes at a time."""

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            data = sent.read(min(3, len(buffer)))
            buffer[: len(data)] = data
            return len(data)

    reading = agent.Agent(io.BufferedReader(Slow()), io.BytesIO())
    reading._read_commands()
    heard = [reading._inbox.get_nowait() for _ in range(reading._inbox.qsize())]
    names = [command and command["op"] for command, _ in heard]
    assert names[-3:] == ["put", "end", None]
    assert names[:-3] == ["ping"] * (len(names) - 3)
    assert len(names) >= 5
    assert heard[-3][1] == b"abcdefgh"


def children(pid: int) -> list[int]:
    text = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    direct = [int(word) for word in text.split()]
    return [*direct, *(grand for child in direct for grand in children(child) if is_sshd(grand))]


def is_sshd(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("sshd")
    except OSError:
        return False


def workers_in(folder: Path) -> list[str]:
    """Workers still running for a session in this folder, after a moment."""
    found: list[str] = []
    for _ in range(100):
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if (
                    str(folder).encode() in path.read_bytes()
                    and b"eguot_devices.worker" in (path.parent / "cmdline").read_bytes()
                ):
                    found.append(path.parent.name)
            except OSError:
                continue
        if not found:
            break
        time.sleep(0.1)
    return found
