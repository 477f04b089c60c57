"""The committee inside the training loop: schedule, switching off, exact resume, log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eguot_sdk.errors import CheckpointError, UsageError
from eguot_sdk.output import write_image
from eguot_sdk.pairs import list_pairs
from eguot_train.checkpoint import read_config
from eguot_train.config import TrainConfig
from eguot_train.data.synth import synth_folder
from eguot_train.experts import ColourExpert
from eguot_train.trainer import _beta, build_committee, train


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("data")
    synth_folder(root, srgb=None, scenes=2, seed=3)
    (root / "photos").mkdir()
    for pair in list_pairs(root / "pairs"):
        write_image(root / "photos" / f"{pair.name}.png", np.ascontiguousarray(pair.truth()[::-1]))
    return {"raw": str(root / "raw"), "srgb": str(root / "photos"), "pairs": str(root / "pairs")}


def config(folders: dict[str, str], **fields: object) -> TrainConfig:
    settings = {
        "mode": "unpaired", "steps": 6, "batch": 2, "crop": 32, "potential_width": 4, "experts_width": 4, "seed": 1,
        "experts": ("colour", "structure", "frequency"), "weighted_alignment": False, **fields,
    }  # fmt: skip
    if settings["mode"] != "unpaired":
        settings["pairs"] = folders["pairs"]
    return TrainConfig(raw=folders["raw"], srgb=folders["srgb"], **settings)  # type: ignore[arg-type]


def quiet(line: str) -> None:
    """Take the trainer's lines."""


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"{step:06d}.safetensors")


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(folders: dict[str, str], tmp_path: Path) -> None:
    whole = train(config(folders), tmp_path / "whole", echo=quiet)
    stopped = config(folders, checkpoint_every=4)
    broken = train(stopped, tmp_path / "broken", echo=quiet)
    (broken / "checkpoints" / "000006.safetensors").unlink()
    train(stopped, broken, resume=True, echo=quiet)
    one, two = weights(whole, 6), weights(broken, 6)
    assert one.keys() == two.keys()
    assert any(key.startswith("committee.experts.") for key in one)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("mode", ["unpaired", "paired", "mixed"])
def test_losses_and_sign_accuracy_are_logged(folders: dict[str, str], tmp_path: Path, mode: str) -> None:
    run = train(config(folders, mode=mode, pseudo=0.0, steps=3), tmp_path / "run", echo=quiet)
    line = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    for name in ("colour", "structure", "frequency"):
        assert line[f"loss_d_{name}"] > 0
        assert 0 <= line[f"sign_{name}"] <= 1
        assert line[f"loss_{name}"] > 0


def test_without_experts_none_is_built_and_supervised_runs_have_none(folders: dict[str, str], tmp_path: Path) -> None:
    run = train(config(folders, experts=(), steps=2), tmp_path / "none", echo=quiet)
    assert not any(key.startswith("committee") for key in weights(run, 2))
    assert build_committee(config(folders, mode="supervised")) is None
    run = train(config(folders, mode="supervised", steps=2), tmp_path / "supervised", echo=quiet)
    assert "loss_colour" not in (run / "log.jsonl").read_text()


def test_experts_work_without_transport(folders: dict[str, str], tmp_path: Path) -> None:
    run = train(config(folders, transport=0.0, experts=("colour",), steps=3), tmp_path / "run", echo=quiet)
    line = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert "loss_colour" in line
    assert "loss_transport" not in line


def test_an_expert_of_ones_own_joins_and_must_be_given_again(folders: dict[str, str], tmp_path: Path) -> None:
    class Casts(ColourExpert):
        name = "casts"

    torch.manual_seed(0)
    own = [(Casts(4), 0.1)]
    run = train(
        config(folders, experts=("frequency",), steps=3, checkpoint_every=2),
        tmp_path / "run",
        own_experts=own,
        echo=quiet,
    )
    assert "loss_casts" in (run / "log.jsonl").read_text()
    (run / "checkpoints" / "000003.safetensors").unlink()
    saved = read_config(run)
    with pytest.raises(CheckpointError, match="committee"):
        train(saved, run, resume=True, echo=quiet)
    with pytest.raises(UsageError, match=r"was started with experts=.*frequency.*start a new run"):
        train(config(folders), run, resume=True, echo=quiet)
    alone = config(folders, experts=(), steps=2, checkpoint_every=1)
    train(alone, tmp_path / "alone", own_experts=own, echo=quiet)
    (tmp_path / "alone" / "checkpoints" / "000002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="experts of your own: give them again"):
        train(alone, tmp_path / "alone", resume=True, echo=quiet)


def test_beta_rises_holds_and_falls() -> None:
    marks = [(0.0, 0.0), (0.05, 0.0), (0.125, 0.5), (0.2, 1.0), (0.8, 1.0), (0.9, 0.625), (1.0, 0.25)]
    assert [_beta(progress) for progress, _ in marks] == pytest.approx([beta for _, beta in marks])


def test_settings_name_experts_and_shares() -> None:
    base = TrainConfig(mode="unpaired")
    assert base.with_settings(["experts=colour,frequency"]).experts == ("colour", "frequency")
    assert base.with_settings(["experts=colour", "experts="]).experts == ()
    changed = base.with_settings(["experts=structure", "omega=.3,.2,.1"])
    assert TrainConfig.from_json(changed.to_json()) == changed
    committee = build_committee(changed)
    assert committee is not None
    assert committee.omega == {"structure": 0.2}
    for setting in ("experts=color", "experts=colour,colour", "omega=1,2", "omega=0,1,1", "experts_width=0"):
        with pytest.raises(UsageError):
            base.with_settings([setting])
    with pytest.raises(UsageError, match="frequency expert needs a crop"):
        base.with_settings(["experts=frequency", "crop=24"])
