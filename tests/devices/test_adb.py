"""adb devices through Debian's adb client against a stand-in for the phone, and the log of benchmark_model."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_adbd import FakeAdbd
from samples import job

from eguot_devices.listing import as_text, look
from eguot_devices.profile import Asked, profile
from eguot_devices.targets import open_target
from eguot_devices.targets.adb import AdbTarget, list_phones, parse_benchmark, parse_op_times
from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.ispfile import embed_spec, pack_model, read_spec, unpack_model

TOOL = Path(__file__).with_name("stand_in_benchmark_model.py")
PROGRAMS = {
    "getprop": 'case "$1" in ro.soc.manufacturer) echo Maker;; ro.soc.model) echo SM1;; '
    "ro.product.model) echo Stand-in;; ro.build.version.release) echo 14;; *) echo;; esac",
    "nproc": "echo 'WARNING: linker: something is unused' >&2; echo 8",
}
# Two logs of the tool: of 2023 and later, and of 2020, which had no percentiles and another table.
LOG = """\
INFO: STARTING!
INFO: Initialized session in 92.318ms.
VERBOSE: Replacing 30 out of 31 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 2 partitions.
INFO: count=4 first=187533 curr=140000 min=139000 max=187533 avg=151234 std=20000 p5=139000 median=141000 p95=187533

INFO: count=25 first=140990 curr=140990 min=140071 max=195121 avg=145528 std=13583 p5=140545 median=141253 p95=187533

INFO: Inference timings in us: Init: 92318, First inference: 187533, Warmup (avg): 151234, Inference (avg): 1.45528e+05
INFO: Overall peak memory footprint (MB) via periodic monitoring: 73.4102
"""
OLD_LOG = """\
count=50 first=249042 curr=250889 min=247067 max=254474 avg=249684 std=1442
Inference timings in us: Init: 16242, First inference: 360262, Warmup (avg): 304586, Inference (avg): 249684
Peak memory footprint (MB): init=4.92969 overall=138.809
"""
OLD_TABLE = """\
Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t             [node type]\t [start]\t  [first]\t [avg ms]\t [%]\t [cdf%]\t [mem KB]\t[times called]\t[Name]
\t                 CONV_2D\t            0.000\t    4.269\t    4.305\t  0.1%\t  0.1%\t     0.000\t        1\t[a]:0
\t       DEPTHWISE_CONV_2D\t            4.270\t    2.150\t    2.200\t  0.1%\t  0.2%\t     0.000\t        1\t[b]:1

