"""Fuzz one target with atheris (libFuzzer with coverage of our Python code) for some time.

    python tests/fuzz/run.py raw --seconds 60

Bytes that crash, hang for 20 s, take 2 GB, or break a promise are written to tests/fuzz/findings/TARGET, where
`test_findings.py` tries them for ever; the exit code is then not 0. LibRaw is not instrumented, but its crashes count.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

with atheris.instrument_imports(include=["eguot_sdk"], enable_loader_override=False):
    import eguot_sdk.colour
    import eguot_sdk.ingest
    import eguot_sdk.ispfile
    import eguot_sdk.raw  # noqa: F401

sys.path.insert(0, str(Path(__file__).resolve().parent))
import targets  # type: ignore[import-not-found, unused-ignore]

MAX_BYTES = 100_000


def main() -> None:
    """Set up libFuzzer and run; it does not return."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=sorted(targets.TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="Folder that keeps what was interesting between runs.")
    parser.add_argument("--findings", type=Path, help="Where bytes that break something go.")
    options = parser.parse_args()
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="eguot-fuzz-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.seeds(options.target)):
        (corpus / f"seed-{number:02}").write_bytes(seed)
    findings = options.findings or Path(__file__).resolve().parent / "findings" / options.target
    findings.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0],
        f"-max_total_time={options.seconds}",
        f"-max_len={MAX_BYTES}",
        "-timeout=20",
        "-rss_limit_mb=2048",
        f"-artifact_prefix={findings}/",
        "-print_final_stats=1",
        "-verbosity=1",
        str(corpus),
    ]
    atheris.Setup(arguments, targets.TARGETS[options.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
