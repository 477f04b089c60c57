"""An emulated arm64 board: a Debian userland for aarch64 in a folder, run by proot and QEMU without a kernel's help.

    python tests/board/make_board.py FOLDER                                    # make it; at once where it is there
    python tests/board/make_board.py FOLDER --run python3 -c 'import numpy'    # run a command in it
    python tests/board/make_board.py FOLDER --bind $PWD:/mnt --run python3 /mnt/tool.py

Needs Debian's `debootstrap proot qemu-user-static`, and root or `fakeroot`. Packages come from the mirror that apt
uses, wheels (the base dependencies, as pinned in constraints.txt) from the index that pip uses. On the board
they lie in /opt/site, which is on PYTHONPATH only where a command runs `with_wheels`, so that the same board also is
one with nothing but Python. FOLDER holds about 500 MB and may be shared. What runs there is right and very slow:
its times say nothing about a real board.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
PYTHON = "3.11"  # that of the suite
TOOLS = {"debootstrap": "debootstrap", "proot": "proot", "qemu-aarch64-static": "qemu-user-static"}
STAMPS = ("userland", "wheels")  # files that say what was made last
# One entry of pip's --platform for each glibc that wheels were built for, down from that of the suite.
PLATFORMS = [*(f"manylinux_2_{minor}_aarch64" for minor in range(36, 16, -1)), "manylinux2014_aarch64"]


class BoardError(Exception):
    """Why there is no board, in one line."""


@dataclass(frozen=True)
class Board:
    """A board that was made, in its folder."""

    folder: Path

    @property
    def root(self) -> Path:
        """Its root directory, as this machine sees it."""
        return self.folder / "root"

    @property
    def wheelhouse(self) -> Path:
        """The wheels for it, as files: what a session without an index can install from."""
        return self.folder / "wheelhouse"

    def command(
        self,
        argv: Sequence[str | Path],
        *,
        binds: Mapping[Path, str] | None = None,
        with_wheels: bool = True,
        folder: str = "/",
    ) -> list[str]:
        """The command that runs `argv` on the board. `binds`: paths here -> where the board sees them."""
        seen = [f"{here}:{there}" for here, there in (binds or {}).items()]
        binding = [word for bind in ("/dev", "/proc", *seen) for word in ("-b", bind)]
        board_env = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "TMPDIR=/tmp"]
        board_env += ["PYTHONPATH=/opt/site"] if with_wheels else []
        words = ["env", "-i", "PROOT_NO_SECCOMP=1", *board_env]
        words += ["/usr/bin/proot", "-q", "qemu-aarch64-static", "-r", str(self.root), *binding, "-w", folder]
        return [*words, *map(str, argv)]

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        binds: Mapping[Path, str] | None = None,
        with_wheels: bool = True,
        timeout_s: float | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the board and wait; output is captured as text, the exit code is the caller's to look at."""
        command = self.command(argv, binds=binds, with_wheels=with_wheels)
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def find_board(folder: Path) -> Board:
    """The board that was made in this folder. Raises BoardError."""
    _check_tools()
    if not all((folder / stamp).is_file() for stamp in STAMPS):
        raise BoardError("no emulated board: run `make board`, or set EGUOT_BOARD to the folder of one")
    return Board(folder.resolve())


def make_board(folder: Path) -> Board:
    """The board in this folder, made there unless it is there. Raises BoardError."""
    _check_tools()
    folder.mkdir(parents=True, exist_ok=True)
    board = Board(folder.resolve())
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two that make the same board: the second waits and finds it
        userland, wheels = (folder / stamp for stamp in STAMPS)
        _make_once(userland, f"{SUITE} 1", lambda: _make_userland(board))
        wanted = _wheels()
        _make_once(wheels, json.dumps([*wanted, "as files too"]), lambda: _install_wheels(board, wanted))
    return board


def _check_tools() -> None:
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        raise BoardError(f"not installed: {', '.join(missing)}; on Debian: apt-get install {' '.join(missing)}")


