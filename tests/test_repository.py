"""Promises of the repository as a whole: version, extras, public names, and nothing of one machine in tracked files."""

from __future__ import annotations

import importlib
import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import eguot_sdk
from eguot_sdk.checkup import EXTRA_ORDER

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
# Removing or adding a public name is a decision: make it here, and say so in CHANGELOG.md.
PUBLIC = ["ISP", "EguotError", "IspSpec", "Overrides", "RawFrame", "read_raw", "write_image"]
COMMANDS = {
    "train",
    "isps",
    "data",
    "evaluate",
    "convert",
    "quantize",
    "qat",
    "distill",
    "lint",
    "profile",
    "compare",
    "devices",
}


def tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_the_changelog_and_the_metadata_name_one_version() -> None:
    sections = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sections[0] == PROJECT["version"]


def test_the_extras_are_those_that_messages_name() -> None:
    extras = {"train", "convert", "coreml", "onnx", "tensorflow", "cluster", "devices", "dev"}
    assert set(PROJECT["optional-dependencies"]) == extras
    assert set(EXTRA_ORDER) == extras
    named = re.compile(r"eguot-sdk\[([\w,]+)\]")
    for path in tracked_files():
        if path.suffix in (".py", ".md"):
            for match in named.finditer(path.read_text(encoding="utf-8")):
                assert set(match[1].split(",")) <= extras, f"{path.name} names the extra {match[1]!r}"


def test_every_direct_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {normal(line.split("==")[0]) for line in lines if "==" in line and not line.startswith("#")}
    wanted = [*PROJECT["dependencies"], *chain.from_iterable(PROJECT["optional-dependencies"].values())]
    names = {normal(re.split(r"[<>=;\[ ]", r)[0]) for r in wanted if "armv7l' and" not in r}
    assert not names - pins


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_pre_commit_lints_with_the_pinned_ruff() -> None:
    pin = re.search(r"^ruff==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    hooks = re.findall(r"ruff==([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert pin
    assert set(hooks) == {pin[1]}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_exist(name: str) -> None:
    assert getattr(eguot_sdk, name).__name__ == name


def test_the_public_names_are_these() -> None:
    assert eguot_sdk.__all__ == PUBLIC
    assert {name for name in dir(eguot_sdk) if not name.startswith("_")} >= set(PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = eguot_sdk.nothing  # type: ignore[attr-defined]


def test_entry_points_name_commands_that_exist() -> None:
    click = importlib.import_module("click")
    points = PROJECT["entry-points"]["eguot_sdk.commands"]
    assert set(points) == COMMANDS
    for name, value in {**points, "eguot-sdk": PROJECT["scripts"]["eguot-sdk"]}.items():
        module, _, attribute = value.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        assert name == "eguot-sdk" or command.name == name


def test_tracked_files_hold_no_path_of_one_machine() -> None:
    roots = "|".join(("work", "root", "tmp", "home", "Users"))
    # Not where the slash ends a URL's host or a longer path.
    pattern = re.compile(rf"(?<![\w./-])/(?:{roots})/|[A-Z]:\\\\?Users")
    found = []
    for path in tracked_files():
        data = path.read_bytes()
        if b"\0" not in data[:4096]:
            lines = data.decode("utf-8").splitlines()
            found += [f"{path.relative_to(ROOT)}:{i}" for i, line in enumerate(lines, 1) if pattern.search(line)]
    assert not found


def test_tracked_files_are_small_enough_to_clone_quickly() -> None:
    sizes = {path: path.stat().st_size for path in tracked_files()}
    photos = sum(size for path, size in sizes.items() if "examples/photos" in path.as_posix())
    assert photos <= 10_000_000
    assert sum(sizes.values()) <= 40_000_000


def test_the_readme_documents_every_key_of_the_spec() -> None:
    from dataclasses import fields

    from eguot_sdk.spec import GoldenPair, IspSpec, TensorSpec

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("### The ISP spec") : text.index("### A pairs folder")]
    words = set(re.findall(r"\w+", table))
    assert {f.name for c in (IspSpec, TensorSpec, GoldenPair) for f in fields(c)} <= words
