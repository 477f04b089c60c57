"""The one loop that quantisation-aware training and distillation share.

The target of a crop is the teacher's rendering (weight 0.7) and, where known, the truth (0.3); without a teacher it
is the truth alone. The teacher counts less where it contradicts itself: a crop and its transpose are the same scene
(the Bayer pattern R Gr Gb B transposes into itself with the greens swapped), so its two renderings should agree.
The colour expert may judge renderings beside their targets; like the training loop, its share is that of gradient norms
on the picture, so it does not depend on how large losses are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eguot_sdk.errors import EguotError, UsageError
from eguot_train.checkpoint import load_weights, optimizer_tensors, part, prefixed, restore_optimizer
from eguot_train.cost import low_pass
from eguot_train.experts import ColourExpert, Committee
from eguot_train.experts.structure import structure
from eguot_train.interrupt import finishing_first
from eguot_train.losses import pair_loss
from eguot_train.runlog import LOG_EVERY, RunLog, to_stderr

from .material import Material
from .quant_run import Unfinished

TEACHER_SHARE = 0.7
CONFIDENCE_SCALE = 0.05
EXPERT_WIDTH = 16
EXPERT_STARTS_AT = 0.1
"""Share of the steps that the expert learns before it is heard."""
KEEP_EVERY = 250


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """How long, how fast, and what counts beside pictures. `lr` falls by a cosine to 2% of itself."""

    steps: int
    lr: float
    label: str
    colour_share: float = 0.0
    """Gradient norm of the colour expert's loss on the picture over that of the rest; 0: no expert."""
    structure: float = 0.0
    """Weight of the mean absolute difference of structure features (normalised luma, gradients, coherence)."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"steps must be at least 1, not {self.steps}")


def fine_tune(
    student: nn.Module,
    material: Material,
    teacher: nn.Module | None,
    plan: FineTune,
    unfinished: Unfinished,
    after_step: Callable[[int], None] | None = None,
    beside: Mapping[str, nn.Module] | None = None,
) -> None:
    """Train `student` in place (planes [B, 4, h, w] -> RGB). `after_step(step)` runs after every update.

    Goes on from what `unfinished` keeps, and keeps there every KEEP_EVERY steps and at Ctrl-C: the student, the
    networks `beside` it, optimiser and expert. Raises UsageError where there is neither teacher nor truth, EguotError
    when the loss is no longer a number.
    """
    if teacher is None and not material.has_truth:
        raise UsageError("raws alone hold no truth to learn from: give --pairs DIR, or --teacher RUN")
    optimizer = torch.optim.Adam(student.parameters(), plan.lr, betas=(0.9, 0.99))
    student.train()
    committee = _colour_committee(plan.colour_share, material.seed) if plan.colour_share > 0 else None
    modules = {"student": student, **(beside or {})}
    start, tensors = unfinished.kept()
    if tensors:
        for name, module in modules.items():
            load_weights(module, part(name, tensors), unfinished.folder.name)
        restore_optimizer(optimizer, part("optimizer", tensors))
        if committee is not None:
            committee.restore(part("committee", tensors))
        to_stderr(f"going on from step {start} of {plan.steps}")

    def keep(done: int) -> None:
        found = {**prefixed("optimizer", optimizer_tensors(optimizer))}
        for name, module in modules.items():
            found |= prefixed(name, module.state_dict())
        if committee is not None:
            found |= prefixed("committee", committee.tensors())
        unfinished.keep(done, found)

    log = RunLog(unfinished.folder, start, plan.steps, to_stderr)
    with closing(log), finishing_first(to_stderr, f"the next {LOG_EVERY} steps") as asked_to_stop:
        for step, planes, truth in material.stream(plan.steps, start):
            cosine = 0.5 * (1 + math.cos(math.pi * step / plan.steps))
            optimizer.param_groups[0]["lr"] = plan.lr * (0.02 + 0.98 * cosine)
            rendered = student(planes)
            loss, target = _loss(rendered, truth, teacher, planes, plan.structure)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise EguotError(f"{plan.label}: the loss is {value} at step {step}; start from another run or seed")
            optimizer.zero_grad(set_to_none=True)
            if committee is None:
                loss.backward()
            else:
                committee.step(target, rendered.detach().clamp(0, 1))
                heard = plan.colour_share if step >= EXPERT_STARTS_AT * plan.steps else 0.0
                rendered.backward(_with_expert(loss, rendered, target, committee, heard))
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            if after_step is not None:
                after_step(step)
            done = step + 1
            log.add(done, {"loss": value})
            if done % LOG_EVERY or done == plan.steps:  # ranges that are learnt on the way are settled at these alone
                continue
            if done % KEEP_EVERY == 0 or asked_to_stop():
                log.flush()
                keep(done)
            if asked_to_stop():
                told_how = f"stopped after step {done} of {plan.steps}; go on with --resume"
                to_stderr(told_how)
                raise KeyboardInterrupt(told_how)
    student.eval()


def _colour_committee(share: float, seed: int) -> Committee:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return Committee([ColourExpert(EXPERT_WIDTH)], [share])


def _loss(
    rendered: Tensor, truth: Tensor | None, teacher: nn.Module | None, planes: Tensor, structure_weight: float
) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and the pictures it pulls to: the truth where known, else the teacher's."""

    def distance(target: Tensor) -> Tensor:
        found = pair_loss(rendered, target)
        if structure_weight > 0:
            found = found + structure_weight * (structure(rendered) - structure(target)).abs().mean((1, 2, 3))
        return found

    to_truth = distance(truth).mean() if truth is not None else None
    if teacher is None:
        assert to_truth is not None
        assert truth is not None
        return to_truth, truth
    with torch.no_grad():
        target = teacher(planes).clamp(0, 1)
        weight = confidence(teacher, planes, target)
    to_teacher = (weight * distance(target)).sum() / weight.sum()
    if to_truth is None or truth is None:
        return to_teacher, target
    return TEACHER_SHARE * to_teacher + (1 - TEACHER_SHARE) * to_truth, truth


def _with_expert(loss: Tensor, rendered: Tensor, target: Tensor, committee: Committee, share: float) -> Tensor:
    """Gradient of the loss on the picture, plus the expert's at `share` of its norm."""
    (gradient,) = torch.autograd.grad(loss, rendered, retain_graph=True)
    if share == 0:
        return gradient
    (judged,) = committee.losses(rendered, target).values()
    (other,) = torch.autograd.grad(judged, rendered, retain_graph=True)
    return gradient + share * gradient.norm() / other.norm().clamp(min=1e-12) * other


def confidence(teacher: nn.Module, planes: Tensor, target: Tensor) -> Tensor:
    """[B] in (0, 1]: exp(-|T(x) - T(x transposed) transposed|, low-passed / 0.05)."""
    turned = teacher(transpose_planes(planes)).clamp(0, 1).transpose(2, 3)
    apart = low_pass(target - turned).abs().mean((1, 2, 3))
    return torch.exp(-apart / CONFIDENCE_SCALE)


def transpose_planes(planes: Tensor) -> Tensor:
    """Packed planes of the transposed mosaic: axes swapped, Gr and Gb swapped."""
    return planes.transpose(2, 3)[:, [0, 2, 1, 3]].contiguous()