def _make_once(stamp: Path, wanted: str, make: Callable[[], None]) -> None:
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    stamp.unlink(missing_ok=True)
    make()
    stamp.write_text(wanted)


def _make_userland(board: Board) -> None:
    shutil.rmtree(board.root, ignore_errors=True)
    _say("unpacking Debian for arm64, half a minute")
    command = ["debootstrap", "--arch=arm64", "--foreign", "--variant=minbase", "--include=python3"]
    as_root = [] if os.geteuid() == 0 else ["fakeroot"]
    if as_root and shutil.which("fakeroot") is None:
        raise BoardError("not root and fakeroot is not installed; on Debian: apt-get install fakeroot")
    _call([*as_root, *command, SUITE, str(board.root), *_mirror()])
    # The second stage of debootstrap would run maintainer scripts in the emulation; unpacking is enough to run Python.
    for package in sorted((board.root / "var/cache/apt/archives").glob("*.deb")):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as tar:
            # /lib and /bin are links into /usr and must stay links
            unpack = ["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "--exclude=./usr/share/doc*"]
            _call([*unpack, "--exclude=./usr/share/locale*", "-C", str(board.root)], stdin=tar.stdout)
    for leftover in ("var/cache/apt/archives", "debootstrap", "usr/share/doc", "usr/share/locale", "usr/share/man"):
        shutil.rmtree(board.root / leftover, ignore_errors=True)
    proc = board.root / "proc"
    if proc.is_symlink():
        proc.unlink()
    proc.mkdir(exist_ok=True)
    (board.root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (board.root / "etc/group").write_text("root:x:0:\n")


def _wheels() -> list[str]:
    """The dependencies of the base install, as requirements."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [str(line) for line in found]


def _install_wheels(board: Board, wheels: Sequence[str]) -> None:
    _say("installing wheels for arm64")
    kept, site = board.wheelhouse, board.root / "opt/site"
    for_board = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    for_board += [word for platform in PLATFORMS for word in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    shutil.rmtree(kept, ignore_errors=True)
    pins = ["-c", str(ROOT / "constraints.txt")]
    _call([*pip, "download", *for_board, "--dest", str(kept), *pins, *wheels])
    shutil.rmtree(site, ignore_errors=True)
    found = sorted(map(str, kept.glob("*.whl")))
    _call([*pip, "install", "--no-compile", "--no-deps", "--no-index", *for_board, "--target", str(site), *found])


def _mirror() -> list[str]:
    """The mirror apt takes the suite from; none: debootstrap's own."""
    form = "$(REPO_URI) $(CODENAME) $(COMPONENT) $(CREATED_BY)"
    try:
        lines = subprocess.run(
            ["apt-get", "indextargets", "--format", form], capture_output=True, text=True, check=False
        ).stdout
    except FileNotFoundError:
        return []
    found = [line.split()[0] for line in lines.splitlines() if line.split()[1:] == [SUITE, "main", "Packages"]]
    return found[:1]


def _call(command: Sequence[str], **options: Any) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    if done.returncode:
        said = " / ".join(line.strip() for line in done.stdout.splitlines()[-3:])
        raise BoardError(f"{command[0]} ended with code {done.returncode}: {said}")


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bind", action="append", default=[], metavar="HERE:THERE", help="Show a path to the board.")
    parser.add_argument("--bare", action="store_true", help="Without the wheels.")
    parser.add_argument("--run", nargs=argparse.REMAINDER, metavar="COMMAND", help="Run it on the board.")
    options = parser.parse_args()
    try:
        board = make_board(options.folder)
    except BoardError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    if not options.run:
        print(board.folder)
        return 0
    binds = {Path(here).resolve(): there for here, _, there in (bind.partition(":") for bind in options.bind)}
    return subprocess.run(board.command(options.run, binds=binds, with_wheels=not options.bare), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
