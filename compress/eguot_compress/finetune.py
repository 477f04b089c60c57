"""The one loop that quantisation-aware training and distillation share.

The target of a crop is the teacher's rendering (weight 0.7) and, where known, the truth (0.3); without a teacher it
is the truth alone. The teacher counts less where it contradicts itself: a crop and its transpose are the same scene
(the Bayer pattern R Gr Gb B transposes into itself with the greens swapped), so its two renderings should agree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.progress import progress_bar
from eguot_train.cost import low_pass
from eguot_train.losses import pair_loss

from .material import Material

TEACHER_SHARE = 0.7
CONFIDENCE_SCALE = 0.05
LOG_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """How long and how fast. `lr` falls by a cosine to 2% of itself."""

    steps: int
    lr: float
    label: str

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"steps must be at least 1, not {self.steps}")


def fine_tune(
    student: nn.Module,
    material: Material,
    teacher: nn.Module | None,
    plan: FineTune,
    log_path: Path,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Train `student` in place (planes [B, 4, h, w] -> RGB). `after_step(step)` runs after every update.

    Raises UsageError where there is neither teacher nor truth, EguotError when the loss is no longer a number.
    """
    if teacher is None and not material.has_truth:
        raise UsageError("raws alone hold no truth to learn from: give --pairs DIR, or --teacher RUN")
    optimizer = torch.optim.Adam(student.parameters(), plan.lr, betas=(0.9, 0.99))
    student.train()
    with open(log_path, "w", encoding="utf-8") as log, progress_bar(plan.steps, label=plan.label) as bar:
        for step, planes, truth in material.stream(plan.steps):
            cosine = 0.5 * (1 + math.cos(math.pi * step / plan.steps))
            optimizer.param_groups[0]["lr"] = plan.lr * (0.02 + 0.98 * cosine)
            loss = _loss(student(planes), truth, teacher, planes)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise EguotError(f"{plan.label}: the loss is {value} at step {step}; start from another run or seed")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            if after_step is not None:
                after_step(step)
            bar.update(1, note=f"loss {value:.4f}")
            if (step + 1) % LOG_EVERY == 0 or step + 1 == plan.steps:
                log.write(json.dumps({"step": step + 1, "loss": round(value, 6)}) + "\n")
    student.eval()


def _loss(rendered: Tensor, truth: Tensor | None, teacher: nn.Module | None, planes: Tensor) -> Tensor:
    to_truth = pair_loss(rendered, truth).mean() if truth is not None else None
    if teacher is None:
        assert to_truth is not None
        return to_truth
    with torch.no_grad():
        target = teacher(planes).clamp(0, 1)
        weight = confidence(teacher, planes, target)
    to_teacher = (weight * pair_loss(rendered, target)).sum() / weight.sum()
    if to_truth is None:
        return to_teacher
    return TEACHER_SHARE * to_teacher + (1 - TEACHER_SHARE) * to_truth


def confidence(teacher: nn.Module, planes: Tensor, target: Tensor) -> Tensor:
    """[B] in (0, 1]: exp(-|T(x) - T(x transposed) transposed|, low-passed / 0.05)."""
    turned = teacher(transpose_planes(planes)).clamp(0, 1).transpose(2, 3)
    apart = low_pass(target - turned).abs().mean((1, 2, 3))
    return torch.exp(-apart / CONFIDENCE_SCALE)


def transpose_planes(planes: Tensor) -> Tensor:
    """Packed planes of the transposed mosaic: axes swapped, Gr and Gb swapped."""
    return planes.transpose(2, 3)[:, [0, 2, 1, 3]].contiguous()
