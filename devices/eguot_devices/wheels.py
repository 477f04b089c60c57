"""Wheels for a board without internet: our own, rebuilt from this installation, and what it needs, for its platform."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import eguot_devices
import eguot_sdk
from eguot_sdk.errors import EguotError

PACKAGES = (eguot_sdk, eguot_devices)
"""What measuring takes; training and conversion stay here."""
DISTRIBUTION = "eguot-sdk"
MACHINES = {"aarch64": "aarch64", "arm64": "aarch64", "x86_64": "x86_64"}
OLDEST_GLIBC_MINOR = 17
FIXED_DATE = (2020, 1, 1, 0, 0, 0)


def own_wheel(folder: Path) -> Path:
    """A wheel of the packages that measure, made from the files of this installation; pip can install it."""
    version = importlib.metadata.version(DISTRIBUTION)
    metadata = importlib.metadata.distribution(DISTRIBUTION).read_text("METADATA") or ""
    info = f"eguot_sdk-{version}.dist-info"
    files: dict[str, bytes] = {}
    for package in PACKAGES:
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                files[path.relative_to(root.parent).as_posix()] = path.read_bytes()
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: eguot-sdk\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\neguot-sdk = eguot_sdk.cli:main\n"
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"eguot_sdk-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            wheel.writestr(zipfile.ZipInfo(name, FIXED_DATE), data, zipfile.ZIP_DEFLATED)
    return path


def dependency_wheels(
    device: str,
    *,
    python: Sequence[int],
    machine: str,
    libc: Sequence[str],
    installed: Mapping[str, str],
    end: float | None = None,
) -> list[Path]:
    """Wheels of all that the base install needs and the board lacks or has too old, fetched by our pip and kept.

    Raises EguotError where there are none for such a board, or pip cannot fetch them until the monotonic time `end`.
    """
    missing = [line for line in base_requirements() if not _has(installed, line)]
    if not missing:
        return []
    if machine not in MACHINES or libc[0] != "glibc":
        raise EguotError(
            f"{device}: there are no wheels for {machine or 'its processor'} with {libc[0] or 'its C library'}: "
            "install eguot-sdk there by hand and name its Python, as in ssh://host/path/to/python3"
        )
    platforms = _platforms(MACHINES[machine], int(libc[1].split(".")[1]))
    key = hashlib.sha256(repr((sorted(missing), list(python[:2]), platforms)).encode()).hexdigest()[:16]
    folder = cache_folder() / key
    if not folder.is_dir():
        _download(device, missing, f"{python[0]}.{python[1]}", platforms, folder, end)
    return sorted(folder.glob("*.whl"))


def base_requirements() -> list[str]:
    """The dependencies of the base install, but those for 32-bit ARM."""
    required = importlib.metadata.requires(DISTRIBUTION) or []
    lines = [
        line.split(";") for line in required if "extra ==" not in line and "== 'armv7l'" not in line.replace('"', "'")
    ]
    return [line[0].strip() for line in lines]


def cache_folder() -> Path:
    """Where wheels are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eguot-sdk" / "wheels"


def _platforms(machine: str, glibc_minor: int) -> list[str]:
    """pip's tags of wheels that run with this glibc, newest first: it takes each literally."""
    minors = range(glibc_minor, OLDEST_GLIBC_MINOR - 1, -1)
    return [*(f"manylinux_2_{minor}_{machine}" for minor in minors), f"manylinux2014_{machine}"]


def _download(
    device: str, requirements: Sequence[str], python: str, platforms: Sequence[str], folder: Path, end: float | None
) -> None:
    left = None if end is None else max(end - time.monotonic(), 0.0)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unfinished-") as beside:
            made = Path(beside) / "wheels"
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            command += [
                "--only-binary=:all:",
                "--python-version",
                python,
                "--implementation",
                "cp",
                "--dest",
                str(made),
            ]
            command += [word for platform in platforms for word in ("--platform", platform)]
            done = subprocess.run([*command, *requirements], capture_output=True, text=True, timeout=left, check=False)
            if done.returncode:
                said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
                # pip ends with "No matching distribution" where it asked nobody, too.
                lost = any("Retry(total=0" in line for line in said)
                why = "it cannot reach its index" if lost else said[-1][:200]
                raise EguotError(f"{device}: this machine's pip found no wheels for the board: {why}")
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # another run was quicker
                    raise
    except subprocess.TimeoutExpired:
        raise EguotError(f"{device}: this machine's pip had not fetched its wheels within --max-seconds") from None
    except OSError as error:
        raise EguotError(f"{folder.parent}: cannot keep wheels there ({error.strerror or error})") from error


def _has(installed: Mapping[str, str], requirement: str) -> bool:
    """Whether it is there and new enough; each of our requirements is NAME>=VERSION."""
    version, least = (
        tuple(int(n) for n in re.findall(r"\d+", text))
        for text in (installed.get(_name(requirement)) or "", requirement.partition(">=")[2])
    )
    return bool(version) and version >= least


def _name(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement)[0].lower().replace("_", "-")


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
