"""The SDK's own tests on the emulated arm64 board.

    python tests/board/run_suite.py .board [ARGUMENTS OF PYTEST]

Installs pytest, hypothesis and what the tests compare with beside the board's own wheels, shows it this checkout
and runs `tests/sdk` there with few examples a property. Tests that the
board cannot run are named in LEFT_OUT with the reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from make_board import PLATFORMS, PYTHON, ROOT, BoardError, make_board

TEST_WHEELS = ("pytest", "hypothesis", "scikit-image")
LEFT_OUT = {
    "tests/sdk/test_raw.py::test_a_dng_of_pidng_reads_as_written": "pidng has no wheel for arm64",
    "tests/sdk/test_cli.py::test_a_decoder_that_dies_or_hangs_costs_its_file_only": "8 s are short of a start",
    "tests/sdk/test_cli.py::test_help_is_quick_and_loads_nothing_heavy": "a second is short of a start",
    "tests/sdk/test_ispfile.py::test_long_lists_take_no_time": "so are 5 s",
    "tests/sdk/test_cli.py::test_process_runs_an_isp_file": "a real process shows its progress after 10 s",
    "tests/sdk/test_cli.py::test_a_real_process_shows_no_traceback_and_no_chatter": "likewise",
    "tests/sdk/test_folder.py::test_a_full_file_system_is_said": "nothing can be mounted in proot",
}


def main() -> int:
    """Make the board where it is not there, and run; the exit code is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("board", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for pytest, instead of tests/sdk")
    options = parser.parse_args()
    try:
        board = make_board(options.board)
    except BoardError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    wheels, stamp = board.root / "opt/test-site", board.folder / "test-wheels"
    if not stamp.is_file() or stamp.read_text() != json.dumps(TEST_WHEELS):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        command += ["--upgrade", "--target", str(wheels), "--only-binary=:all:", "--python-version", PYTHON]
        command += [word for platform in PLATFORMS for word in ("--platform", platform)]
        subprocess.run([*command, "-c", str(ROOT / "constraints.txt"), *TEST_WHEELS], check=True)
        stamp.write_text(json.dumps(TEST_WHEELS))
    arguments = options.arguments or ["tests/sdk"]
    left_out = [word for test in LEFT_OUT for word in ("--deselect", test)]
    pytest = [
        "python3",
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "board_profile",
        "--hypothesis-profile=board",
        *left_out,
        *arguments,
    ]
    environment = [
        "env",
        "PYTHONPATH=/opt/site:/opt/test-site:/src/sdk:/src/devices:/src/tests/board",
        "OMP_NUM_THREADS=1",
    ]
    # The whole checkout, so that tests find what they show, but not its virtual environment.
    return subprocess.run(
        board.command([*environment, *pytest], binds={ROOT: "/src"}, folder="/src"), check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
