"""The command `train`, as a person and as a script see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from eguot_sdk.cli import main
from eguot_train.checkpoint import DEFAULT_RUN, read_config
from eguot_train.cli import _stopped
from eguot_train.config import TrainConfig

SMALL = ("--set", "batch=2", "--set", "crop=32", "--set", "potential_width=4", "--set", "weighted_alignment=false")


def invoke(*arguments: str) -> Result:
    """The whole program, with standard output apart from messages."""
    return CliRunner().invoke(main, list(arguments))


def in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from eguot_sdk.cli import main; sys.argv[0] = 'eguot-sdk'; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=180)


def test_flags_and_settings_reach_the_config(folders: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = invoke(
        "train", "mixed", "--raw", folders["raw"], "--srgb", folders["srgb"], "--pairs", folders["pairs"],
        "--val", folders["pairs"], "--out", str(out), "--isp", "qisp-s", "--steps", "2", "--seed", "5", *SMALL,
        "--set", "psi_target=chi2",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert f"trained {out}" in done.stderr
    config = TrainConfig.from_json((out / "config.json").read_text())
    assert (config.mode, config.steps, config.seed, config.crop) == ("mixed", 2, 5, 32)
    assert (config.psi_target, config.weighted_alignment) == ("chi2", False)
    assert (config.raw, config.val) == (folders["raw"], folders["pairs"])  # whole paths

    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    again = invoke("train", "mixed", "--out", str(out), "--resume")
    assert again.exit_code == 0, again.output
    assert "already trained 2 steps, nothing to do" in again.stderr
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before

    refused = invoke("train", "mixed", "--raw", folders["raw"], "--srgb", folders["srgb"], "--out", str(out))
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("Error: ")
    assert "already exists" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("unpaired",), 2, "needs --raw DIR and --srgb DIR"),
        (("paired",), 2, "needs --pairs DIR"),
        (("paired", "--pairs", "absent"), 2, "absent"),
        (("unpaired", "--raw", "absent", "--srgb", "absent"), 2, "absent is not a folder"),
        (("paired", "--set", "stepz=3"), 2, "knows no 'stepz': is it steps?"),
        (("paired", "--set", "steps=many"), 2, "'many' is not a whole number"),
        (("paired", "--isp", "nothing"), 2, "unknown ISP 'nothing'"),
        (("paired", "--pairs", "absent", "--val", "nowhere"), 2, "nowhere is not a folder"),
        (("paired", "--set", "seed=-1"), 2, "seed must be in 0..2**63-1"),
        (("paired", "--set", f"seed={2**63}"), 2, "seed must be in 0..2**63-1"),
        (("paired", "--resume"), 1, "nothing to resume: start it without --resume"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: tuple[str, ...], code: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("train", *arguments, "--out", "run")
    assert why in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert done.exit_code == code
    assert not (tmp_path / "run").exists()


def test_wrong_flags_are_usage_errors(tmp_path: Path) -> None:
    for arguments in (
        ("free", "--out", "x"), ("paired",), ("paired", "--out", "x", "--steps", "0"),
        ("paired", "--out", "x", "--seed", "-1"), ("paired", "--out", "x", "--seed", str(2**63)),
    ):  # fmt: skip
        assert invoke("train", *arguments).exit_code == 2
    for mode, option in (("paired", "--raw"), ("supervised", "--srgb"), ("unpaired", "--pairs")):
        done = invoke("train", mode, option, "x", "--out", str(tmp_path / "run"))
        assert done.exit_code == 2
        assert f"does not read {option}" in done.stderr


def test_a_run_that_starts_from_the_default_takes_its_architecture(folders: dict[str, str], tmp_path: Path) -> None:
    """The README's command for one's own camera names no architecture."""
    command = ["--raw", folders["raw"], "--srgb", folders["srgb"], "--init", "default", "--steps", "1", *SMALL]
    done = invoke("train", "unpaired", *command, "--out", str(tmp_path / "run"))
    assert done.exit_code == 0, done.stderr
    start, made = read_config(DEFAULT_RUN), read_config(tmp_path / "run")
    assert start.isp != TrainConfig(mode="unpaired").isp  # or this shows nothing
    assert (made.isp, made.color_input) == (start.isp, start.color_input)
    refused = invoke("train", "unpaired", *command, "--isp", "qisp-s", "--out", str(tmp_path / "other"))
    assert refused.exit_code == 2
    assert "--init default is" in refused.stderr


def test_training_in_a_process_keeps_stdout_clean(folders: dict[str, str], tmp_path: Path) -> None:
    done = in_a_process(
        "train", "supervised", "--pairs", folders["pairs"], "--out", str(tmp_path / "run"), "--steps", "2", *SMALL
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "step 2/2" in done.stderr
    assert "Warning" not in done.stderr


def test_without_torch_the_pip_line_is_given(tmp_path: Path) -> None:
    code = """
