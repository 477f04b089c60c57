from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from samples import job

from eguot_devices.machine import this_machine
from eguot_devices.targets import open_target
from eguot_devices.targets.conversation import ask
from eguot_sdk.errors import EguotError, UsageError

SAY = (
    "import sys, json; request = json.loads(sys.stdin.readline()); say = lambda **a: print(json.dumps(a), flush=True)\n"
)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", SAY + code]


def test_progress_comes_before_the_result_and_the_request_arrives_whole() -> None:
    seen: list[str] = []
    code = "say(progress='a'); say(progress='b'); say(result=request)"
    result = ask(python(code), {"op": "echo", "text": "ä" * 1000}, seen.append)
    assert result == {"protocol": 2, "op": "echo", "text": "ä" * 1000}
    assert seen == ["a", "b"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("say(error='the model is empty')", "^the model is empty$"),
        ("sys.exit('no space left')", "ended with code 1 and no result: no space left"),
        ("sys.exit(0)", "ended with code 0 and no result$"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL"),
        ("import os; os.abort()", "ended by SIGABRT"),
        ("print('hello there')", "'hello there', which is no answer"),
        ("print('[1]')", "which is no answer"),
    ],
)
def test_how_a_worker_ends_is_told_in_one_line(code: str, message: str) -> None:
    with pytest.raises(EguotError, match=message) as caught:
        ask(python(code), {"op": "x"}, lambda words: None)
    assert "\n" not in str(caught.value)


def test_a_worker_that_hangs_is_ended(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    code = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); say(progress='on'); time.sleep(600)"
    start = time.monotonic()
    with pytest.raises(EguotError, match=r"said nothing for 1\.5 s"):
        ask(python(code), {"op": "x"}, lambda words: None, silence_s=1.5)
    assert time.monotonic() - start < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_a_worker_that_does_not_read_its_request_is_no_broken_pipe() -> None:
    with pytest.raises(EguotError, match="ended with code 3"):
        ask([sys.executable, "-c", "import sys; sys.exit(3)"], {"op": "x" * 200_000}, lambda words: None)


def test_local_tells_what_this_machine_is() -> None:
    assert open_target("local").machine() == this_machine()


def test_local_tells_why_a_model_failed(tmp_path: Path) -> None:
    path = tmp_path / "empty.tflite"
    path.touch()
    with pytest.raises(EguotError, match=r"empty\.tflite"):
        open_target("local").measure(job(path, tmp_path), lambda words: None)


def test_a_module_in_the_current_folder_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)
    assert open_target("local").machine().cores >= 1


@pytest.mark.parametrize("device", ["gpu", "", "local:7"])
def test_other_kinds_are_refused_with_those_there_are(device: str) -> None:
    with pytest.raises(UsageError, match="local") as caught:
        open_target(device)
    assert caught.value.exit_code == 2
    assert "local" in str(caught.value)


@pytest.mark.parametrize(
    "device", ["ssh://-oProxyCommand=x", "ssh://a b", "ssh://", "ssh:board", "ssh://u@-h", "adb:-x"]
)
def test_names_that_could_be_options_or_are_none_are_refused(device: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        open_target(device)


def test_a_worker_is_ended_when_its_time_is_up() -> None:
    start = time.monotonic()
    with pytest.raises(EguotError, match="--max-seconds"):
        ask(python("say(progress='on'); import time; time.sleep(600)"), {}, lambda words: None, end=start + 1.5)
    assert time.monotonic() - start < 60
