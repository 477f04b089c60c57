from __future__ import annotations

import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from eguot_devices import wheels
from eguot_sdk.errors import EguotError
from eguot_sdk.paths import DEFAULT_ISP

BOARD = {"python": (3, 11, 2), "machine": "aarch64", "libc": ("glibc", "2.36")}


def test_our_wheel_is_one_that_pip_installs_and_that_runs_alone(tmp_path: Path) -> None:
    wheel = wheels.own_wheel(tmp_path)
    site = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(pip, check=True, timeout=120)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import eguot_sdk, eguot_devices.worker as w, importlib.metadata as m\n"
        "print(eguot_sdk.__file__, w.__file__, m.version('eguot-sdk'))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, str(site)], capture_output=True, text=True, check=True)
    sdk, worker, version = done.stdout.split()
    assert sdk.startswith(str(site))
    assert worker.startswith(str(site))
    assert f"-{version}-" in wheel.name


def test_our_wheel_holds_what_measuring_takes_and_no_more(tmp_path: Path) -> None:
    with zipfile.ZipFile(wheels.own_wheel(tmp_path)) as wheel:
        names = wheel.namelist()
        assert wheel.read(f"eguot_sdk/models/{DEFAULT_ISP.name}") == DEFAULT_ISP.read_bytes()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"eguot_sdk", "eguot_devices"}
    assert not any("__pycache__" in name for name in names)


def test_the_same_installation_gives_the_same_wheel(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(wheels.own_wheel(tmp_path / name).read_bytes())
    assert made[0] == made[1]


def test_nothing_is_fetched_for_a_board_that_has_all() -> None:
    names = [wheels._name(line) for line in wheels.base_requirements()]
    assert "numpy" in names
    assert "ai-edge-litert" in names
    assert "torch" not in names
    assert all(">=" in line for line in wheels.base_requirements())
    assert wheels.dependency_wheels("ssh://b", **BOARD, installed=dict.fromkeys(names, "9999.1")) == []  # type: ignore[arg-type]


def test_what_a_board_has_too_old_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Debian 12 has numpy 1.24.2 and pillow 9.4.0."""
    asked: list[list[str]] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(wheels, "_download", lambda device, missing, *rest: asked.append(missing))
    needed = ["numpy>=1.26", "pillow>=10.3", "click>=8.1", "rawpy>=0.25", "tifffile>=2023.7", "flatbuffers>=23.5"]
    monkeypatch.setattr(wheels, "base_requirements", lambda: needed)
    there = {
        "numpy": "1.24.2",
        "pillow": "9.4.0",
        "click": "8.1.3",
        "tifffile": "2023.12.9.post1",
        "flatbuffers": "23.5",
    }
    wheels.dependency_wheels("ssh://b", **BOARD, installed=there)  # type: ignore[arg-type]
    assert asked == [["numpy>=1.26", "pillow>=10.3", "rawpy>=0.25"]]


@pytest.mark.parametrize(("machine", "libc"), [("armv7l", ("glibc", "2.36")), ("aarch64", ("", ""))])
def test_a_board_there_are_no_wheels_for_is_told(machine: str, libc: tuple[str, str]) -> None:
    with pytest.raises(EguotError, match="install eguot-sdk there by hand"):
        wheels.dependency_wheels("ssh://b", python=(3, 11), machine=machine, libc=libc, installed={})


def test_wheels_are_fetched_once_and_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    monkeypatch.setattr(wheels, "base_requirements", lambda: ["made-up>=1"])
    with pytest.raises(EguotError, match=r"no wheels for the board: .*made-up"):
        wheels.dependency_wheels("ssh://b", **BOARD, installed={})  # type: ignore[arg-type]
    assert list(wheels.cache_folder().iterdir()) == []

    links = tmp_path / "links"
    links.mkdir()
    with zipfile.ZipFile(links / "made_up-1.0-cp311-cp311-manylinux_2_28_aarch64.whl", "w") as wheel:
        wheel.writestr("made_up-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
        wheel.writestr("made_up-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: cp311-cp311-manylinux_2_28_aarch64\n")
        wheel.writestr("made_up-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    (first,) = wheels.dependency_wheels("ssh://b", **BOARD, installed={})  # type: ignore[arg-type]
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    assert wheels.dependency_wheels("ssh://b", **BOARD, installed={}) == [first]  # type: ignore[arg-type]

    first.parent.rename(tmp_path / "fetched")

    def beside_another(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        """Another run ends first."""
        for folder in (first.parent, command[command.index("--dest") + 1]):
            shutil.copytree(tmp_path / "fetched", folder)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", beside_another)
    assert wheels.dependency_wheels("ssh://b", **BOARD, installed={}) == [first]  # type: ignore[arg-type]
    assert list(wheels.cache_folder().iterdir()) == [first.parent]


def test_an_index_that_cannot_be_reached_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in (("INDEX_URL", "http://127.0.0.1:1/simple"), ("RETRIES", "1")):
        monkeypatch.setenv(f"PIP_{name}", value)
    for name in ("PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wheels, "base_requirements", lambda: ["made-up>=1"])
    with pytest.raises(EguotError, match="found no wheels for the board: it cannot reach its index"):
        wheels.dependency_wheels("ssh://b", **BOARD, installed={})  # type: ignore[arg-type]


def test_fetching_wheels_ends_with_the_time_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def slow(command: list[str], *, timeout: float, **_: Any) -> None:
        given.append(timeout)
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    monkeypatch.setattr(subprocess, "run", slow)
    with pytest.raises(EguotError, match=r"ssh://b: .*pip had not fetched its wheels within --max-seconds"):
        wheels.dependency_wheels("ssh://b", **BOARD, installed={}, end=130.0)  # type: ignore[arg-type]
    assert given == [30.0]
    assert list(wheels.cache_folder().iterdir()) == []
