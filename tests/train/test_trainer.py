"""The training loop on tiny data: modes, limits (METHOD.md T7, T12), kills and resumes, what stops it."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from eguot_sdk.errors import CheckpointError, OutputError, UsageError
from eguot_sdk.pairs import write_pair
from eguot_train import ranks, runlog, trainer
from eguot_train.checkpoint import build_isp, checkpoints, load_run, part, read_checkpoint, read_config
from eguot_train.config import MODES, PAIRED_TRANSPORT, Mode, TrainConfig
from eguot_train.cost import Cost
from eguot_train.data import batches as batches_module
from eguot_train.data.batches import Batch, Batches, load_sources
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera
from eguot_train.evaluate import evaluate_model
from eguot_train.experts.colour import ColourExpert
from eguot_train.fits import Fixed
from eguot_train.losses import pair_loss, supervised_loss
from eguot_train.potential import Potential
from eguot_train.psi import Family, Psi
from eguot_train.reference import Alignment, Reference
from eguot_train.render import reference_render, render_frame
from eguot_train.trainer import RAMP, UNLED, RunLog, TrainingDiverged, train


def tiny(mode: Mode, folders: dict[str, str], **fields: Any) -> TrainConfig:
    settings = {
        "steps": 4,
        "batch": 2,
        "crop": 24,
        "potential_width": 4,
        "potential_reduce": 1,
        "weighted_alignment": False,
        **fields,
    }
    return TrainConfig(mode=mode, **{**folders, **settings})


def quietly(line: str) -> None:
    """An echo for runs whose messages no test looks at."""


def final(run: Path) -> dict[str, Tensor]:
    return load_file(checkpoints(run)[-1])


def logged(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_a_pipe_is_told_how_far_it_is_however_slow_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lines = 0.0, list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    log = RunLog(tmp_path, 0, 100, lines.append)
    for step in range(1, 101):
        clock += 2.0
        log.add(step, {"loss_v": 0.5})
    log.close()
    told = [3, 18, 33, 48, 63, 78, 93, 100]  # after 5 seconds, then every 30, whatever the step, and at the end
    assert [line.split()[1] for line in lines] == [f"{step}/100" for step in told]
    assert lines[0] == "step 3/100  0.50 steps/s  3:14 left  v 0.5"
    assert lines[-1] == "step 100/100  0.50 steps/s  v 0.5"


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_trains(mode: Mode, folders: dict[str, str], tmp_path: Path) -> None:
    config = tiny(mode, folders, val=folders["pairs"])
    lines: list[str] = []
    run = train(config, tmp_path / "run", echo=lines.append)
    assert run == tmp_path / "run"
    assert TrainConfig.from_json((run / "config.json").read_text()) == config
    assert [p.name for p in checkpoints(run)] == ["000004.safetensors"]
    loaded = load_run(run)
    assert loaded.step == 4
    torch.manual_seed(config.seed)
    start = build_isp("qisp-s")
    assert not same(dict(loaded.net.state_dict()), dict(start.state_dict()))
    assert set(loaded.state["data"]) == {
        "unpaired": {"raw", "srgb"}, "mixed": {"raw", "srgb", "pairs"},
    }.get(mode, {"pairs"})  # fmt: skip
    assert (run / "sheets" / "000004.jpg").stat().st_size > 1000
    values = {key: value for line in logged(run) for key, value in line.items()}
    assert np.isfinite(list(values.values())).all()
    assert ("loss_v" in values) == (mode != "supervised")
    assert ("loss_transport" in values) == (mode != "supervised")
    assert values["val_psnr_db"] == pytest.approx(evaluate_model(run, Path(folders["pairs"])).mean("psnr_db"), abs=1e-4)
    assert any("step 4/4" in line for line in lines)
    kinds = {"unpaired": "raws photos", "mixed": "raws photos pairs"}.get(mode, "pairs")
    assert " ".join(part.split()[1] for part in lines[0].split(", ")) == kinds  # others are not counted


def test_pairs_to_validate_on_are_looked_for_first_and_damaged_ones_told(
    folders: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no pairs to score on"):
        train(tiny("supervised", folders, val=folders["srgb"]), tmp_path / "run", echo=quietly)
    assert not (tmp_path / "run").exists()
    val = Path(shutil.copytree(folders["pairs"], tmp_path / "val"))
    cut = sorted(val.glob("*_raw.png"))[0]
    cut.write_bytes(cut.read_bytes()[:100])
    lines: list[str] = []
    run = train(tiny("supervised", folders, val=str(val)), tmp_path / "run", echo=lines.append)
    assert sum(line.startswith("not scored: ") and cut.name in line for line in lines) == 1
    assert [line["val_psnr_db"] for line in logged(run) if "val_psnr_db" in line] == [
        pytest.approx(evaluate_model(run, val).mean("psnr_db"), abs=1e-4)
    ]


def plain_loop(config: TrainConfig, loss_of: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """A supervised loop as anyone would write it, on the same batches and schedule."""
    torch.manual_seed(config.seed)
    net = build_isp(config.isp).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(net.parameters(), config.lr, betas=(0.5, 0.99))
    batches = Batches(config, load_sources(config), Alignment())
    for step in range(config.steps):
        batch = batches.at(step)
        cosine = 0.5 * (1 + np.cos(np.pi * step / config.steps))
        optimizer.param_groups[0]["lr"] = config.lr * (0.02 + 0.98 * cosine)
        optimizer.zero_grad()
        loss_of(net(batch.pair_raw), batch.pair_truth).mean().backward()  # type: ignore[arg-type]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return dict(net.state_dict())


def test_supervised_training_is_a_plain_loop(folders: dict[str, str], tmp_path: Path) -> None:
    """T7: 50 steps, parameters equal to the last bit."""
    config = tiny("supervised", folders, steps=50)
    run = train(config, tmp_path / "run", echo=quietly)
    assert same(part("net", final(run)), plain_loop(config, supervised_loss))


def test_paired_training_without_transport_is_a_plain_loop(folders: dict[str, str], tmp_path: Path) -> None:
    """T7: potential and committee off leave the pair loss alone."""
    config = tiny("paired", folders, steps=50, transport=0.0)
    run = train(config, tmp_path / "run", echo=quietly)
    assert same(part("net", final(run)), plain_loop(config, pair_loss))


@pytest.mark.parametrize("kept", ["paired", "unpaired"])
def test_mixed_training_with_one_kind_of_data_is_that_mode(
    kept: Mode, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T7: losses and parameters are equal, not close."""
    alone = tiny(kept, folders)
    sources = load_sources(alone)

    class Half(Batches):
        """The batches of the one mode, whatever the config."""

        def __init__(self, config: TrainConfig, _sources: Any, alignment: Alignment, **options: Any) -> None:
            super().__init__(replace(config, mode=kept), sources, alignment, **options)

    fixed = trainer.fit_fixed(alone, sources)
    one = train(alone, tmp_path / "one", echo=quietly)
    monkeypatch.setattr(trainer, "Batches", Half)
    monkeypatch.setattr(trainer, "fit_fixed", lambda *_: fixed)
    monkeypatch.setattr(trainer, "with_pairs", lambda config, _: config)  # the mixed run's pairs are never drawn
    other = train(replace(alone, mode="mixed"), tmp_path / "other", echo=quietly)
    assert logged(one) == logged(other)
    assert same(final(one), final(other))


