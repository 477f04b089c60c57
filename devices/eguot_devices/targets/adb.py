"""`adb[:serial]`: a phone behind Android's adb, on which LiteRT's `benchmark_model` runs the network.

The tool is built by Google for Android and given by the person (`--benchmark-model PATH`). Only the network runs there:
no raw is developed, so there is no time of a frame and no accuracy, but the tile's time and memory, its operators, and
the phone's output of the golden input. A phone with Python, such as Termux with a Debian inside, is an `ssh://` device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import shlex
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.ispfile import describe, read_spec
from eguot_sdk.paths import kind_of

from ..measure import GOLDEN_OUTPUT, TILE_RUNS, TILE_SECONDS, Job, OnProgress
from ..schema import Latency, Machine, ModelProfile, Operators, OpTime, TileProfile
from ..timing import MIN_PERCENTILE_RUNS
from .base import Target

CALL_S, RUN_S = 60.0, 600.0
MAX_CORE = 256
"""Side of the tile that is timed, in packed pixels, unless the file takes another one only."""
MIB = 1 << 20
FOLDER = "/data/local/tmp"
ShellCall = Callable[..., str]
NUMBER = r"([\d.]+(?:e[+-]?\d+)?)"


class AdbTarget(Target):
    """One phone; without a serial the only one there is."""

    def __init__(self, device: str, *, benchmark_model: Path | None = None) -> None:
        kind, _, serial = device.partition(":")
        if kind != "adb" or serial.startswith("-"):
            raise UsageError(f"--device {device}: expected adb or adb:SERIAL")
        self.device = device
        self._serial = ["-s", serial] if serial else []
        self._tool = benchmark_model
        self._folder = ""
        self._end: float | None = None

    def check(self, delegate: str | None = None) -> None:
        if delegate is not None:
            raise UsageError(f"{self.device}: --delegate is for devices with Python; adb devices run benchmark_model")
        if self._tool is None or kind_of(self._tool, UsageError) != "file":
            raise UsageError(
                f"{self.device}: adb devices need LiteRT's benchmark_model for their processor: give its path with "
                "--benchmark-model"
            )

    def open(self, on_progress: OnProgress, end: float | None = None) -> None:
        self.check()
        assert self._tool is not None
        self._end = end
        on_progress("connecting")
        folder = f"{FOLDER}/eguot-{uuid.uuid4().hex[:12]}"
        self._shell("mkdir", folder)
        self._folder = folder
        try:
            on_progress("sending benchmark_model")
            self._push(self._tool, "benchmark_model")
            self._shell("chmod", "755", f"{folder}/benchmark_model")
        except BaseException:
            self.close()
            raise

    def machine(self) -> Machine:
        return read_machine(self._shell)

    def look(self) -> Machine:
        return self.machine()

    def measure(self, job: Job, on_progress: OnProgress, end: float | None = None) -> ModelProfile:
        self._end = end
        path = Path(job.model)
        spec = read_spec(path)
        data = path.read_bytes()
        on_progress("sending files")
        self._push(path, "model.tflite")
        entry = describe(path)["input"][0]["name"]
        core = spec.tile if spec.fixed_tile else min(spec.tile, MAX_CORE // spec.multiple * spec.multiple)
        side = core + 2 * spec.halo
        seconds = TILE_SECONDS if job.budget_s is None else min(TILE_SECONDS, job.budget_s / 4)
        timing = [f"--min_secs={seconds:g}", f"--max_secs={4 * seconds:g}", f"--num_runs={TILE_RUNS}"]
        shape = f"--input_layer_shape=1,{side},{side},4"
        on_progress("tile")
        said = self._benchmark(f"--input_layer={entry}", shape, *timing)
        # Watching operators and memory takes time, so the run that is timed does neither.
        watched = ("--num_runs=5", "--enable_op_profiling=true", "--report_peak_memory_footprint=true")
        profiled = self._benchmark(f"--input_layer={entry}", shape, *watched)
        found = parse_benchmark(said)
        if job.golden is not None:
            on_progress("golden input")
            self._golden(Path(job.golden), entry, Path(job.outputs) / GOLDEN_OUTPUT, spec.output.dtype)
        return ModelProfile(
            name=job.name,
            sha256=hashlib.sha256(data).hexdigest(),
            file_bytes=len(data),
            architecture=spec.architecture,
            precision=spec.precision,
            parameters=spec.parameters,
            runtime="benchmark_model",
            load_ms=found.init_ms,
            tile=TileProfile(
                height_packed=side, width_packed=side, threads=1, init_ms=found.init_ms, latency=found.latency
            ),
            frame=None,
            threads=(),
            operators=_operators(said + profiled, sum(describe(path)["ops"].values())),
            sustained=None,
            energy=None,
            start_memory_mb=None,
            peak_memory_mb=parse_benchmark(profiled).peak_memory_mb,
            accuracy=None,
            parity=None,
            other_load_cores=None,
            noise_pct=None,
        )

    def _benchmark(self, *flags: str) -> str:
        tool, model = f"{self._folder}/benchmark_model", f"--graph={self._folder}/model.tflite"
        return self._shell(tool, model, "--num_threads=1", *flags, timeout_s=RUN_S, also_stderr=True)

    def _golden(self, golden: Path, entry: str, out: Path, dtype: str) -> None:
        """Feed the golden input and fetch what comes out; tools too old to write it leave no file, and no parity."""
        values = np.load(golden, allow_pickle=False)
        raw = out.with_suffix(".bin")
        raw.write_bytes(values.tobytes())
        self._push(raw, "golden.bin")
        shape = ",".join(map(str, values.shape))
        self._benchmark(
            f"--input_layer={entry}", f"--input_layer_shape={shape}", "--num_runs=1", "--warmup_runs=0",
            # The colon between name and file is a single one; those of the name are doubled.
            f"--input_layer_value_files={entry.replace(':', '::')}:{self._folder}/golden.bin",
            f"--output_filepath={self._folder}/out.bin",
        )  # fmt: skip
        raw.unlink()
        with contextlib.suppress(EguotError):
            self._adb("pull", f"{self._folder}/out.bin", str(raw))
            n, height, width, _ = values.shape
            output = np.fromfile(raw, dtype)
            if output.size == n * height * width * 12:
                np.save(out, output.reshape(n, 2 * height, 2 * width, 3), allow_pickle=False)
            raw.unlink()

    def _push(self, path: Path, name: str) -> None:
        self._adb("push", str(path), f"{self._folder}/{name}", timeout_s=RUN_S)

    def _shell(self, *argv: str, timeout_s: float = CALL_S, also_stderr: bool = False) -> str:
        # adb hands the phone's shell one line
        return self._adb("shell", shlex.join(argv), timeout_s=timeout_s, also_stderr=also_stderr)

    def _adb(self, *argv: str, timeout_s: float = CALL_S, also_stderr: bool = False) -> str:
        left = timeout_s if self._end is None else min(timeout_s, self._end - time.monotonic())
        if left <= 0:
            raise EguotError("not finished within --max-seconds, and ended")
        return adb(*self._serial, *argv, device=self.device, timeout_s=left, also_stderr=also_stderr)

    def close(self) -> None:
        folder, self._folder = self._folder, ""
        self._end = None  # cleaning up is never cut short
        if folder:
            with contextlib.suppress(EguotError):
                self._shell("rm", "-rf", folder)


@dataclasses.dataclass(frozen=True, slots=True)
class Benchmark:
    """What benchmark_model says of one run."""

    init_ms: float
    latency: Latency
    peak_memory_mb: float | None


def parse_benchmark(text: str) -> Benchmark:
    """Read its log; times in it are microseconds. Old versions print no median: then p50 is None. Raises EguotError."""
    summary = re.search(rf"Inference timings in us: Init: {NUMBER}, First inference: {NUMBER}", text)
    runs = re.findall(r"count=(\d+) (.*)", text)
    if summary is None or not runs:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        raise EguotError(f"benchmark_model gave no times: {lines[-1][:200] if lines else 'it printed nothing'}")
    count, rest = int(runs[-1][0]), runs[-1][1]
    values = {key: float(value) / 1e3 for key, value in re.findall(rf"(\w+)={NUMBER}", rest)}
    peak = re.search(
        rf"peak memory footprint \(MB\)(?: via periodic monitoring)?: (?:init=\S+ overall=)?{NUMBER}", text, re.I
    )
    return Benchmark(
        init_ms=float(summary[1]) / 1e3,
        latency=Latency(
            first_ms=float(summary[2]) / 1e3,
            p50_ms=values.get("median") if count >= MIN_PERCENTILE_RUNS else None,
            p50_low_ms=None,
            p50_high_ms=None,
            p90_ms=None,
            p99_ms=None,
            runs=count,
        ),
        peak_memory_mb=float(peak[1]) * MIB / 1e6 if peak else None,  # what it calls MB are 2^20 bytes
    )


def _operators(text: str, total: int) -> Operators:
    taken = [int(n) for n, _ in re.findall(r"Replacing (\d+) out of (\d+) node\(s\) with delegate", text)]
    times = parse_op_times(text)
    return Operators(
        total=total,
        delegated=min(max(taken, default=total if "completely executed by the delegate" in text else 0), total),
        not_delegated=(),
        times=times,
        times_source="benchmark_model --enable_op_profiling, average" if times else "n/a: benchmark_model gave none",
    )


def parse_op_times(text: str) -> tuple[OpTime, ...]:
    """The table `Run Order` of the benchmark runs; the column `[start]` is only in older versions."""
    start = text.rfind("Operator-wise Profiling Info for Regular Benchmark Runs")
    table = text[max(start, 0) :]
    head = re.search(r"= Run Order =+\s*\n(.*\[node type\].*)\n", table)
    if head is None:
        return ()
    column = [c.strip("[] ") for c in re.findall(r"\[[^\]]*\]", head[1])].index("avg ms")
    times = []
    for line in table[head.end() :].splitlines():
        cells = [cell.strip() for cell in line.strip().split("\t")]
        if len(cells) <= column or not re.fullmatch(NUMBER, cells[column]):
            break
        times.append(OpTime(name=cells[0], ms=float(cells[column])))
    return tuple(times)


def read_machine(shell: ShellCall) -> Machine:
    """A phone's facts through its shell."""
    soc = " ".join(shell("getprop", f"ro.soc.{key}").strip() for key in ("manufacturer", "model")).strip()
    model = " ".join(shell("getprop", f"ro.product.{key}").strip() for key in ("manufacturer", "model")).strip()
    memory = re.search(r"MemTotal:\s+(\d+) kB", shell("cat", "/proc/meminfo"))
    cores = re.match(r"\d+", _quiet(shell, "nproc"))
    governor = _quiet(shell, "cat", "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    libraries = {"/vendor/lib64/libOpenCL.so": "GPU (OpenCL)", "/system/lib64/libneuralnetworks.so": "NNAPI"}
    return Machine(
        system=f"Android {shell('getprop', 'ro.build.version.release').strip()} {shell('uname', '-m').strip()}",
        cpu=soc or model or "unknown",
        soc=model or None,
        cores=int(cores[0]) if cores else 1,
        memory_mb=round(int(memory[1]) * 1024 / 1e6) if memory else None,
        governor=governor or None,
        python="none",
        packages={},
        delegates=("XNNPACK", *(name for path, name in libraries.items() if _quiet(shell, "ls", path))),
        emulated="Android emulator" if "ranchu" in _quiet(shell, "getprop", "ro.hardware") else None,
    )


def _quiet(shell: ShellCall, *argv: str) -> str:
    try:
        return shell(*argv).strip()
    except EguotError:
        return ""


def list_phones() -> list[str]:
    """`adb:SERIAL` of the phones that adb sees, in whatever state; none where there is no adb."""
    try:
        text = adb("devices", device="adb", timeout_s=20)
    except EguotError:
        return []
    lines = (line.partition("\t") for line in text.splitlines()[1:])
    return [f"adb:{serial}" for serial, tab, _ in lines if tab]


def adb(*argv: str, device: str, timeout_s: float, also_stderr: bool = False) -> str:
    """Run the system's adb; its output, with `also_stderr` that of errors after it, where benchmark_model logs.

    Raises EguotError with the last line of what it said.
    """
    try:
        done = subprocess.run(["adb", *argv], capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError:
        raise EguotError(f"{device}: needs `adb`, which is not installed: on Debian, apt-get install adb") from None
    except subprocess.TimeoutExpired:
        what = argv[2] if argv[0] == "-s" else argv[0]
        raise EguotError(f"{device}: adb {what} did not end within {timeout_s:.0f} s") from None
    if done.returncode:
        said = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
        if any("device unauthorized" in line for line in said):
            raise EguotError(f"{device}: unauthorized: unlock the phone and allow USB debugging for this computer")
        raise EguotError(f"{device}: adb failed ({said[-1][:200] if said else f'code {done.returncode}'})")
    return done.stdout + (done.stderr if also_stderr else "")
