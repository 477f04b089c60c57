"""What a run tells on its way: log.jsonl, TensorBoard where installed, and lines or a bar for a person."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from eguot_sdk.progress import duration

from .checkpoint import write_file

LOG_EVERY = 10
TELL_S = 30.0
"""A pipe gets a line so often."""
FIRST_S = 5.0
"""And the first one so soon."""


class NoLog:
    """The log of ranks that write none."""

    def add(self, step: int, values: dict[str, float]) -> None: ...
    def write(self, step: int, values: dict[str, float]) -> None: ...
    def has(self, step: int, key: str) -> bool:
        return False

    def flush(self) -> None: ...
    def close(self) -> None: ...


class RunLog:
    """log.jsonl, TensorBoard where installed, and the progress shown to a person."""

    def __init__(self, run: Path, start: int, steps: int, echo: Callable[[str], None]) -> None:
        self._path = run / "log.jsonl"
        kept: list[str] = []
        if self._path.is_file():  # a resumed run repeats the steps after its checkpoint
            lines = self._path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= start]
        write_file(self._path, "".join(line + "\n" for line in kept).encode())
        self._logged = {key for line in kept if _step_of(line) == start for key in json.loads(line)}
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._board = _tensorboard(run, start)
        self._values: dict[str, list[float]] = {}
        self._started = time.monotonic()
        self._told = self._started - TELL_S + FIRST_S
        self._first, self._steps, self._echo = start, steps, echo
        self._bar = _bar(start, steps)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Gather one step's values; write their means every ten steps, each over the steps that had it."""
        for key, value in values.items():
            self._values.setdefault(key, []).append(value)
        if self._bar is not None:
            self._bar.update(1)
        due = step % LOG_EVERY == 0 or step == self._steps
        silent = self._bar is None and time.monotonic() - self._told >= TELL_S  # steps may take minutes
        if not (due or silent):
            return
        means = {key: sum(found) / len(found) for key, found in self._values.items()}
        losses = {k.removeprefix("loss_"): v for k, v in means.items() if k.startswith("loss")}
        if due:
            self.write(step, means)
            self._values.clear()
        if self._bar is not None:
            self._bar.set_postfix({k: f"{v:.3g}" for k, v in losses.items()})
        elif step == self._steps or silent:
            self._told = time.monotonic()
            rate = (step - self._first) / max(self._told - self._started, 1e-9)
            left = f"  {duration((self._steps - step) / rate)} left" if step < self._steps else ""
            shown = "  ".join(f"{k} {v:.4g}" for k, v in losses.items())
            self._echo(f"step {step}/{self._steps}  {rate:.2f} steps/s{left}  {shown}")

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of log.jsonl."""
        rounded = {key: round(value, 6) for key, value in values.items()}
        self._file.write(json.dumps({"step": step, **rounded}) + "\n")
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)
        if "val_psnr_db" in values:
            line = f"step {step}/{self._steps}  validation {values['val_psnr_db']:.2f} dB"
            if self._bar is None:
                self._echo(line)
            else:
                self._bar.write(line, file=sys.stderr)

    def has(self, step: int, key: str) -> bool:
        """Whether a run that goes on from `step` had logged a value there before."""
        return step == self._first and key in self._logged

    def flush(self) -> None:
        """Bring the log on disk, before a checkpoint."""
        self._file.flush()

    def close(self) -> None:
        """End the bar and the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._bar is not None:
            self._bar.close()


def to_stderr(line: str) -> None:
    """Tell a person one line, or nobody where the terminal is gone: that costs no training."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62  # a line cut by a kill


def _tensorboard(run: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=start + 1 if start else None)


def _bar(start: int, steps: int) -> Any:
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    return tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True)