============================== Top by Computation Time ==============================
\t                 CONV_2D\t            0.000\t    9.269\t    9.305\t  0.1%\t  0.1%\t     0.000\t        1\t[a]:0
"""


def test_the_log_of_the_tool_is_read() -> None:
    found = parse_benchmark(LOG)
    assert found.init_ms == 92.318
    assert found.peak_memory_mb == pytest.approx(76.976, abs=1e-3)  # the tool's MB are 1,048,576 bytes
    latency = found.latency
    assert (latency.first_ms, latency.p50_ms, latency.runs) == (187.533, 141.253, 25)
    old = parse_benchmark(OLD_LOG)
    assert (old.latency.p50_ms, old.latency.runs, old.init_ms) == (None, 50, 16.242)
    assert old.peak_memory_mb == pytest.approx(145.552, abs=1e-3)


def test_no_peak_is_made_up_where_the_tool_was_not_asked_for_it() -> None:
    quiet = LOG.replace("Overall peak memory footprint (MB) via periodic monitoring: 73.4102",
                        "Memory footprint delta from the start of the tool (MB): init=2.5 overall=9.75")  # fmt: skip
    assert parse_benchmark(quiet).peak_memory_mb is None


def test_too_few_runs_have_no_median() -> None:
    assert parse_benchmark(LOG.replace("count=25", "count=4")).latency.p50_ms is None


def test_a_tool_that_failed_is_told_by_its_last_line() -> None:
    with pytest.raises(EguotError, match="gave no times: ERROR: Failed to allocate tensors!"):
        parse_benchmark("INFO: STARTING!\nERROR: Failed to allocate tensors!\n")
    with pytest.raises(EguotError, match="printed nothing"):
        parse_benchmark("")


def test_operator_times_are_those_of_the_run_order() -> None:
    assert [(op.name, op.ms) for op in parse_op_times(OLD_TABLE)] == [("CONV_2D", 4.305), ("DEPTHWISE_CONV_2D", 2.2)]
    new = OLD_TABLE.replace("\t [start]", "").replace("\t            0.000\t    4", "\t    4")
    assert parse_op_times(new)[0].ms == 4.305
    assert parse_op_times(LOG) == ()


def test_the_tool_is_asked_for() -> None:
    with pytest.raises(UsageError, match="--benchmark-model"):
        open_target("adb").open(lambda words: None)


def test_a_delegate_is_refused_before_anything_is_measured(tool: Path, shipped: Path) -> None:
    asked = Asked(delegate="/vendor/lib64/libx.so")
    with pytest.raises(UsageError, match="adb: --delegate is for devices with Python"):
        profile([shipped / "tiny.w8a8.tflite"], device=["local", "adb"], asked=asked, benchmark_model=tool)


def test_max_seconds_ends_whatever_adb_does_but_cleaning_up(
    monkeypatch: pytest.MonkeyPatch, tool: Path, tmp_path: Path
) -> None:
    clock = {"now": 100.0}
    limits: list[tuple[str, float]] = []

    def run(argv: list[str], *, timeout: float, **_: Any) -> subprocess.CompletedProcess[str]:
        limits.append((argv[3], timeout))
        if argv[3] == "push":
            clock["now"] += timeout
            raise subprocess.TimeoutExpired(argv, timeout)
        return subprocess.CompletedProcess(argv, 0, "", "")

    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(subprocess, "run", run)
    target = open_target("adb:S", benchmark_model=tool)
    with pytest.raises(EguotError, match=r"^adb:S: adb push did not end within 20 s$"):
        target.open(lambda words: None, 120.0)
    assert limits == [("shell", 20.0), ("push", 20.0), ("shell", 60.0)]


@pytest.mark.parametrize(
    ("changes", "core"),
    [({}, 256), ({"tile": 300, "multiple": 20, "halo": 20}, 240), ({"tile": 512, "fixed_tile": True}, 512)],
)
def test_the_tool_is_given_a_size_and_a_name_that_it_takes(
    changes: dict[str, Any], core: int, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = unpack_model((shipped / "tiny.w8a8.tflite").read_bytes())
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].name = "raw:0"  # as TensorFlow names tensors
    spec = read_spec(shipped / "tiny.w8a8.tflite").replace(**{"tile": 256, **changes})
    (tmp_path / "x.tflite").write_bytes(embed_spec(pack_model(model), spec))
    np.save(tmp_path / "golden.npy", np.zeros((1, 32, 32, 4), np.int8))
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(AdbTarget, "_push", lambda *_: None)
    monkeypatch.setattr(AdbTarget, "_adb", lambda *_, **__: (_ for _ in ()).throw(EguotError("no phone")))
    monkeypatch.setattr(AdbTarget, "_benchmark", lambda self, *flags: asked.append(flags) or LOG)
    given = job(tmp_path / "x.tflite", tmp_path, golden=str(tmp_path / "golden.npy"))
    found = AdbTarget("adb").measure(given, lambda words: None)
    assert found.tile.height_packed == core + 2 * spec.halo
    assert f"--input_layer_shape=1,{core + 2 * spec.halo},{core + 2 * spec.halo},4" in asked[0]
    assert all("--input_layer=raw:0" in flags for flags in asked)
    assert "--input_layer_value_files=raw::0:/golden.bin" in asked[2]


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    """The stand-in as a program."""
    path = tmp_path / "benchmark_model"
    path.write_text(f"#!{sys.executable}\n{TOOL.read_text()}")
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An adb server of our own, with a home of its own for its keys."""
    if shutil.which("adb") is None or shutil.which("proot") is None:
        pytest.skip("needs adb and proot: on Debian, apt-get install adb proot")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("ADB_MDNS", "0")
        yield
        subprocess.run(["adb", "kill-server"], capture_output=True, check=False)


@pytest.fixture
def phone(server: None, tmp_path: Path) -> Iterator[tuple[FakeAdbd, str]]:
    """A phone that adb is connected to, and its name as a device."""
    folder, programs = tmp_path / "phone", tmp_path / "programs"
    folder.mkdir()
    programs.mkdir()
    for name, body in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    device = FakeAdbd(folder, programs)
    serial = f"127.0.0.1:{device.port}"
    done = subprocess.run(["adb", "connect", serial], capture_output=True, text=True, timeout=60, check=False)
    assert "connected to" in done.stdout, done.stdout + done.stderr
    yield device, f"adb:{serial}"
    subprocess.run(["adb", "disconnect", serial], capture_output=True, check=False)
    device.close()


