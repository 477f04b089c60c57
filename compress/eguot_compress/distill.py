"""Distillation: a small network learns to render what a trained run renders.

The teacher makes every raw a perfectly aligned pair, so the student needs no truth; where truth is known it counts
as well. The student ends as a run like any other: convert it, quantise it, or fine-tune it with `qat --teacher`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from eguot_train.average import update_average
from eguot_train.checkpoint import build_isp, load_run
from eguot_train.isps.base import IspNet

from .finetune import FineTune, fine_tune
from .material import Folders, Material
from .quant_run import refuse_begun, resumable, save_derived, weights_hash

STEPS = 3000
BATCH = 8
LR = 1e-3
EMA = 0.999


def distill(
    teacher: Path,
    out: Path,
    *,
    isp: str,
    folders: Folders | None = None,
    steps: int = STEPS,
    seed: int = 0,
    structure: float = 0.0,
    resume: bool = False,
) -> Path:
    """Train a new `isp` on the renderings of the run `teacher` into the run folder `out`.

    `structure`: weight of the difference of structure features (see `FineTune`); off unless asked for. `resume`: go on
    with what a run of the same arguments left in OUT.unfinished when it was stopped, to the same end.
    Raises UsageError for an unknown architecture, CheckpointError for a teacher that is not a run.
    """
    out = Path(out)
    refuse_begun(out, resume)
    plan = FineTune(steps=steps, lr=LR, label="distill", structure=structure)
    loaded = load_run(Path(teacher))
    loaded.net.requires_grad_(False)
    torch.manual_seed(seed)
    student = build_isp(isp)
    material = Material(loaded, folders or Folders(), seed=seed, batch=BATCH, multiple=student.multiple)
    average, after_step = moving_average(student)
    made_by = {
        "command": "distill", "teacher": loaded.config.isp, "steps": steps, "seed": seed, "data": material.hashes,
    }  # fmt: skip
    asked = {**made_by, "isp": isp, "structure": structure, "weights": weights_hash(loaded.net)}
    with resumable(out, asked, resume) as unfinished:
        fine_tune(student, material, loaded.net, plan, unfinished, after_step, {"average": average})
        config = dataclasses.replace(loaded.config, isp=isp, steps=steps, seed=seed, init=None)
        save_derived(unfinished.folder, config, average, loaded, made_by)
    return out


def moving_average(student: IspNet) -> tuple[IspNet, Callable[[int], None]]:
    """A copy of `student` that follows its weights slowly, and what to call after every step."""
    average = copy.deepcopy(student).requires_grad_(False)
    return average, lambda step: update_average(average, student, step, EMA)
