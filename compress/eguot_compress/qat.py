"""Quantisation-aware training: a float run becomes a run whose weights were trained with the rounding in place.

Starts from post-training quantisation, so the first step is already close. Weight scales stay; activation ranges
follow the data outwards for the first 60% of the steps and are then frozen; they never shrink, for a few batches hold
less of what is bright than all pictures do. The teacher is the float run itself unless another is given; true
pictures, where known, pull as well, and so does the colour expert at low weight.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from eguot_train.checkpoint import LoadedRun, load_run

from .calibration import load_calibration
from .fake_quant import QuantIsp, quantise_body
from .finetune import FineTune, fine_tune
from .integer_form import float_form, integer_form
from .material import Folders, Material
from .ptq import post_train
from .quant_run import refuse_begun, resumable, save_derived, weights_hash
from .teachers import load_teacher

STEPS = 1500
BATCH = 8
LR = 2e-5
"""Where the float training ended (2% of its rate): faster undoes what a converged network knows (`train/LOG.md`)."""
FREEZE_AT = 0.6
SETTLE_EVERY = 10
KEEP = 0.9
"""Share of the old range kept at each settling."""
COLOUR_SHARE = 0.03
"""The colour expert, at low weight: rounding shows first as a cast."""


def qat(
    run: Path,
    out: Path,
    *,
    folders: Folders | None = None,
    teacher: Path | None = None,
    steps: int = STEPS,
    seed: int = 0,
    resume: bool = False,
) -> Path:
    """Fine-tune the int8 form of `run` into the run folder `out`. Raises UsageError, CheckpointError, EguotError.

    `resume`: go on with what a run of the same arguments left in OUT.unfinished when it was stopped, to the same end.
    """
    run, out, folders = Path(run), Path(out), folders or Folders()
    refuse_begun(out, resume)
    plan = FineTune(steps=steps, lr=LR, label="qat", colour_share=COLOUR_SHARE)
    loaded = load_run(run)
    guide = load_teacher(teacher, loaded) if teacher is not None else loaded
    material = Material(loaded, folders, seed=seed, batch=BATCH, multiple=guide.net.multiple)
    folder, multiple = folders.pairs or folders.raw, loaded.net.multiple
    calibration = load_calibration(loaded.config, folder, seed=seed, multiple=multiple).suited_to(loaded.net)
    net, state = post_train(integer_form(float_form(loaded.net)), calibration.tiles, bits=8)
    body = quantise_body(net, bits=8)
    body.load_state(state)

    starts = {name: quantiser.range() for name, quantiser in body.quantisers().items()}

    def after_step(step: int) -> None:
        if step + 1 < FREEZE_AT * steps and (step + 1) % SETTLE_EVERY == 0:
            body.settle(keep=KEEP, cover=starts)
        elif step + 1 >= FREEZE_AT * steps:
            body.observe(False)

    body.observe(True)
    made_by = _made_by(loaded, guide, plan, seed, material)
    asked = {**made_by, "weights": weights_hash(loaded.net), "guide": weights_hash(guide.net)}
    with resumable(out, asked, resume) as unfinished:
        fine_tune(QuantIsp(body, net.shuffle), material, guide.net, plan, unfinished, after_step)
        config = dataclasses.replace(loaded.config, steps=loaded.step + steps, seed=seed)
        save_derived(unfinished.folder, config, loaded.net, loaded, made_by, (net, body.state()))
    return out


def _made_by(loaded: LoadedRun, guide: LoadedRun, plan: FineTune, seed: int, material: Material) -> dict[str, object]:
    return {
        "command": "qat", "steps": plan.steps, "seed": seed, "from_step": loaded.step, "data": material.hashes,
        "teacher": guide.config.isp if guide is not loaded else "itself",
    }  # fmt: skip
