"""Who imports whom, read from the syntax trees; and what `import eguot_sdk` loads, seen in a fresh interpreter."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "eguot_sdk": ROOT / "sdk" / "eguot_sdk",
    "eguot_train": ROOT / "train" / "eguot_train",
    "eguot_compress": ROOT / "compress" / "eguot_compress",
    "eguot_devices": ROOT / "devices" / "eguot_devices",
}
MAY_IMPORT = {
    "eguot_sdk": set(),
    "eguot_train": {"eguot_sdk"},
    "eguot_compress": {"eguot_sdk", "eguot_train"},
    "eguot_devices": {"eguot_sdk"},
}
# What a board has: the base dependencies, and nothing else that is not in the standard library.
CLUSTER = {"distributed"}
"""Of the extra `cluster`: imported by one function of the SDK, when `--cluster` is given."""
BASE = {"numpy", "rawpy", "click", "PIL", "tifffile", "flatbuffers", "ai_edge_litert", "tflite_runtime"}
BOARD_PACKAGES = ("eguot_sdk", "eguot_devices")
HEAVY = ("torch", "tensorflow", "scipy", "skimage", "rawpy", "PIL", "tifffile", "ai_edge_litert", "tflite_runtime")


def imports_of(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and full top-level name of everything imported, lazily or not, by statement or by a literal name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, package if node.level else (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = ast.unparse(node.func)
            name = node.args[0].value
            if function in ("importlib.import_module", "import_module", "__import__") and isinstance(name, str):
                yield node.lineno, package if name.startswith(".") else name.split(".")[0]


def package_imports(package: str) -> Iterator[tuple[str, str]]:
    """Place (file:line) and top-level name of every import of a package."""
    for path in sorted(PACKAGES[package].rglob("*.py")):
        for line, name in imports_of(path.read_text(encoding="utf-8"), package):
            yield f"{path.relative_to(ROOT)}:{line}", name


def test_the_walk_sees_every_kind_of_import() -> None:
    source = (
        "import a.b, c\nfrom d.e import f\nfrom . import g\nfrom ..h import i\n"
        "def later():\n    import j\n    importlib.import_module('k.l')\n    import_module('.m')\n"
    )
    assert {name for _, name in imports_of(source, "ours")} == {"a", "c", "d", "ours", "j", "k"}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_in_one_direction(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    wrong = [f"{where} imports {name}" for where, name in package_imports(package) if name in PACKAGES.keys() - allowed]
    assert not wrong


@pytest.mark.parametrize("package", BOARD_PACKAGES)
def test_a_board_needs_only_the_base_dependencies(package: str) -> None:
    allowed = BASE | CLUSTER | {package} | MAY_IMPORT[package] | set(sys.stdlib_module_names)
    wrong = [f"{where} imports {name}" for where, name in package_imports(package) if name not in allowed]
    assert not wrong


def loaded_by(statement: str) -> set[str]:
    """Modules a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(str(p.parent) for p in PACKAGES.values())}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


def test_importing_the_sdk_loads_no_runtime_and_no_reader() -> None:
    modules = loaded_by("import eguot_sdk")
    assert "eguot_sdk" in modules
    assert not modules.intersection(HEAVY)
    assert "numpy" not in modules


def test_the_public_names_load_no_runtime_and_no_reader() -> None:
    modules = loaded_by("from eguot_sdk import ISP, EguotError, IspSpec, RawFrame, read_raw")
    assert "eguot_sdk.isp" in modules
    assert not modules.intersection(HEAVY)


def test_help_loads_no_other_package() -> None:
    modules = loaded_by(
        "from click.testing import CliRunner\nfrom eguot_sdk.cli import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0"
    )
    assert "eguot_sdk.cli" in modules
    assert not modules.intersection({*HEAVY, "numpy", "eguot_train", "eguot_compress", "eguot_devices"})