def test_pseudo_pairs_and_transport_fade_as_pairs_cover_the_raws(folders: dict[str, str]) -> None:
    config = tiny("mixed", folders, pseudo=0.8, transport=0.03)
    sources = load_sources(config)
    whole = trainer.with_pairs(config, sources)
    assert (whole.pseudo, whole.transport) == (0.0, pytest.approx(PAIRED_TRANSPORT))
    sources.pairs = sources.pairs[:1]
    third = trainer.with_pairs(config, sources)
    assert third.pseudo == pytest.approx(0.8 * 2 / 3)
    assert third.transport == pytest.approx(0.02 + PAIRED_TRANSPORT / 3)
    assert trainer.with_pairs(replace(config, transport=0.0), sources).transport == 0
    sources.pairs = []
    assert trainer.with_pairs(config, sources) == config


def fingerprint(module: nn.Module) -> tuple[bytes, ...]:
    return tuple(p.detach().numpy().tobytes() for p in module.parameters())


def test_each_step_moves_its_own_network_alone(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T12: v's step leaves T alone, T's step leaves v alone and gives it no gradient; nothing reaches the data."""
    monkeypatch.setattr(trainer, "with_pairs", lambda config, _: config)  # all kinds of data in one run
    seen: list[str] = []
    networks: dict[str, nn.Module] = {}

    def watch(name: str, moving: str, resting: str) -> None:
        step = getattr(trainer, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            for argument in (*arguments, *options.values()):
                if isinstance(argument, trainer.Passes):
                    networks["potential" if isinstance(argument.exact, Potential) else "net"] = argument.exact
            before = {key: fingerprint(net) for key, net in networks.items()}
            for net in networks.values():
                net.zero_grad(set_to_none=True)
            result = step(*arguments, **options)
            if moving in before:
                assert fingerprint(networks[moving]) != before[moving]
            if resting in before:
                assert fingerprint(networks[resting]) == before[resting]
                assert all(p.grad is None for p in networks[resting].parameters())
                seen.append(name)
            for argument in arguments:
                if isinstance(argument, Batch):
                    for tensor in (
                        argument.raw_t,
                        argument.raw_v,
                        argument.target,
                        argument.pseudo,
                        argument.pair_truth,
                    ):
                        assert tensor is not None
                        assert not tensor.requires_grad
                        assert tensor.grad is None
            return result

        monkeypatch.setattr(trainer, name, watched)

    watch("_potential_step", "potential", "net")
    watch("_map_step", "net", "potential")
    train(tiny("mixed", folders, warmup=0.0), tmp_path / "run", echo=quietly)
    assert seen.count("_map_step") == 4
    assert seen.count("_potential_step") == 3  # the first one runs before the network was seen


def test_weights_are_averaged_from_the_first_step(folders: dict[str, str], tmp_path: Path) -> None:
    """After one step the average holds a tenth of the start, as its warm-up says."""
    config = tiny("paired", folders, steps=1)
    tensors = final(train(config, tmp_path / "run", echo=quietly))
    torch.manual_seed(config.seed)
    for key, start in build_isp("qisp-s").state_dict().items():
        torch.testing.assert_close(tensors[f"ema.{key}"], 0.1 * start + 0.9 * tensors[f"net.{key}"])


def test_strength_falls_to_alpha_over_its_fraction() -> None:
    config = TrainConfig(mode="unpaired", steps=1000, alpha=2.0, alpha_start=32.0, alpha_fraction=0.4)
    found = [trainer._alpha(config, step) for step in (0, 100, 200, 300, 400, 999)]
    assert found == pytest.approx([32, 16, 8, 4, 2, 2])
    assert trainer._alpha(replace(config, alpha_fraction=0.0), 0) == 2


# Folders, resumes, kills


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_existing_folder_is_refused_and_left_alone(folders: dict[str, str], tmp_path: Path) -> None:
    run = train(tiny("supervised", folders, steps=1), tmp_path / "run", echo=quietly)
    before = snapshot(run)
    with pytest.raises(UsageError, match="already exists: choose another --out, or continue it with --resume"):
        train(tiny("supervised", folders, steps=1), run, echo=quietly)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        train(tiny("supervised", folders), tmp_path / "file", echo=quietly)
    assert snapshot(run) == before
    (tmp_path / "empty").mkdir()
    train(tiny("supervised", folders, steps=1), tmp_path / "empty", echo=quietly)


def test_of_two_runs_into_one_folder_one_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    """The second starts while the first reads its data, when there is no folder yet."""
    config, out = tiny("supervised", folders, steps=1), tmp_path / "run"

    def told(line: str) -> None:
        if "pairs" in line and not out.exists():
            train(config, out, echo=quietly)

    with pytest.raises(UsageError, match="already exists"):
        train(config, out, echo=told)
    assert load_run(out).step == 1
    assert len(logged(out)) == 1


def test_a_folder_whose_config_could_not_be_written_is_no_obstacle(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = tiny("supervised", folders, steps=1), tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(TrainConfig, "to_json", lambda _: "\ud800, which no file takes")
        with pytest.raises(UnicodeEncodeError):
            train(config, out, echo=quietly)
    assert list(out.iterdir()) == []
    assert load_run(train(config, out, echo=quietly)).step == 1


def test_a_restart_goes_on_with_its_own_run_alone(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun starts again whatever failed, also a first start that was refused for the run of somebody else."""
    config = tiny("supervised", folders, steps=1)
    alone = train(config, tmp_path / "alone", echo=quietly)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    ours = train(config, tmp_path / "ours", echo=quietly)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    longer = replace(config, steps=2)
    assert load_run(train(longer, ours, echo=quietly)).step == 2
    with pytest.raises(UsageError, match="already exists"):
        train(longer, alone, echo=quietly)
    monkeypatch.setattr(os, "getppid", lambda: -1)  # below another torchrun
    with pytest.raises(UsageError, match="already exists"):
        train(longer, ours, echo=quietly)


def test_a_place_that_will_not_do_is_refused_before_data_is_read(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "load_sources", None)
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(OutputError, match=r"file is no folder|too long"):
            train(tiny("supervised", folders), out, echo=quietly)
    closed = tmp_path / "closed"
    closed.mkdir()
    monkeypatch.setattr(trainer.os, "access", lambda path, mode: Path(path) != closed)  # root may write anywhere
    with pytest.raises(OutputError, match="closed is no folder that may be written to"):
        train(tiny("supervised", folders), closed / "a" / "run", echo=quietly)
    for mode, role in (("mixed", "srgb"), ("supervised", "pairs")):
        with pytest.raises(UsageError, match=f"run lies in --{role}"):
            train(tiny(mode, folders), Path(folders[role]) / "run", echo=quietly)  # type: ignore[arg-type]


def test_a_run_names_its_data_from_anywhere(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(folders["pairs"]).parent)
    config = tiny("supervised", {}, steps=2, checkpoint_every=1, pairs="pairs", val="pairs")
    run = train(config, tmp_path / "run", echo=quietly)
    checkpoints(run)[-1].unlink()
    lines: list[str] = []
    train(config, run, resume=True, echo=lines.append)
    assert not [line for line in lines if "val is" in line or "pairs is" in line]
    monkeypatch.chdir(tmp_path)
    saved = read_config(run)
    assert (saved.pairs, saved.val) == (folders["pairs"], folders["pairs"])
    checkpoints(run)[-1].unlink()
    assert load_run(train(saved, run, resume=True, echo=quietly)).step == 2


def test_a_terminal_that_is_gone_costs_no_step(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    assert load_run(train(tiny("supervised", folders, steps=10), tmp_path / "run")).step == 10


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ctrl_c_keeps_the_step(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """And SIGTERM, where it does what Ctrl-C does."""
    config = tiny("mixed", folders, steps=4)
    unbroken = train(config, tmp_path / "unbroken", echo=quietly)
    update, lines = trainer.update_average, []

    def pressed(*arguments: Any) -> None:
        if arguments[2] == 1:
            signal.raise_signal(number)
        update(*arguments)

    monkeypatch.setattr(trainer, "update_average", pressed)
    number = signal.Signals[name]
    signal.signal(number, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", echo=lines.append)
    assert signal.getsignal(number) is signal.default_int_handler
    monkeypatch.undo()
    assert [p.stem for p in checkpoints(tmp_path / "run")] == ["000002"]
    assert lines[-2:] == [
        "stopping after this step; Ctrl-C again stops at once", "stopped after step 2 of 4; go on with --resume"
    ]  # fmt: skip
    assert same(final(train(config, tmp_path / "run", resume=True, echo=quietly)), final(unbroken))


def test_names_that_are_not_utf_8(folders: dict[str, str], tmp_path: Path) -> None:
    """Such files come from old archives; Linux takes any bytes for a name."""
    config = tiny("unpaired", folders, steps=1, sheet_every=1)
    for role, suffix in (("raw", ".dng"), ("srgb", ".png")):
        folder = Path(shutil.copytree(folders[role], tmp_path / role))
        first = sorted(folder.glob("*" + suffix))[0]
        try:
            first.rename(folder / os.fsdecode(b"caf\xe9" + suffix.encode()))
        except OSError:
            pytest.skip("this file system takes UTF-8 alone")
        config = replace(config, **{role: str(folder)})
    run = train(config, tmp_path / "run", echo=quietly)
    assert b"caf\xe9.png," in (run / "outliers.csv").read_bytes()
    assert load_run(run).step == 1


def test_resuming_a_finished_run_changes_nothing(folders: dict[str, str], tmp_path: Path) -> None:
    run = train(tiny("supervised", folders, steps=2), tmp_path / "run", echo=quietly)
    before, lines = snapshot(run), []
    assert train(tiny("supervised", folders, steps=2), run, resume=True, echo=lines.append) == run
    assert train(tiny("supervised", folders, steps=1), run, resume=True, echo=lines.append) == run
    assert snapshot(run) == before
    assert lines == ["run: already trained 2 steps, nothing to do"] * 2


def test_what_cannot_be_resumed_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    config = tiny("supervised", folders, steps=2, checkpoint_every=1)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(config, tmp_path / "absent", resume=True, echo=quietly)
    assert not (tmp_path / "absent").exists()
    run = train(config, tmp_path / "run", echo=quietly)
    with pytest.raises(UsageError, match="was started as supervised and cannot be resumed as paired"):
        train(replace(config, mode="paired"), run, resume=True, echo=quietly)
    checkpoints(run)[-1].unlink()
    pairs = Path(shutil.copytree(folders["pairs"], tmp_path / "pairs"))
    moved = replace(config, pairs=str(pairs))
    photo = sorted(pairs.glob("*_srgb.png"))[0]
    photo.write_bytes(sorted(pairs.glob("*_srgb.png"))[1].read_bytes())
    with pytest.raises(UsageError, match="its data folders have changed"):
        train(moved, run, resume=True, echo=quietly)
    with pytest.raises(UsageError, match="was started with crop=24, which cannot become 26: start a new run"):
        train(replace(config, crop=26), run, resume=True, echo=quietly)
    path = checkpoints(run)[-1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        train(config, run, resume=True, echo=quietly)


class Stop(Exception):
    """Stands for a power cut."""


@pytest.mark.parametrize(("mode", "held_bytes"), [("unpaired", None), ("mixed", None), ("mixed", 1)])
def test_a_resumed_run_is_the_unbroken_one(
    mode: Mode, held_bytes: int | None, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the first checkpoint, and again after it: weights, optimisers and log equal to the last bit."""
    if held_bytes is not None:  # every folder is then streamed
        monkeypatch.setattr(batches_module, "HELD_BYTES", held_bytes)
    monkeypatch.setattr(runlog, "LOG_EVERY", 1)
    config = tiny(mode, folders, steps=7, checkpoint_every=3, r1_every=2)
    unbroken = train(config, tmp_path / "unbroken", echo=quietly)
    stopped = tmp_path / "stopped"
    update = trainer.update_average
    for at in (2, 5):
        calls: Iterator[int] = iter(range(100))

        def stop(*arguments: Any, at: int = at, calls: Iterator[int] = calls) -> None:
            update(*arguments)
            if next(calls) == at:
                raise Stop

        monkeypatch.setattr(trainer, "update_average", stop)
        with pytest.raises(Stop):
            train(config, stopped, resume=stopped.exists(), echo=quietly)
    monkeypatch.setattr(trainer, "update_average", update)
    assert [p.stem for p in checkpoints(stopped)] == ["000003"]
    train(config, stopped, resume=True, echo=quietly)
    assert same(final(stopped), final(unbroken))
    assert logged(stopped) == logged(unbroken)
    assert read_checkpoint(checkpoints(stopped)[-1])[1] == read_checkpoint(checkpoints(unbroken)[-1])[1]


def kill_and_resume(config: TrainConfig, tmp_path: Path, kills: int, seed: int) -> None:
    """Train in processes that are killed at random moments; every checkpoint left is whole, the end is the same."""
    unbroken = train(config, tmp_path / "unbroken", echo=quietly)
    out = tmp_path / "killed"
    code = f"""
import sys
import torch
from pathlib import Path
from eguot_train.config import TrainConfig
from eguot_train.trainer import train
torch.set_num_threads({torch.get_num_threads()})
out = Path({str(out)!r})
print("ready", flush=True)
train(TrainConfig.from_json({config.to_json()!r}), out, resume=(out / "config.json").is_file())
"""
    rng = np.random.default_rng(seed)
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            before = len(checkpoints(out)) and checkpoints(out)[-1]
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                if len(checkpoints(out)) and checkpoints(out)[-1] != before:
                    break
                time.sleep(0.002)
            time.sleep(float(rng.uniform(0, 0.15)))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            process.communicate(timeout=60)
            assert process.returncode in (0, -signal.SIGKILL)
        assert checkpoints(out)
        for path in checkpoints(out):
            tensors, state = read_checkpoint(path)
            assert state["step"] == int(path.stem)
            assert all(torch.isfinite(t).all() for t in tensors.values())
        if process.returncode == 0:
            break
    train(config, out, resume=True, echo=quietly)
    assert same(final(out), final(unbroken))


def test_a_kill_at_a_random_moment(folders: dict[str, str], tmp_path: Path) -> None:
    kill_and_resume(tiny("unpaired", folders, steps=40, checkpoint_every=1), tmp_path, kills=2, seed=0)


@pytest.mark.slow
def test_many_kills_at_random_moments(folders: dict[str, str], tmp_path: Path) -> None:
    kill_and_resume(tiny("mixed", folders, steps=120, checkpoint_every=1), tmp_path, kills=15, seed=1)


# Health


def test_training_that_blows_up_stops(folders: dict[str, str], tmp_path: Path) -> None:
    config = tiny("paired", folders, steps=30, lr=1e20, checkpoint_every=1)
    with pytest.raises(TrainingDiverged, match="lower lr") as caught:
        train(config, tmp_path / "run", echo=quietly)
    assert "\n" not in str(caught.value)
    for path in checkpoints(tmp_path / "run"):
        assert all(torch.isfinite(t).all() for t in read_checkpoint(path)[0].values())


@pytest.mark.parametrize("what", ["value", "gradient"])
def test_not_a_number_never_reaches_a_checkpoint(
    what: str, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the third step the loss is not a number, or is one whose gradient is none."""
    calls = iter(range(100))

    def spoiled(rendered: Tensor, truth: Tensor) -> Tensor:
        loss = pair_loss(rendered, truth)
        if next(calls) < 2:
            return loss
        return loss * float("nan") if what == "value" else loss + (rendered * 0).sum().sqrt()

    monkeypatch.setattr(trainer, "pair_loss", spoiled)
    config = tiny("paired", folders, transport=0.0, checkpoint_every=1)
    with pytest.raises(TrainingDiverged, match="step 2"):
        train(config, tmp_path / "run", echo=quietly)
    assert [p.stem for p in checkpoints(tmp_path / "run")] == ["000001", "000002"]
    assert all(torch.isfinite(t).all() for t in final(tmp_path / "run").values())


@pytest.mark.parametrize("whose", ["network", "expert"])
def test_after_a_stop_at_the_first_steps_the_run_goes_on(
    whose: str, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that is kept is spoilt by what is no number: neither running norms nor an expert's weights."""
    calls = iter(range(100))

    def third_is_none(value: Tensor) -> Tensor:
        return value if next(calls) < 2 else value * float("nan")

    with monkeypatch.context() as patch:
        if whose == "network":
            patch.setattr(trainer, "pair_loss", lambda *pair: third_is_none(pair_loss(*pair)))
        else:
            judge = ColourExpert.judge

            def judged(self: ColourExpert, features: tuple[Tensor, ...]) -> Tensor:
                logit = judge(self, features)
                return third_is_none(logit) if self.training and torch.is_grad_enabled() else logit

            patch.setattr(ColourExpert, "judge", judged)
        config = tiny("paired", folders, experts=("colour",), experts_width=4, warmup=1.0)
        with pytest.raises(TrainingDiverged, match=r"step \d: .*lr_experts.* --resume"):
            train(config, tmp_path / "run", echo=quietly)
    assert len(checkpoints(tmp_path / "run")) == 1
    assert all(torch.isfinite(t).all() for t in final(tmp_path / "run").values())
    assert load_run(train(config, tmp_path / "run", resume=True, echo=quietly)).step == 4


def test_a_full_disk_is_told_in_one_line(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runlog.RunLog, "flush", full)
    with pytest.raises(OutputError, match=r"run stopped .*No space left on device.*go on with --resume"):
        train(tiny("supervised", folders, steps=1), tmp_path / "run", echo=quietly)
    monkeypatch.undo()
    assert load_run(train(tiny("supervised", folders, steps=1), tmp_path / "run", resume=True, echo=quietly)).step == 1


# Starting from a run


def test_a_run_starts_from_another(folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(tiny("supervised", folders), tmp_path / "first", echo=quietly)
    config = tiny("paired", folders, steps=1, init=str(first), lr=1e-30)
    second = train(config, tmp_path / "second", echo=quietly)
    for started, made in zip(load_run(second).net.parameters(), load_run(first).net.parameters(), strict=True):
        torch.testing.assert_close(started, made, rtol=0, atol=1e-20)
    for field, value in (("isp", "qisp-m"), ("color_input", "camera")):
        with pytest.raises(UsageError, match=r"is qisp-s on srgb input, this run is"):
            train(replace(config, **{field: value}), tmp_path / field, echo=quietly)
    (first / "config.json").write_text((first / "config.json").read_text().replace('"qisp-s"', '"some.place:Own"'))
    monkeypatch.setenv("EGUOT_TRUST_RUN", "1")
    monkeypatch.setattr("eguot_train.checkpoint.build_isp", lambda name: build_isp("qisp-s"))
    with pytest.raises(UsageError, match=r"this run is qisp-s on srgb: give --isp some\.place:Own and no"):
        train(config, tmp_path / "third", echo=quietly)
    with pytest.raises(CheckpointError, match="does not exist; give a folder"):
        train(replace(config, init=str(tmp_path / "absent")), tmp_path / "third", echo=quietly)


def test_a_run_from_another_begins_with_small_steps(folders: dict[str, str], tmp_path: Path) -> None:
    """Adam's first step moves every weight by the rate itself."""
    first = train(tiny("supervised", folders), tmp_path / "first", echo=quietly)
    start = load_run(first).net.state_dict()
    second = train(tiny("supervised", folders, steps=1, init=str(first), lr=1e-3), tmp_path / "second", echo=quietly)
    tensors, _ = read_checkpoint(checkpoints(second)[-1])
    moved = max(float((tensors[f"net.{name}"] - value).abs().max()) for name, value in start.items())
    assert moved == pytest.approx(1e-3 / RAMP, rel=0.02)


def test_a_network_that_transport_alone_leads_is_slow(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small part of the rate from the end of the warm-up on; not where pairs or pseudo-pairs lead."""

    def rates(name: str, mode: Mode, **fields: Any) -> list[float]:
        seen: list[float] = []

        def noted(*given: Any) -> None:
            seen.append(given[6].param_groups[0]["lr"])  # the network's optimiser
            map_step(*given)

        map_step = trainer._map_step
        monkeypatch.setattr(trainer, "_map_step", noted)
        train(tiny(mode, folders, warmup=0.5, **fields), tmp_path / name, echo=quietly)
        monkeypatch.setattr(trainer, "_map_step", map_step)
        return seen

    alone, led = rates("alone", "unpaired", pseudo=0.0), rates("led", "unpaired")
    assert rates("pairs", "mixed", pseudo=0.0) == led
    assert alone[:2] == led[:2]
    assert alone[2:] == pytest.approx([UNLED * rate for rate in led[2:]])


def test_unknown_names_and_empty_folders_stop_before_anything_is_written(
    folders: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "nothing").mkdir()
    for config, why in (
        (tiny("supervised", folders, isp="nothing"), "unknown ISP"),
        (tiny("unpaired", folders, raw=str(tmp_path / "nothing")), "no raws, no photos"),
        (tiny("unpaired", folders, srgb=None), "needs --raw DIR and --srgb DIR"),
        (tiny("unpaired", folders, crop=48), "smaller than the crop"),
    ):
        with pytest.raises(UsageError, match=why):
            train(config, tmp_path / "run", echo=quietly)
        assert not (tmp_path / "run").exists(), "a run that could not start must not be in the way of the next try"


def test_what_cannot_run_is_refused_before_data_is_read(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "load_sources", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--set device=cpu"):
        train(tiny("paired", folders, device="cuda"), tmp_path / "run", echo=quietly)
    with pytest.raises(UsageError, match="leave out own_experts"):
        train(tiny("supervised", folders), tmp_path / "run", own_experts=[(ColourExpert(4), 0.1)], echo=quietly)
    monkeypatch.setattr(ranks, "world", lambda: 3)
    with pytest.raises(UsageError, match="a batch of 2 cannot be shared by 3 processes"):
        train(tiny("paired", folders), tmp_path / "run", echo=quietly)
    assert not (tmp_path / "run").exists()


def test_a_sheet_shows_the_middles_of_large_raws(tmp_path: Path) -> None:
    """The same pixels as of the whole picture, away from the border that the part has of its own."""
    scene = make_scene(0, 400, 502)
    frame = SynthCamera.from_seed(3).shoot(scene, "large")
    write_pair(tmp_path / "pairs", "large", frame, scene)
    config = tiny("paired", {"pairs": str(tmp_path / "pairs")})
    net, sources, reference = build_isp("qisp-s").eval(), load_sources(config), Reference(Alignment())
    ((aligned, network, truth),) = trainer.sheet_rows(config, sources, net, reference)
    assert aligned.shape == network.shape == truth.shape == (320, 320, 3)
    within = np.s_[2 * net.halo + 30 : -2 * net.halo, 2 * net.halo : -2 * net.halo]  # below the caption
    whole = np.s_[40:360, 90:410]
    np.testing.assert_array_equal(network[within], render_frame(net, frame, "srgb")[whole][within])
    np.testing.assert_array_equal(aligned[within], reference_render(Alignment())(frame)[whole][within])
    np.testing.assert_array_equal(truth[within], scene[whole][within])


def test_validation_is_told_beside_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(runlog, "_bar", lambda start, steps: tqdm(total=steps, initial=start, file=terminal))
    monkeypatch.setattr(sys, "stderr", terminal)
    with closing(RunLog(tmp_path, 0, 4, quietly)) as log:
        log.write(2, {"val_psnr_db": 31.25})
    assert "step 2/4  validation 31.25 dB\n" in terminal.getvalue()


def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start, end in ((0, 5), (3, 8)):  # the first ended by a kill after the checkpoint of its third step
        with closing(RunLog(tmp_path, start, 8, quietly)) as log:
            for step in range(start + 1, end + 1):
                log.write(step, {"loss": float(step)})
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 9))


def test_a_resumed_run_does_not_need_the_run_it_started_from(folders: dict[str, str], tmp_path: Path) -> None:
    first = train(tiny("supervised", folders, steps=1), tmp_path / "first", echo=quietly)
    config = tiny("supervised", folders, init=str(first), checkpoint_every=2)
    whole = train(config, tmp_path / "whole", echo=quietly)
    broken = Path(shutil.copytree(whole, tmp_path / "broken"))
    checkpoints(broken)[-1].unlink()
    shutil.rmtree(first)
    train(config, broken, resume=True, echo=quietly)
    assert same(final(broken), final(whole))


# The log


def test_a_logged_mean_is_over_the_steps_that_had_the_value(tmp_path: Path) -> None:
    with closing(runlog.RunLog(tmp_path, 0, 4, quietly)) as log:
        for step, values in enumerate(({"a": 1.0}, {"a": 2.0}, {"a": 3.0, "b": 5.0}, {"a": 4.0, "b": 7.0}), 1):
            log.add(step, values)
    assert logged(tmp_path) == [{"step": 4, "a": 2.5, "b": 6.0}]


# Resuming with other settings


def test_a_resumed_run_takes_new_settings_and_says_so(folders: dict[str, str], tmp_path: Path) -> None:
    config = tiny("paired", folders, steps=2)
    run = train(config, tmp_path / "run", echo=quietly)
    moved = {role: str(shutil.copytree(folder, tmp_path / role)) for role, folder in folders.items()}
    changed = replace(config, steps=4, lr=1e-4, **moved)
    lines: list[str] = []
    train(changed, run, resume=True, echo=lines.append)
    assert "run: steps is 4 from step 2 on (was 2)" in lines
    assert "run: lr is 0.0001 from step 2 on (was 0.001)" in lines
    assert not any("raw is" in line for line in lines)
    assert [p.stem for p in checkpoints(run)] == ["000002", "000004"]
    assert TrainConfig.from_json((run / "config.json").read_text()) == changed


# Micro-batches, precision, compiling


def curves(config: TrainConfig, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Every logged loss, step by step."""
    monkeypatch.setattr(runlog, "LOG_EVERY", 1)
    lines = logged(train(config, out, echo=quietly))
    return {key: np.array([line[key] for line in lines if key in line]) for key in lines[-1] if "loss" in key}


@pytest.mark.parametrize("mode", ["mixed", "supervised"])
def test_micro_batches_take_the_step_of_the_whole_batch(
    mode: Mode, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, and the weights after six steps, to rounding: terms are balanced over the whole batch."""
    more = {"warmup": 0.0, "r1_every": 2, "experts": ("colour",), "experts_width": 4} if mode == "mixed" else {}
    config = tiny(mode, folders, steps=6, batch=4, **more)
    whole = curves(config, tmp_path / "whole", monkeypatch)
    parts = curves(replace(config, accumulate=2), tmp_path / "parts", monkeypatch)
    assert whole.keys() == parts.keys()
    for key, values in whole.items():
        np.testing.assert_allclose(parts[key], values, rtol=2e-4, atol=2e-5, err_msg=key)
    one, other = (final(tmp_path / name) for name in ("whole", "parts"))
    for key in part("net", one):
        torch.testing.assert_close(other[f"net.{key}"], one[f"net.{key}"], rtol=1e-2, atol=2e-4)


def test_bf16_stays_close_to_fp32(folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("mixed", folders, steps=12, warmup=0.0, r1_every=4, lr=1e-4)
    full = curves(config, tmp_path / "full", monkeypatch)
    half = curves(replace(config, precision="bf16"), tmp_path / "half", monkeypatch)
    for key in ("loss_fidelity", "loss_v"):
        assert not np.array_equal(half[key], full[key]), "bf16 must have been used"
        np.testing.assert_allclose(half[key], full[key], rtol=0.05, atol=0.02, err_msg=key)
    assert all(t.dtype == torch.float32 for k, t in part("net", final(tmp_path / "half")).items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler about itself
def test_compiled_networks_give_the_same_losses(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("mixed", folders, steps=6, warmup=0.0, r1_every=2)
    plain = curves(config, tmp_path / "plain", monkeypatch)
    compiled = curves(replace(config, compile=True), tmp_path / "compiled", monkeypatch)
    for key, values in plain.items():
        np.testing.assert_allclose(compiled[key], values, rtol=1e-3, atol=1e-4, err_msg=key)
    assert set(final(tmp_path / "compiled")) == set(final(tmp_path / "plain"))


def test_a_stop_before_the_first_checkpoint_keeps_the_state(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate trips in the third step; the run goes on from there with the settings that its message names."""
    check = trainer.Health.check

    def trip(self: Any, values: Any, step: int) -> None:
        if step == 2:
            raise TrainingDiverged("step 2: the potential has run away; raise r1")
        check(self, values, step)

    monkeypatch.setattr(trainer.Health, "check", trip)
    config = tiny("unpaired", folders, steps=5)
    with pytest.raises(TrainingDiverged, match="raise r1; go on from step 2 with --resume --set KEY=VALUE"):
        train(config, tmp_path / "run", echo=quietly)
    assert [p.stem for p in checkpoints(tmp_path / "run")] == ["000002"]
    monkeypatch.setattr(trainer.Health, "check", check)
    train(replace(config, r1=50.0), tmp_path / "run", resume=True, echo=quietly)
    assert load_run(tmp_path / "run").step == 5


@pytest.mark.parametrize(("scale", "say"), [(0.5, 1.0), (16.0, 1 / 16)])
def test_a_potential_that_knows_its_pictures_by_heart_discounts_nobody(scale: float, say: float) -> None:
    class Brightness(nn.Module):
        """v = scale * (mean - 1/2): half the scale above zero for white photos, as far below for black renderings."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(scale))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * (x.mean((1, 2, 3)) - 0.5)

    config = TrainConfig(mode="unpaired", r1=0.0)
    potential = trainer.Passes(Brightness(), config, torch.device("cpu"))
    black, white = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    judged = trainer.Judged(black, black, torch.zeros(2), white, None)
    psi, logged = Psi("softplus", 1.0), dict[str, Any]()
    optimizer = torch.optim.SGD(potential.exact.parameters(), 0.0)
    weights, found = trainer._potential_step(config, 1, judged, potential, optimizer, psi, psi, logged)
    assert found == logged["say"] == pytest.approx(say)
    torch.testing.assert_close(weights, torch.full((2,), 1 + say * (2 / (1 + math.exp(scale / 2)) - 1)))


# What the steps minimise, against formulas written out


class MeanColour(nn.Module):
    """v(y) = weights . mean colour + bias, whose gradient at a picture of n pixels is weights / n, everywhere alike."""

    def __init__(self, *weights: float, bias: float = 0.0) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) @ self.weights + self.bias


def potential_step(config: TrainConfig, step: int, net: nn.Module, source: Psi, target: Psi) -> dict[str, Any]:
    """One step of SGD with rate 1 on three renderings, their costs and three photos."""
    fake, real = torch.rand(2, 3, 3, 8, 8, generator=torch.manual_seed(0))
    judged = trainer.Judged(fake, fake, torch.tensor([0.1, 0.5, 0.9]), real, None)
    potential, logged = trainer.Passes(net, config, torch.device("cpu")), dict[str, Any]()
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    trainer._potential_step(config, step, judged, potential, optimizer, source, target, logged)
    return logged


@pytest.mark.parametrize("step", [8, 9])
def test_the_step_of_v_is_that_of_the_formula(step: int) -> None:
    """E Psi1*(v(T(x)) - c) + E Psi2*(-v(y)) (METHOD.md 1.2) and, at every fourth step, four times gamma / 2 of R1."""
    config = TrainConfig(mode="unpaired", r1=3.0, r1_every=4)
    net = MeanColour(0.4, -0.3, 0.2)
    w = net.weights.detach().double().requires_grad_(True)
    fake, real = torch.rand(2, 3, 3, 8, 8, generator=torch.manual_seed(0)).double()
    above = fake.mean((2, 3)) @ w - torch.tensor([0.1, 0.5, 0.9], dtype=w.dtype)
    v = real.mean((2, 3)) @ w
    # chi2 of strength 2: t + t^2 / 8 above -4; softplus of strength 1.5: 3 log((1 + e^(t / 1.5)) / 2).
    loss = (above + above.square() / 8).mean() + (3 * torch.log((1 + torch.exp(-v / 1.5)) / 2)).mean()
    if step == 8:
        loss = loss + 4 * 3.0 / 2 * 2 * w.square().sum() / 64  # at photos and at renderings
    (slope,) = torch.autograd.grad(loss, w)
    assert float(slope.norm()) < 1  # so nothing is clipped
    logged = potential_step(config, step, net, Psi("chi2", 2.0), Psi("softplus", 1.5))
    assert logged["loss_v"] == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(net.weights.detach().double(), (w - slope).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("families", "pulled"), [(("linear", "linear"), True), (("linear", "softplus"), False)])
def test_the_constant_that_linear_divergences_leave_free_is_drawn_to_zero(
    families: tuple[Family, Family], pulled: bool
) -> None:
    net = MeanColour(0.0, 0.0, 0.0, bias=5.0)
    potential_step(TrainConfig(mode="unpaired", r1=0.0), 1, net, *(Psi(f, 1.0) for f in families))
    after = float(net.bias.detach())
    if pulled:  # nothing else moves it: E v(T(x)) - E v(y) has no slope in it
        assert 4.9 < after < 5 - 1e-3
    else:
        assert after < 4.9


def terms_of(mode: Mode, batch: Batch, leaf: Tensor, v: nn.Module, weights: Tensor) -> dict[str, tuple[Tensor, float]]:
    """Losses and shares by name, past the warm-up; the cost counts pixels alone, doubled; say is 1/4."""
    config = TrainConfig(mode=mode, steps=100, warmup=0.1, transport=0.2, pseudo=0.7)
    device = torch.device("cpu")
    fixed = Fixed(Alignment(), Cost(2.0, (1.0, 0.0, 0.0, 0.0, 0.0)), 1.0)
    found = trainer._terms(
        config, 10, batch, leaf, trainer.Passes(v, config, device), trainer.Passes(v, config, device), None,
        Reference(Alignment()), fixed, weights, 0.25,
    )  # fmt: skip
    return {name: (loss, share) for name, loss, share in found}


def test_the_network_minimises_weighted_fidelity_and_cost_minus_v() -> None:
    generator = torch.manual_seed(0)
    raw, pseudo, pair_raw = torch.rand(3, 2, 4, 8, 8, generator=generator)
    target, truth, a, b, c = torch.rand(5, 2, 3, 16, 16, generator=generator)
    batch = Batch(raw_t=raw, target=target, pseudo=pseudo, pair_raw=pair_raw, pair_truth=truth)
    leaf = torch.cat([a, b, c]).requires_grad_(True)
    v = MeanColour(0.5, 1.0, -0.25)
    terms = terms_of("mixed", batch, leaf, v, torch.tensor([0.5, 1.5, 2.0, 0.0]))  # of targets, then of truths
    assert list(terms) == ["fidelity", "transport"]
    expected = 0.7 * (0.5 * pair_loss(b, target)[0] + 1.5 * pair_loss(b, target)[1]) / 2 + pair_loss(c, truth)[0]
    torch.testing.assert_close(terms["fidelity"][0], expected)
    cost = 2 * (Reference(Alignment())(raw) - a).square().mean()
    torch.testing.assert_close(terms["transport"][0].detach(), (cost - v(a).mean() - v(c).mean()).detach())
    assert (terms["fidelity"][1], terms["transport"][1]) == (1.0, pytest.approx(0.25 * 0.2))


class Held(nn.Module):
    """Pictures that are parameters: a step moves them by the gradient on the picture itself."""

    def __init__(self, pictures: Tensor) -> None:
        super().__init__()
        self.pictures = nn.Parameter(pictures)

    def forward(self, planes: Tensor) -> Tensor:
        return self.pictures


def test_terms_are_balanced_by_their_gradients_on_the_picture() -> None:
    """Transport counts by its share of the fidelity's gradient norm, however steep v is."""
    generator = torch.manual_seed(0)
    planes = torch.rand(2, 4, 8, 8, generator=generator)
    start, truth = torch.rand(2, 2, 3, 16, 16, generator=generator)
    config = TrainConfig(mode="paired", warmup=0.0, transport=0.2)
    device, norms = torch.device("cpu"), dict[str, float]()
    picture = start.clone().requires_grad_(True)
    (fidelity,) = torch.autograd.grad(pair_loss(picture, truth).mean(), picture)
    towards = torch.tensor([0.5, 1.0, -0.25]).reshape(1, 3, 1, 1).expand_as(start)  # where v rises
    wanted = fidelity / fidelity.norm() - 0.5 * 0.2 * towards / towards.norm()
    for steep in (1.0, 40.0):
        net, v = Held(start.clone()), MeanColour(*(steep * x for x in (0.5, 1.0, -0.25)))
        trainer._map_step(
            config, 5, Batch(pair_raw=planes, pair_truth=truth), trainer.Passes(net, config, device),
            trainer.Passes(v, config, device), None, torch.optim.SGD(net.parameters(), 1.0), Reference(Alignment()),
            Fixed(Alignment(), Cost(), 1.0), norms, torch.ones(2), 0.5, {},
        )  # fmt: skip
        moved = start - net.pictures.detach()
        torch.testing.assert_close(moved / moved.norm(), wanted / wanted.norm(), rtol=1e-3, atol=1e-5)
        assert norms["fidelity"] == pytest.approx(float(fidelity.norm()), rel=1e-4)
        norms.clear()
    # A single odd batch hardly changes what is balanced by.
    norms.update(fidelity=1.0, transport=1.0)
    trainer._map_step(
        config, 5, Batch(pair_raw=planes, pair_truth=truth), trainer.Passes(Held(start.clone()), config, device),
        trainer.Passes(MeanColour(1e4, 0.0, 0.0), config, device), None, torch.optim.SGD([start.clone()], 1.0),
        Reference(Alignment()), Fixed(Alignment(), Cost(), 1.0), norms, torch.ones(2), 0.5, {},
    )  # fmt: skip
    odd = 1e4 / (2 * 256) * math.sqrt(512)  # the norm of v's gradient over the batch
    assert norms["transport"] - 1 < 0.1 * odd


def test_a_cost_of_pairs_is_in_units_of_unrelated_content(folders: dict[str, str]) -> None:
    """What a rendering of a pair costs the potential falls with what unrelated pictures would."""
    config = tiny("paired", folders, cost_strength=3.0)
    batch = Batches(config, load_sources(config), Alignment()).at(0)
    net = trainer.Passes(build_isp("qisp-s").eval(), config, torch.device("cpu"))
    costs = [
        trainer._judged(config, batch, net, Reference(Alignment()), Fixed(Alignment(), Cost(), scale)).cost
        for scale in (1.0, 4.0)
    ]
    assert batch.pair_raw is not None
    assert batch.pair_truth is not None
    torch.testing.assert_close(costs[0], 3 * pair_loss(net(batch.pair_raw).detach(), batch.pair_truth))
    torch.testing.assert_close(costs[1], costs[0] / 4)


def test_rates_fall_to_their_floors_and_the_potential_forgets_fast() -> None:
    config = TrainConfig(mode="unpaired", steps=100, lr=1e-3, lr_potential=4e-4)
    net, potential = (torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0) for _ in range(2))
    seen = []
    for step in (0, 50, 100):
        trainer._set_rates(config, step, True, net, potential, None)
        seen.append((net.param_groups[0]["lr"], potential.param_groups[0]["lr"]))
    assert np.array(seen) == pytest.approx(np.array([[1e-3, 4e-4], [0.51e-3, 2.2e-4], [2e-5, 4e-5]]))


def test_strength_shares_and_second_fit_reach_the_steps(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the schedule and the potential say of divergences, photos and experts is what the loop goes by."""
    alphas, targets, refits, drawn = [], [], [], []
    potential_step, terms = trainer._potential_step, trainer._terms
    typical = [1.0, 0.5, 0.25]

    def watched(config: TrainConfig, step: int, *rest: Any) -> Any:
        alphas.append((step, rest[3].alpha, rest[4].alpha))
        weights, say = potential_step(config, step, *rest)
        return torch.tensor([0.5, 1.5]) * 0.8 + 0 * weights, say

    def asked(*arguments: Any) -> Any:
        targets.append(arguments[9])
        found = terms(*arguments)
        shares = {name: share for name, _, share in found}
        if "colour" in shares:
            beta = trainer._beta(arguments[1] / arguments[0].steps)
            assert shares["colour"] == pytest.approx(beta * 0.25)
            assert shares["structure"] == pytest.approx(beta * 0.5)
        return found

    def refit(config: TrainConfig, sources: Any, photo_weights: Any = None) -> Alignment:
        refits.append(photo_weights)
        return Alignment() if photo_weights is None else look

    look = Alignment(tuple(float(t) ** 0.7 for t in np.linspace(0, 1, 65)))

    class Seen(Batches):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            drawn.append(options["photo_weights"])
            super().__init__(*arguments, **options)

        def at(self, step: int) -> Batch:
            made = super().at(step)
            batches.append((step, made))
            return made

    batches: list[tuple[int, Batch]] = []
    config = tiny(
        "unpaired", folders, steps=8, refit=0.5, warmup=0.0, alpha=2.0, alpha_start=32.0, alpha_fraction=0.5,
        experts=("colour", "structure"), experts_width=4, omega=(0.25, 0.5, 0.25), find_pairs=False,
    )  # fmt: skip
    sources = load_sources(config)
    fixed = replace(trainer.fit_fixed(config, sources), alignment=Alignment(), typical=typical)
    monkeypatch.setattr(trainer, "fit_fixed", lambda *_: fixed)
    monkeypatch.setattr(trainer, "_potential_step", watched)
    monkeypatch.setattr(trainer, "_terms", asked)
    monkeypatch.setattr(trainer, "align", refit)
    monkeypatch.setattr(trainer, "Batches", Seen)
    train(config, tmp_path / "run", echo=quietly)
    assert alphas == [(step, a, a) for step in range(8) for a in [pytest.approx(max(2.0, 32 * 2.0**-step))]]
    for weights in targets:
        torch.testing.assert_close(weights, torch.tensor([0.5, 1.5]))  # on average a target counts one
    (means,) = refits
    assert len(means) == 3
    assert min(means) < 1  # the mean of .4 and 1.2 that each photo's crops were given
    assert drawn == [typical]
    before, after = (Batches(config, sources, a, photo_weights=typical, experts=True) for a in (Alignment(), look))
    for step, made in batches:
        pseudo = (before if step < 4 else after).at(step).pseudo
        assert made.pseudo is not None
        assert pseudo is not None
        assert torch.equal(made.pseudo, pseudo), step


def test_a_sheet_that_cannot_be_written_costs_no_step(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint comes first: what may fail after it does not undo hours."""

    def fail(path: Path, rows: object) -> None:
        raise OutputError(f"{path}: cannot be written")

    monkeypatch.setattr(trainer, "save_sheet", fail)
    config = TrainConfig(
        mode="paired", pairs=folders["pairs"], val=folders["pairs"], steps=3, batch=1, crop=24, transport=0.0
    )
    with pytest.raises(OutputError):
        train(config, tmp_path / "run", echo=lambda line: None)
    assert [path.stem for path in checkpoints(tmp_path / "run")] == ["000003"]
    monkeypatch.undo()
    train(config, tmp_path / "run", resume=True, echo=lambda line: None)
    assert [path.name for path in (tmp_path / "run" / "sheets").iterdir()] == ["000003.jpg"], "made up for"
    logged = (tmp_path / "run" / "log.jsonl").read_text()
    assert logged.count("val_psnr_db") == 1, "of the first time"


def test_a_pair_that_cannot_be_scored_is_told_once(folders: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(folders["pairs"], tmp_path / "val")
    for truth in (tmp_path / "val").glob("*_srgb.png"):
        truth.write_bytes(truth.read_bytes()[:100])
    lines: list[str] = []
    config = TrainConfig(
        mode="paired", pairs=folders["pairs"], val=str(tmp_path / "val"), steps=3, val_every=1, batch=1, crop=24,
        transport=0.0,
    )  # fmt: skip
    train(config, tmp_path / "run", echo=lines.append)
    assert sum("not scored" in line for line in lines) == 3
    assert sum("no pair of --val could be scored" in line for line in lines) == 1


def test_a_run_that_can_learn_nothing_more_than_the_reference_says_so(folders: dict[str, str], tmp_path: Path) -> None:
    lines: list[str] = []
    config = TrainConfig(
        mode="unpaired", raw=folders["raw"], srgb=folders["srgb"], steps=1, batch=1, crop=24, transport=0.0, pseudo=0.0,
        find_pairs=False, weighted_alignment=False,
    )  # fmt: skip
    train(config, tmp_path / "run", echo=lines.append)
    assert any("the network learns the reference rendering R(x) and no more" in line for line in lines)
