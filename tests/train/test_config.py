"""TrainConfig: written and read back, refused when wrong, changed by `--set`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from eguot_sdk.errors import CheckpointError, UsageError
from eguot_train.config import MODES, TrainConfig
from eguot_train.recipes import for_machine

CHANGED: dict[str, Any] = {
    "isp": "qisp-m", "raw": "a", "srgb": "b", "pairs": "c", "val": "d", "init": "e", "color_input": "camera",
    "steps": 7, "seed": 5, "batch": 3, "crop": 32, "device": "cuda", "lr": 0.5,
    "lr_potential": 0.25, "ema": 0.5, "transport": 0.1,
    "pseudo": 0.2, "weighted_alignment": False,
    "refit": 0.7, "register_pairs": True, "psi_source": "kl", "psi_target": "chi2", "alpha": 2.0,
    "find_pairs": False,
    "alpha_start": 3.0, "alpha_fraction": 0.3, "cost_strength": 9.0, "cost_weights": (0.1, 0.2, 0.3, 0.4, 0.5),
    "potential_width": 8, "potential_reduce": 1, "r1": 0.0, "r1_every": 2, "warmup": 0.5, "experts": ("frequency",),
    "omega": (0.3, 0.2, 0.1), "experts_width": 8, "lr_experts": 0.01, "checkpoint_every": 1, "val_every": 2,
    "sheet_every": 3, "precision": "bf16", "accumulate": 3, "compile": True, "loaders": 2, "window": 5, "reuse": 2,
}  # fmt: skip


def test_every_key_survives_the_file() -> None:
    config = TrainConfig(mode="mixed", **CHANGED)
    default = TrainConfig(mode="mixed")
    changed = {f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(default, f.name)}
    assert changed == {f.name for f in dataclasses.fields(config)} - {"mode"}
    assert TrainConfig.from_json(config.to_json()) == config
    assert TrainConfig.from_json(default.to_json()) == default
    assert json.loads(config.to_json())["cost_weights"] == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_every_key_can_be_set() -> None:
    def written(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    settings = [f"{key}={written(value)}" for key, value in CHANGED.items()]
    assert TrainConfig(mode="mixed").with_settings(settings) == TrainConfig(mode="mixed", **CHANGED)
    assert TrainConfig(mode="mixed").with_settings([]) == TrainConfig(mode="mixed")
    assert TrainConfig(mode="mixed").with_settings(["steps=5", "steps=6"]).steps == 6
    assert TrainConfig(mode="mixed").with_settings(["raw=a=b"]).raw == "a=b"
    assert not TrainConfig(mode="mixed").with_settings(["weighted_alignment=0"]).weighted_alignment
    assert TrainConfig(mode="mixed", experts=("colour",)).with_settings(["experts="]).experts == ()


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("steps", "KEY=VALUE"),
        ("stepz=3", r"knows no .stepz.: is it steps\?"),
        ("=3", "knows no '': keys are "),
        ("steps=3.5", "'3.5' is not a whole number"),
        ("steps=", "'' is not a whole number"),
        ("lr=fast", "'fast' is not a number"),
        ("learning_rat=1", "knows no 'learning_rat': keys are "),
        ("cost_strenth=1", r"knows no 'cost_strenth': is it cost_strength"),
        ("lr=nan", "lr must be a number, not nan"),
        ("transport=inf", "transport must be a number, not inf"),
        ("weighted_alignment=maybe", "is not true or false"),
        ("psi_target=hinge", "is not one of linear, kl, chi2, softplus"),
        ("mode=free", "is not one of unpaired, paired, mixed, supervised"),
        ("cost_weights=1,2", "is not 5 numbers"),
        ("cost_weights=1,2,3,4,x", "is not 5 numbers"),
        ("cost_weights=0,0,0,0,0", "not all 0"),
        ("cost_weights=1,1,1,1,-1", "must not be negative"),
        ("crop=25", "even number"),
        ("crop=22", "at least 24"),
        ("crop=24", "at least 32 packed pixels with potential_reduce=2"),
        ("potential_reduce=8", "at least 128 packed pixels with potential_reduce=8"),
        ("batch=0", "batch must be at least 1"),
        ("seed=-1", r"seed must be in 0\.\.2\*\*63-1"),
        ("ema=1.5", "ema must be in 0..1"),
        ("transport=-1", "transport must not be negative"),
        ("alpha=0", "alpha must be positive"),
        ("experts=taste", "experts must be"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(setting: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        TrainConfig(mode="unpaired").with_settings([setting])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "7",
        '"unpaired"',
        "{}",
        '{"mode": "free"}',
        '{"mode": "unpaired", "steps": "7"}',
        '{"mode": "unpaired", "steps": 7.5}',
        '{"mode": "unpaired", "steps": true}',
        '{"mode": "unpaired", "steps": 0}',
        '{"mode": "unpaired", "lr": null}',
        '{"mode": "unpaired", "lr": NaN}',
        '{"mode": "unpaired", "lr": 1' + 400 * "0" + "}",
        '{"mode": "unpaired", "raw": 7}',
        '{"mode": "unpaired", "isp": null}',
        '{"mode": "unpaired", "weighted_alignment": "no"}',
        '{"mode": "unpaired", "psi_source": "hinge"}',
        '{"mode": "unpaired", "color_input": ["srgb"]}',
        '{"mode": "unpaired", "cost_weights": [1, 2, 3]}',
        '{"mode": "unpaired", "cost_weights": {"a": 1}}',
        "[" * 100_000,
    ],
)
def test_a_config_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"not a run's config\.json"):
        TrainConfig.from_json(text)


def test_unknown_keys_are_named() -> None:
    with pytest.raises(CheckpointError, match="unknown key 'learning_rate'"):
        TrainConfig.from_json('{"mode": "unpaired", "learning_rate": 1}')


def test_modes_say_what_they_draw() -> None:
    draws = {mode: (TrainConfig(mode=mode).unpaired, TrainConfig(mode=mode).paired) for mode in MODES}
    assert draws == {
        "unpaired": (True, False), "paired": (False, True), "mixed": (True, True), "supervised": (False, True),
    }  # fmt: skip


@pytest.mark.parametrize("cuda", [False, True])
def test_defaults_suit_the_machine(cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    config = for_machine("unpaired", raw="a", steps=9)
    started = for_machine("unpaired", raw="a", steps=9, init="run")
    assert started.lr < config.lr
    assert for_machine("paired", init="run", lr=0.01).lr == 0.01
    assert (config.device, config.raw, config.steps) == ("cuda" if cuda else "cpu", "a", 9)
    assert (config.crop, config.batch, config.potential_width) == ((128, 32, 64) if cuda else (64, 8, 16))
    assert for_machine("unpaired", device="cpu").batch == 8, "of a machine with a GPU the processor is meant"


def test_an_empty_value_takes_a_place_away() -> None:
    config = TrainConfig(mode="paired", val="there")
    assert config.with_settings(["val="]).val is None
    with pytest.raises(UsageError, match="--set isp: '' is not a text"):
        config.with_settings(["isp="])


def test_the_run_started_from_is_the_same_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    places = [
        TrainConfig(mode="paired", init=text).with_whole_paths().init
        for text in ("run", "../" + tmp_path.name + "/run")
    ]
    assert places == [str(tmp_path / "run")] * 2
    assert TrainConfig(mode="paired", init="default").with_whole_paths().init == "default"
