"""Complete configs by mode, sized to the machine; a recipe is a function that returns a TrainConfig.

On a CPU the defaults keep 3,000 steps of any mode within 25 minutes on two cores; with a GPU they follow
METHOD.md 7 (256-pixel crops, batch 32, the full-width potential), and a supervised run takes the architecture's own
learning rate and batch. Those are for a hundred thousand steps: the short runs on a CPU keep ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .checkpoint import build_isp
from .config import PAIRED_TRANSPORT, Mode, TrainConfig

STARTED_LR = 3e-4
"""Learning rate of a run that starts from another: the full one undoes some of what that has learnt."""


def for_machine(mode: Mode, **fields: Any) -> TrainConfig:
    """Defaults of a mode on this machine; `fields` override single values."""
    if mode == "paired":
        fields = {"transport": PAIRED_TRANSPORT, **fields}
    if fields.get("init") is not None:
        fields = {"lr": STARTED_LR, **fields}
    if torch.cuda.is_available() and fields.get("device") != "cpu":
        gpu: dict[str, Any] = {
            "device": "cuda", "batch": 32, "crop": 128, "potential_width": 64, "potential_reduce": 1,
            "steps": 100_000, "lr": 5e-4, "checkpoint_every": 1000, "val_every": 2000, "sheet_every": 5000,
        }  # fmt: skip
        config = TrainConfig(mode=mode, **{**gpu, **fields})
        if mode == "supervised":
            recipe = build_isp(config.isp).recipe
            config = replace(config, lr=fields.get("lr", recipe.lr), batch=fields.get("batch", recipe.batch))
        return config
    return TrainConfig(mode=mode, **fields)