def test_a_phone_is_profiled_and_left_clean(
    phone: tuple[FakeAdbd, str], tool: Path, shipped: Path, tmp_path: Path, pairs: Path
) -> None:
    stand_in, name = phone
    asked = Asked(pairs=pairs, max_seconds=300)
    models = [shipped / "tiny.w8a8.tflite"]
    (device,) = profile(models, device=name, asked=asked, benchmark_model=tool).devices
    assert device.failed == ()
    (model,) = device.models
    assert model.frame is None
    assert model.accuracy is None
    assert model.tile.latency.runs == 20
    assert model.tile.latency.p50_ms is not None
    assert model.peak_memory_mb == 13.1072
    assert model.operators is not None
    assert (model.operators.total, model.operators.delegated) == (4, 3)
    assert [op.ms for op in model.operators.times] == [0.75, 0.25]
    assert model.parity is not None
    assert model.parity.max_levels <= 1.01
    assert device.notes == ("only the network ran here, on one thread: nothing was done for --pairs",)
    assert device.machine.cpu == "Maker SM1"
    assert device.machine.cores == 8
    assert list(stand_in.folder.iterdir()) == []


def test_phones_are_listed(phone: tuple[FakeAdbd, str]) -> None:
    _, name = phone
    assert name in list_phones()
    text = as_text(look([]))
    assert f"{name}\n  Stand-in, Maker SM1\n  8 cores" in text
    assert "Android 14" in text


def test_names_reach_the_phone_as_data(phone: tuple[FakeAdbd, str], tool: Path, shipped: Path, tmp_path: Path) -> None:
    stand_in, name = phone
    model = tmp_path / "a; touch pwned $(touch pwned2) '.tflite"
    shutil.copy(shipped / "tiny.w8a8.tflite", model)
    with open_target(name, benchmark_model=tool) as target:
        target.open(lambda words: None)
        target.measure(job(model, tmp_path), lambda words: None)
    assert not any("pwned" in command for command in stand_in.commands)


def test_a_phone_that_is_not_there_is_told(server: None, tool: Path, shipped: Path) -> None:
    (device,) = profile([shipped / "tiny.w8a8.tflite"], device="adb:nowhere", benchmark_model=tool).devices
    assert "adb failed" in device.failed[0].message
    assert "nowhere" in device.failed[0].message
    assert "\n" not in device.failed[0].message


def test_a_phone_pulled_off_in_the_middle_is_told(
    phone: tuple[FakeAdbd, str], tool: Path, shipped: Path, tmp_path: Path
) -> None:
    stand_in, name = phone

    def pull(words: str) -> None:
        if words == "tile":
            stand_in.close()
            subprocess.run(["adb", "disconnect", name.removeprefix("adb:")], capture_output=True, check=False)

    with open_target(name, benchmark_model=tool) as target:
        target.open(lambda words: None)
        with pytest.raises(EguotError, match="adb failed"):
            target.measure(job(shipped / "tiny.w8a8.tflite", tmp_path), pull)


def test_a_phone_that_does_not_trust_this_computer_is_shown_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What Android's adb 34 prints."""
    (tmp_path / "adb").write_text(
        "#!/bin/sh\n"
        'if [ "$1" = devices ]; then\n'
        "printf 'List of devices attached\\nR5CT\\tunauthorized\\n\\n'\n"
        "else\n"
        "echo 'error: device unauthorized.' >&2\n"
        'echo "This adb server\'s \\$ADB_VENDOR_KEYS is not set" >&2\n'
        "echo \"Try 'adb kill-server' if that seems wrong.\" >&2\n"
        "echo 'Otherwise check for a confirmation dialog on your device.' >&2\n"
        "exit 1\n"
        "fi\n"
    )
    (tmp_path / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert list_phones() == ["adb:R5CT"]
    shown = as_text(look([]))
    assert "adb:R5CT\n  not reachable: adb:R5CT: unauthorized: unlock the phone and allow USB debugging" in shown


def test_without_adb_no_phone_is_seen_and_a_named_one_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_phones() == []
    with pytest.raises(EguotError, match="`adb`, which is not installed"):
        open_target("adb:x").look()
    assert os.environ["PATH"] == str(tmp_path)
