"""A real sshd on loopback whose shell is this machine's, or the emulated board's; its own keys, port and client config.

The client is the system's OpenSSH: a wrapper first on PATH adds `-F CONFIG`, for ssh takes the home of the real user.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", "")) or ""


@dataclass(frozen=True)
class SshBoard:
    """`ssh://board` on PATH `bin_folder`; what a session leaves is in `tmp`."""

    folder: Path
    pid: int
    port: int

    @property
    def bin_folder(self) -> Path:
        return self.folder / "bin"

    @property
    def tmp(self) -> Path:
        return self.folder / "tmp"

    def left_behind(self) -> list[str]:
        """What lies in the board's folder for temporary files, once nothing more changes there."""
        for _ in range(100):
            left = sorted(p.name for p in self.tmp.iterdir())
            if not left:
                break
            time.sleep(0.1)
        return left


@contextmanager
def ssh_board(folder: Path, shell: list[str]) -> Iterator[SshBoard]:
    """Serve until the block ends. `shell`: the command that runs `-c COMMAND` as the board."""
    if not SSHD or shutil.which("ssh") is None:
        pytest.skip("needs OpenSSH's server and client: on Debian, apt-get install openssh-server openssh-client")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # Debian's sshd separates its privileges there
    for name in ("bin", "tmp"):
        (folder / name).mkdir(parents=True)
    for key in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forced = folder / "shell"
    forced.write_text(f'#!/bin/sh\nexec {shlex.join(shell)} -c "$SSH_ORIGINAL_COMMAND"\n')
    forced.chmod(0o755)
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/sshd.pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        f"KbdInteractiveAuthentication no\nForceCommand {forced}\n"
    )
    config = (
        f"  HostName 127.0.0.1\n  Port {port}\n  UserKnownHostsFile {folder}/known\n  IdentitiesOnly yes\n"
        "  StrictHostKeyChecking accept-new\n  IdentityAgent none\n"
    )
    (folder / "ssh_config").write_text(
        f"Host board\n  IdentityFile {folder}/user\n{config}Host locked\n  IdentityFile {folder}/stranger\n{config}"
        f"Host changed\n  IdentityFile {folder}/user\n{config.replace('/known', '/empty').replace('accept-new', 'yes')}"
    )
    wrapper = folder / "bin" / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        _wait_for(port, server)
        yield SshBoard(folder, server.pid, port)
    finally:
        server.terminate()
        server.wait(10)


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if server.poll() is not None:
            break
        time.sleep(0.1)
    pytest.skip("sshd does not start here")