import sys
for name in ("torch", "safetensors"):
    sys.modules[name] = None
from eguot_sdk.cli import main
main(["train", "paired", "--pairs", ".", "--out", "run"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 1
    assert "eguot-sdk[train]" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_has_an_exit_code_of_its_own(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eguot_train.trainer.train", stopped)
    done = invoke("train", "paired", "--pairs", folders["pairs"], "--out", str(tmp_path / "run"))
    assert done.exit_code == 130
    assert done.stderr == "stopped before a step was kept; start again\n"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    assert _stopped(tmp_path / "run") == "stopped before a step was kept; go on with --resume"
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "000250.safetensors").touch()
    assert _stopped(tmp_path / "run") == "stopped; step 250 is kept; go on with --resume"


def test_what_is_more_than_its_value_has_an_option_of_its_own(folders: dict[str, str], tmp_path: Path) -> None:
    asked = ("train", "paired", "--pairs", folders["pairs"], "--out", str(tmp_path / "run"), "--set")
    for setting, instead in (("init=default", "give --init"), ("isp=lan", "give --isp"), ("mode=mixed", "train MODE")):
        done = invoke(*asked, setting)
        assert done.exit_code == 2
        assert instead in done.stderr


def test_settings_that_a_mode_does_not_look_at_are_named(folders: dict[str, str], tmp_path: Path) -> None:
    data = ("--pairs", folders["pairs"], "--steps", "1", "--set", "crop=24", "--set", "batch=1")
    done = invoke(
        "train", "supervised", *data, "--out", str(tmp_path / "a"), "--set", "transport=0.5", "--set", "pseudo=2"
    )
    assert done.exit_code == 0, done.output
    assert "supervised training does not look at pseudo, transport" in done.stderr
    quiet = invoke("train", "supervised", *data, "--out", str(tmp_path / "b"))
    assert "does not look at" not in quiet.stderr


def test_a_number_of_processes_without_torchrun_is_told(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = invoke("train", "paired", "--pairs", folders["pairs"], "--out", str(tmp_path / "run"))
    assert done.exit_code == 2
    assert "WORLD_SIZE is set, but not by torchrun" in done.stderr


def test_another_process_of_torchrun_says_which_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert invoke("train", "paired", "--out", str(tmp_path / "run")).stderr.startswith("Error: process 3: ")


def test_scenes_of_a_test_set_have_other_numbers(tmp_path: Path) -> None:
    assert invoke("data", "synth", "--scenes", "2", "--first-scene", "7", "--out", str(tmp_path / "set")).exit_code == 0
    assert sorted(p.stem for p in (tmp_path / "set" / "raw").iterdir()) == ["scene_00007", "scene_00008"]


def test_a_key_is_not_given_twice(tmp_path: Path) -> None:
    done = invoke(
        "train", "paired", "--pairs", "x", "--steps", "10", "--set", "steps=5", "--out", str(tmp_path / "run")
    )
    assert done.exit_code == 2
    assert "--steps and --set steps=... name the same: give one" in done.stderr
