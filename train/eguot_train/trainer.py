"""The training loop: one function from a config to a run folder, read top to bottom.

Each step: the potential, then the experts, see renderings T(x) and targets y (METHOD.md 1.2, 3); then the network takes
one step on fidelity (pairs, or pseudo-pairs weighted by w(y)) plus transport c(x, T(x)) - v(T(x)) plus the experts'
losses. Terms are balanced by the norm of their gradient on the rendered picture, so `transport` and `omega` are
shares and not weights to be tuned per data set.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eguot_sdk.errors import CheckpointError, EguotError, OutputError, UsageError
from eguot_sdk.metrics import psnr
from eguot_sdk.pairs import PairLike
from eguot_sdk.paths import kind_of

from . import ranks
from .average import update_average
from .checkpoint import (
    build_isp,
    checkpoints,
    load_run,
    load_weights,
    named_run,
    optimizer_tensors,
    part,
    prefixed,
    read_checkpoint,
    read_config,
    restore_optimizer,
    save_checkpoint,
    write_file,
)
from .config import DATA, EXPERTS, PAIRED_TRANSPORT, TrainConfig
from .data.batches import Batch, Batches, HeldPair, Sources, load_sources, share_of
from .data.crops import middle
from .evaluate import pairs_to_score
from .experts import ColourExpert, Committee, Expert, FrequencyExpert, StructureExpert
from .fits import Fixed, align, fit_fixed, fixed_from_state
from .health import Health, TrainingDiverged, check_finite
from .interrupt import finishing_first
from .isps import ISPS, IspNet, Recipe
from .losses import pair_loss
from .outliers import PhotoWeights
from .potential import Potential, gradient_penalty
from .psi import Psi
from .reference import Reference
from .render import reference_render, render_frame
from .runlog import NoLog, RunLog, to_stderr
from .sheet import captioned, save_sheet

NORM_DECAY = 0.98
WEIGHT_LIMITS = (1e-4, 100.0)
JOB = "torchrun"
"""File of a run that torchrun started: which."""
RAMP = 20
"""Steps over which the network's rate rises in a run that starts from another one."""
UNLED = 0.03
"""Factor on the network's rate once transport and experts alone lead it: Adam moves at the full rate however little
they have to say, and a network that outruns the potential loses the picture (`train/LOG.md`, 2026-11-28)."""
LINEAR_PULL = 1e-3
"""Weight of (E v)^2 where both divergences are linear, which leaves v's constant free."""


@dataclass(slots=True)
class Judged:
    """What the potential and the experts see in one step; nothing of it carries a gradient."""

    fake: Tensor
    """Renderings [B, 3, H, W] of unpaired raws, then of the pairs' raws."""
    fake_reference: Tensor
    cost: Tensor
    """Of each rendering [B], in units of the divergence."""
    real: Tensor
    """Targets, then the pairs' truths."""
    real_reference: Tensor | None
    """Reference renderings of the raws that the reals came from, or would have."""


def train(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    own_experts: Sequence[tuple[Expert, float]] = (),
    echo: Callable[[str], None] | None = None,
) -> Path:
    """Train as `config` says into the run folder `out`, and return it.

    `resume` continues the run in `out` from its last checkpoint, with the settings of `config` from there on (see
    KEPT for those that cannot change). `own_experts` join the committee, each with its share (see `experts.base`); give
    them again to resume. Under torchrun every process calls this with the same arguments, and rank 0 writes; processes
    that torchrun starts again resume by themselves. Raises UsageError when `out` exists and `resume` is not given,
    TrainingDiverged when a health gate trips, OutputError where the disk is full.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("this PyTorch finds no CUDA GPU here: --set device=cpu, or install a build with CUDA")
    with ranks.joined(torch.device(config.device)) as device:
        try:
            return _train(config, Path(out), resume, own_experts, echo or to_stderr, device)
        except RuntimeError as error:
            if ranks.world() == 1 or not _of_a_dead_peer(error):
                raise
            raise EguotError(
                "another process of this run ended, and so does this one: what it said stands above or on its machine; "
                f"{_on(Path(out))}"
            ) from error
        except OSError as error:
            raise OutputError(f"training into {out} stopped ({error}); mend that, and {_on(Path(out))}") from error


def _on(out: Path) -> str:
    return "go on with --resume" if (out / "config.json").is_file() else "start again"


def _of_a_dead_peer(error: RuntimeError) -> bool:
    """Whether a collective failed: gloo says so in words, NCCL by the kind of its error."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _train(
    config: TrainConfig,
    out: Path,
    resume: bool,
    own_experts: Sequence[tuple[Expert, float]],
    echo: Callable[[str], None],
    device: torch.device,
) -> Path:
    first, warn = ranks.rank() == 0, echo
    if not first:
        echo = _silent
    multiple = build_isp(config.isp).multiple
    if config.crop % multiple:
        raise UsageError(f"{config.isp} takes crops that are multiples of {multiple}, not {config.crop}: --set crop")
    share_of(config, ranks.world())
    if config.mode == "supervised" and own_experts:
        raise UsageError("supervised training has no experts: leave out own_experts, or train paired")
    # A restart goes on with what its own job began, and with nothing that a first start was refused.
    # All decide alike: --resume may be given on one machine only, and restarts are counted by each for itself.
    resume = ranks.any_of(resume) or (
        ranks.any_of(ranks.restarted()) and ranks.from_first(lambda: _begun_by(out) == ranks.job())
    )
    start, tensors, state = _open_run(config, out, resume, echo)
    ranks.wait()  # all have looked before rank 0 makes the folder
    ended = start > config.steps or (start == config.steps and ranks.from_first(lambda: _sheet(out, start).exists()))
    if ended:
        echo(f"{out.name}: already trained {start} steps, nothing to do")
        return out
    judges = pairs_to_score(config.val)[0] if config.val else []
    started = load_init(config) if config.init is not None and not tensors else None
    sources = load_sources(config, show=echo is to_stderr)
    echo(_counts(sources))
    for line in sources.notes:
        echo(line)
    for line in sources.skipped:
        echo(f"skipped {line}")
    if state and state["data"] != sources.hashes:
        raise UsageError(f"{out.name}: its data folders have changed since it started; restore them or start a new run")

    asked, config = config, with_pairs(config, sources)
    torch.manual_seed(config.seed)
    net, ema, potential = (
        build_isp(config.isp),
        build_isp(config.isp),
        Potential(config.potential_width, config.potential_reduce),
    )
    if started is not None:
        load_weights(net, started, str(config.init))
    ema.load_state_dict(net.state_dict())
    if not state and config.unpaired:
        echo("aligning the reference rendering with the photos")
    fixed = fixed_from_state(config, state) if state else ranks.from_first(lambda: fit_fixed(config, sources))
    norms: dict[str, float] = dict(state.get("norms", {}))
    photo_weights = PhotoWeights(sources.photo_names, fixed.typical)
    if state:
        photo_weights.restore(state["photo_weights"])
    committee = build_committee(config, own_experts)
    # Experts and networks of one's own may be made before the seed, or draw from elsewhere.
    ranks.equalise(net, ema, potential, *([] if committee is None else [committee]))
    for module in (net, ema, potential):
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload] # torch types leave it out
    ema.eval().requires_grad_(False)
    opt_net = _net_optimizer(config, net)
    opt_potential = torch.optim.Adam(potential.parameters(), config.lr_potential, betas=(0.5, 0.9))
    if committee is not None:
        committee.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if tensors:
        for name, module in (("net", net), ("ema", ema), ("potential", potential)):
            load_weights(module, part(name, tensors), "checkpoint")
        restore_optimizer(opt_net, part("opt_net", tensors))
        restore_optimizer(opt_potential, part("opt_potential", tensors))
        kept = part("committee", tensors)
        if committee is not None:
            committee.restore(kept)
        elif kept:
            raise CheckpointError(f"{out.name} was trained with experts of your own: give them again as own_experts")

    def keep(done: int) -> None:
        save_checkpoint(
            out,
            done,
            {
                **prefixed("net", net.state_dict()),
                **prefixed("ema", ema.state_dict()),
                **prefixed("potential", potential.state_dict()),
                **prefixed("opt_net", optimizer_tensors(opt_net)),
                **prefixed("opt_potential", optimizer_tensors(opt_potential)),
                **prefixed("committee", committee.tensors() if committee is not None else {}),
            },
            _state(fixed, norms, sources, photo_weights),
        )

    said: set[str] = set()

    def tell_once(line: str) -> None:
        if line not in said:
            said.add(line)
            warn(line)

    def look(done: int, log: RunLog | NoLog) -> None:
        """Validate and draw where it is time to."""
        if config.val and (done % config.val_every == 0 or done == config.steps):
            score = validate(ema, judges, config, tell_once)
            if score is not None and not log.has(done, "val_psnr_db"):
                log.write(done, {"val_psnr_db": score})
                log.flush()
        if done % config.sheet_every == 0 or done == config.steps:
            if config.unpaired and "srgb" not in sources.streamed:
                photo_weights.save(out, sources.photos)
            save_sheet(_sheet(out, done), sheet_rows(config, sources, ema, reference))

    run_net, run_potential = Passes(net, config, device), Passes(potential, config, device)
    reference = Reference(fixed.alignment)
    psi_source, psi_target = Psi(config.psi_source, config.alpha), Psi(config.psi_target, config.alpha)
    batches = Batches(
        config,
        sources,
        fixed.alignment,
        photo_weights=fixed.typical,
        rank=ranks.rank(),
        world=ranks.world(),
        experts=committee is not None,
        show=echo is to_stderr,
    )
    if first:  # only now, so that a run that cannot start leaves no folder in the way of the next try
        config_text = asked.with_whole_paths().to_json()
        if resume:
            write_file(out / "config.json", config_text.encode())
        else:
            _claim(out, config_text)
        if job := ranks.job():
            write_file(out / JOB, job.encode())
    led = config.paired or config.pseudo > 0 or bool(sources.pairs)
    if not led and config.transport == 0 and committee is None:
        echo("pseudo-pairs, transport and experts are off: the network learns the reference rendering R(x) and no more")
    health = Health(echo, balanced=config.psi_target == "linear")
    told = len(batches.skipped())
    with (
        closing(RunLog(out, start, config.steps, echo) if first else NoLog()) as log,
        finishing_first(echo) as asked_to_stop,
    ):
        refit = round(config.refit * config.steps) if config.unpaired and config.transport > 0 else 0
        for step, batch in batches.stream(start, config.steps, pause=refit):
            batch = _to(batch, device)
            _set_rates(config, step, led, opt_net, opt_potential, committee)
            alpha = _alpha(config, step)
            psi_source, psi_target = replace(psi_source, alpha=alpha), replace(psi_target, alpha=alpha)
            logged: dict[str, Any] = {}
            weights, say = None, 1.0
            try:
                if config.mode != "supervised" and (config.transport > 0 or committee is not None):
                    judged = _judged(config, batch, run_net, reference, fixed)
                    if config.transport > 0:
                        weights, say = _potential_step(
                            config, step, judged, run_potential, opt_potential, psi_source, psi_target, logged
                        )
                        if batch.target_index:
                            seen = torch.tensor(batch.target_index, device=device)
                            photo_weights.update(ranks.gathered(seen).tolist(), ranks.gathered(weights[: len(seen)]))
                        weights = weights / ranks.mean(weights.mean()).clamp(min=1e-6)
                    if committee is not None:
                        shown = (judged.real, judged.fake, judged.real_reference, judged.fake_reference)
                        logged.update(committee.step(*shown, weights, step=step))
                _map_step(
                    config, step, batch, run_net, run_potential, committee, opt_net, reference, fixed, norms, weights,
                    say, logged,
                )  # fmt: skip
                logged = ranks.mean_of(logged, device)
                health.check(logged, step)
            except TrainingDiverged as stop:
                log.flush()
                if first and not checkpoints(out) and _all_finite(net, potential, committee):
                    keep(step)
                raise TrainingDiverged(f"{stop}{_way_on(out)}") from None
            update_average(ema, net, step, config.ema)

            done = step + 1
            log.add(done, logged)
            for line in batches.skipped()[told:]:
                warn(f"skipped {line}")
                told += 1
            if done == refit:
                fixed.alignment = ranks.from_first(lambda: align(config, sources, photo_weights.means))
                reference = Reference(fixed.alignment)
                batches.realign(fixed.alignment)
            leaving = asked_to_stop() and done < config.steps
            # First of all: what comes after takes long where pictures are large, and may fail.
            if first and (done % config.checkpoint_every == 0 or done == config.steps or leaving):
                log.flush()
                keep(done)
            if leaving:
                ranks.wait()  # whoever ends first, torchrun kills the others
                told_how = f"stopped after step {done} of {config.steps}; go on with --resume"
                echo(told_how)
                raise KeyboardInterrupt(told_how)
            if first:
                look(done, log)
        if first and start == config.steps:
            echo(f"{out.name}: trained {start} steps, but stopped before its last sheet: drawing it")
            look(config.steps, log)
    return out


KEPT = (
    "mode", "isp", "color_input", "init", "seed", "crop", "potential_width", "potential_reduce", "experts",
    "experts_width", "weighted_alignment", "refit", "find_pairs", "register_pairs", "window", "reuse",
)  # fmt: skip
"""Settings that a resumed run cannot change: its networks, its fits or its place in the data depend on them."""
ELSEWHERE = ("raw", "srgb", "pairs")
"""Folders may have moved: what is in them is compared by hash."""


def _open_run(
    config: TrainConfig, out: Path, resume: bool, echo: Callable[[str], None]
) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """Where to start: first step, checkpoint tensors and state. Writes nothing; tells what a resumed run changes."""
    if not resume:
        _check_place(config, out)
        return 0, {}, {}
    if not out.exists():
        raise CheckpointError(f"{out} does not exist, so there is nothing to resume: start it without --resume")
    saved = read_config(out)
    if saved.mode != config.mode:
        raise UsageError(f"{out.name} was started as {saved.mode} and cannot be resumed as {config.mode}")
    found = checkpoints(out)
    if not found:
        return 0, {}, {}
    tensors, state = read_checkpoint(found[-1])
    if not {"fixed", "norms", "data", "photo_weights"} <= set(state):
        raise CheckpointError(f"{out.name} holds a network that `train` did not leave there, so it cannot be resumed")
    saved, config = saved.with_whole_paths(), config.with_whole_paths()
    going_on = state["step"] < config.steps
    changes = {f.name: (getattr(saved, f.name), getattr(config, f.name)) for f in fields(config)}
    for key, (before, now) in changes.items():
        if before != now and key in KEPT:
            raise UsageError(f"{out.name} was started with {key}={before}, which cannot become {now}: start a new run")
    if going_on:
        for key, (before, now) in changes.items():
            if before != now and key not in ELSEWHERE:
                echo(f"{out.name}: {key} is {now} from step {state['step']} on (was {before})")
        echo(f"{out.name}: going on from step {state['step']} of {config.steps}")
    return int(state["step"]), tensors, state


def _check_place(config: TrainConfig, out: Path) -> None:
    """Raises where a run cannot be made at `out`, before the minutes that reading data takes."""
    kind = kind_of(out, OutputError)
    if (kind is None and os.path.lexists(out)) or kind == "file" or (kind == "folder" and any(out.iterdir())):
        run = (out / "config.json").is_file()
        raise UsageError(
            f"{out} already exists: choose another --out" + (", or continue it with --resume" if run else "")
        )
    for role in DATA:
        data = getattr(config, role)
        if data is not None and out.resolve().is_relative_to(Path(data).resolve()):
            raise UsageError(f"{out} lies in --{role} {data}, where its pictures would be data: choose another --out")
    above = next(p for p in (out.absolute(), *out.absolute().parents) if os.path.lexists(p))
    if kind_of(above, OutputError) != "folder" or not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"{out} cannot be made: {above} is no folder that may be written to; choose another --out")


def _sheet(out: Path, done: int) -> Path:
    return out / "sheets" / f"{done:06d}.jpg"


def _claim(out: Path, config_text: str) -> None:
    """Make the folder of a new run and its config.json. Of two that start at once, the second is refused."""
    place = out / "config.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise FileExistsError
        file = place.open("x", encoding="utf-8")  # the second of two fails here, if not before
    except FileExistsError:
        raise UsageError(f"{out} already exists: another run was started into it; choose another --out") from None
    try:
        with file:
            file.write(config_text)
    except BaseException:
        place.unlink()
        raise


def _begun_by(out: Path) -> str | None:
    """The torchrun that began or resumed the run in `out`; None: there is no run, or none of torchrun's."""
    try:
        return (out / JOB).read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _way_on(out: Path) -> str:
    """What to do after a stop, as the end of its message."""
    found = checkpoints(out)
    if not found:
        return "; start again with --set KEY=VALUE"
    back = f" (to go back further, remove {found[-1].name})" if len(found) > 1 else ""
    return f"; go on from step {int(found[-1].stem)} with --resume --set KEY=VALUE{back}"


def _all_finite(*modules: torch.nn.Module | None) -> bool:
    return all(bool(torch.isfinite(p).all()) for module in modules if module for p in module.parameters())


class Passes:
    """A network's passes at the precision of the run, compiled if asked for: pictures in, float32 out.

    `exact` is the network itself, for penalties: they are taken in float32, and need the second derivative that a
    compiled network does not give.
    """

    def __init__(self, module: torch.nn.Module, config: TrainConfig, device: torch.device) -> None:
        self.exact = module
        self._run = torch.compile(module) if config.compile else module
        self._bf16, self._device = config.precision == "bf16", device.type

    def __call__(self, x: Tensor) -> Tensor:
        with torch.autocast(self._device, torch.bfloat16, enabled=self._bf16):
            out: Tensor = self._run(x)
        return out.float()


def _counts(sources: Sources) -> str:
    """How much there is to train on, for a person. Of what is streamed only the first window is known."""
    given = [pair for pair in sources.pairs if not (isinstance(pair, HeldPair) and pair.found)]  # the others are told
    found = (("raw", "raws", sources.frames), ("srgb", "photos", sources.photos), ("pairs", "pairs", given))
    return ", ".join(
        f"{name} read on the way" if role in sources.streamed else f"{len(items)} {name}"
        for role, name, items in found
        if items or role in sources.streamed
    )


def load_init(config: TrainConfig) -> dict[str, Tensor]:
    """EMA weights of the run named by `config.init`, checked to be of the same architecture and colour input."""
    run = load_run(named_run(Path(str(config.init))))
    if (run.config.isp, run.config.color_input) != (config.isp, config.color_input):
        own = run.config.isp not in ISPS  # whose code runs only where it is named
        way_out = f"give --isp {run.config.isp} and no" if own else "leave out --isp and"
        way_out += " --set color_input"
        raise UsageError(
            f"--init {config.init} is {run.config.isp} on {run.config.color_input} input, "
            f"this run is {config.isp} on {config.color_input}: {way_out}"
        )
    return dict(run.net.state_dict())


def with_pairs(config: TrainConfig, sources: Sources) -> TrainConfig:
    """An unpaired or mixed run's weights, given how many of its raws have pairs, its own or found ones.

    Pseudo-pairs and transport stand in for pairs: the first fade to nothing and the second to a paired run's share as
    the pairs approach the number of raws. Of streams the numbers are not known, and nothing changes.
    """
    if not (config.unpaired and sources.pairs) or sources.streamed:
        return config
    covered = min(1.0, len(sources.pairs) / len(sources.frames))
    least = min(config.transport, PAIRED_TRANSPORT)
    return replace(
        config,
        pseudo=config.pseudo * (1 - covered),
        transport=config.transport * (1 - covered) + least * covered,
    )


def _state(fixed: Fixed, norms: dict[str, float], sources: Sources, photo_weights: PhotoWeights) -> dict[str, Any]:
    return {
        "photo_weights": photo_weights.state(),
        "norms": norms,
        "data": sources.hashes,
        "fixed": fixed.state(),
    }


def build_committee(config: TrainConfig, own: Sequence[tuple[Expert, float]] = ()) -> Committee | None:
    """The experts that `config` names, then one's own with their shares; None without any, and in supervised mode."""
    if config.mode == "supervised" or not (config.experts or own):
        return None
    shipped = {"colour": ColourExpert, "structure": StructureExpert, "frequency": FrequencyExpert}
    experts = [shipped[name](config.experts_width) for name in config.experts]
    shares = [config.omega[EXPERTS.index(name)] for name in config.experts]
    return Committee(
        [*experts, *(e for e, _ in own)], [*shares, *(share for _, share in own)],
        lr=config.lr_experts, parts=config.accumulate, bf16=config.precision == "bf16",
    )  # fmt: skip


@torch.no_grad()
def _judged(config: TrainConfig, batch: Batch, net: Passes, reference: Reference, fixed: Fixed) -> Judged:
    """Render the batch's raws, and put reals and references beside them."""
    fakes, references, costs, reals, real_references = [], [], [], [], []
    if batch.raw_v is not None and batch.target is not None:
        fakes.append(_rendered(net, batch.raw_v, config.accumulate))
        references.append(reference(batch.raw_v))
        costs.append(fixed.cost(references[-1], fakes[-1]))
        reals.append(batch.target)
        if batch.pseudo is not None:
            real_references.append(reference(batch.pseudo))
    if batch.pair_raw is not None and batch.pair_truth is not None:
        fakes.append(_rendered(net, batch.pair_raw, config.accumulate))
        references.append(reference(batch.pair_raw))
        seen = matched(fakes[-1], batch)
        costs.append(config.cost_strength / fixed.pair_scale * pair_loss(seen, batch.pair_truth))
        reals.append(batch.pair_truth)
        real_references.append(references[-1])
    whole = len(real_references) == len(reals)
    return Judged(
        torch.cat(fakes), torch.cat(references), torch.cat(costs), torch.cat(reals),
        torch.cat(real_references) if whole else None,
    )  # fmt: skip


def matched(rendered: Tensor, batch: Batch) -> Tensor:
    """Renderings of the pairs, replaced by the truth where the two are known not to match: no error, no gradient."""
    if batch.pair_mask is None or batch.pair_truth is None:
        return rendered
    return torch.where(batch.pair_mask > 0.5, rendered, batch.pair_truth)


@torch.no_grad()
def _rendered(net: Passes, planes: Tensor, parts: int) -> Tensor:
    return net(planes) if parts == 1 else torch.cat([net(x) for x in planes.chunk(parts)])


def _potential_step(
    config: TrainConfig,
    step: int,
    judged: Judged,
    potential: Passes,
    optimizer: torch.optim.Optimizer,
    psi_source: Psi,
    psi_target: Psi,
    logged: dict[str, Any],
) -> tuple[Tensor, float]:
    """One step of v on fakes and reals; returns the targets' outlier weights w(y), and v's say (see `_terms`)."""
    parameters = list(potential.exact.parameters())
    optimizer.zero_grad(set_to_none=True)
    parts = config.accumulate
    losses, fakes, reals = [], [], []
    for fake, cost, real in zip(*(x.chunk(parts) for x in (judged.fake, judged.cost, judged.real)), strict=True):
        v_fake, v_real = potential(fake), potential(real)
        loss = psi_source.star(v_fake - cost).mean() + psi_target.star(-v_real).mean()
        if psi_source.family == psi_target.family == "linear":
            level = torch.cat([v_fake, v_real]).mean()
            whole = ranks.mean(level.detach())  # the square of the mean over all ranks, and its gradient
            loss = loss + LINEAR_PULL * whole * (2 * level - whole)
        if config.r1 > 0 and step % config.r1_every == 0:
            # At renderings too: the source side is linear, and nothing else would hold v there.
            slope = gradient_penalty(potential.exact, real) + gradient_penalty(potential.exact, fake)
            loss = loss + config.r1_every * config.r1 / 2 * slope
        (loss / parts).backward()
        losses.append(loss.detach())
        fakes.append(v_fake.detach())
        reals.append(v_real.detach())
    ranks.average_gradients(parameters)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
    loss_v, fake_v, real_v = torch.stack(losses).mean(), torch.cat(fakes), torch.cat(reals)
    check_finite({"loss_v": float(loss_v), "gradient of the potential": norm}, step)
    optimizer.step()
    # Renderings cannot be worth less than photos by more than unrelated content costs, unless v knows them by heart:
    # then all photos lie high, and how high says little of the single one.
    gap = float(ranks.mean(real_v.mean() - fake_v.mean()).abs())
    say = min(1.0, config.cost_strength / max(gap, 1e-6))
    weights = 1 + say * (psi_target.dstar(-real_v) - 1)
    logged.update(
        say=say,
        loss_v=float(loss_v), v_fake=float(fake_v.mean()), v_real=float(real_v.mean()),
        cost=float(judged.cost.mean()), w_mean=float(weights.mean()), w_min=float(ranks.gathered(weights).min()),
    )  # fmt: skip
    return weights, say


def _map_step(
    config: TrainConfig,
    step: int,
    batch: Batch,
    net: Passes,
    potential: Passes,
    committee: Committee | None,
    optimizer: torch.optim.Optimizer,
    reference: Reference,
    fixed: Fixed,
    norms: dict[str, float],
    weights: Tensor | None,
    say: float,
    logged: dict[str, Any],
) -> None:
    """One step of the network on fidelity, transport and the experts' losses.

    All renderings come from one forward pass; every term's gradient is taken on the picture, the terms are
    balanced there by their norms over the whole batch, and the sum goes back through the network once. Of micro-batches
    only the pictures and their gradients are kept, so the network passes over them a second time for that.
    """
    parts = batch.split(config.accumulate)
    kept: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []  # inputs, renderings, gradient by term
    losses: dict[str, float] = {}
    shares: dict[str, float] = {}
    for micro, micro_weights in zip(parts, _split_weights(weights, batch, config.accumulate), strict=True):
        inputs = [x for x in (micro.raw_t, _pseudo(config, micro), micro.pair_raw) if x is not None]
        with torch.set_grad_enabled(len(parts) == 1):
            rendered = net(torch.cat(inputs))
        leaf = rendered.detach().requires_grad_(True)
        terms = _terms(config, step, micro, leaf, net, potential, committee, reference, fixed, micro_weights, say)
        gradients = {}
        for name, loss, share in terms:
            (gradients[name],) = torch.autograd.grad(loss, leaf)
            losses[name] = losses.get(name, 0.0) + float(loss.detach()) / len(parts)
            shares[name] = share
        kept.append((torch.cat(inputs), rendered, gradients))

    names = list(shares)
    squares = torch.stack([torch.stack([g[name].square().sum() for _, _, g in kept]).sum() for name in names])
    now = ranks.total(squares).sqrt().tolist()
    logged.update({f"loss_{name}": loss for name, loss in losses.items()})
    # Before the running norms take them up, which a resumed run goes on with.
    check_finite({**logged, **{f"gradient of {name}": norm for name, norm in zip(names, now, strict=True)}}, step)
    for name, norm in zip(names, now, strict=True):
        norm /= len(parts) * ranks.world()  # of the mean over the batch, whose parts each took their own mean
        norms[name] = norm if name not in norms else NORM_DECAY * norms[name] + (1 - NORM_DECAY) * norm
    factors = dict.fromkeys(names, 1.0)
    for name in names[1:]:
        factor = shares[name] * norms[names[0]] / max(norms[name], 1e-12)
        factors[name] = min(max(factor, WEIGHT_LIMITS[0]), WEIGHT_LIMITS[1])

    optimizer.zero_grad(set_to_none=True)
    for planes, rendered, gradients in kept:
        total = torch.zeros_like(rendered)
        for name, gradient in gradients.items():
            total += gradient * (factors[name] / len(parts))
        (rendered if len(parts) == 1 else net(planes)).backward(total)
    parameters = list(net.exact.parameters())
    ranks.average_gradients(parameters)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
    check_finite({"gradient of the network": norm}, step)
    optimizer.step()


def _pseudo(config: TrainConfig, batch: Batch) -> Tensor | None:
    """The pseudo-raws that the network renders: none where the term is off and only experts need them."""
    return batch.pseudo if config.pseudo > 0 else None


def _split_weights(weights: Tensor | None, batch: Batch, parts: int) -> list[Tensor | None]:
    """Weights of a batch's targets, then of its pairs' truths, by micro-batch in the same order."""
    if weights is None or parts == 1:
        return [weights] * parts
    kinds = [len(x) for x in (batch.target, batch.pair_truth) if x is not None]
    split = [kind.chunk(parts) for kind in weights.split(kinds)]
    return [torch.cat(pieces) for pieces in zip(*split, strict=True)]


def _terms(
    config: TrainConfig,
    step: int,
    batch: Batch,
    leaf: Tensor,
    net: Passes,
    potential: Passes,
    committee: Committee | None,
    reference: Reference,
    fixed: Fixed,
    weights: Tensor | None,
    say: float,
) -> list[tuple[str, Tensor, float]]:
    """The loss terms on renderings `leaf`: name, loss, share of the first term's gradient norm.

    `say`: factor on the transport's share, below 1 where the potential has learnt the photos by heart.
    """
    pseudo = _pseudo(config, batch)
    pieces = iter(leaf.split([len(x) for x in (batch.raw_t, pseudo, batch.pair_raw) if x is not None]))
    t_raw = next(pieces) if batch.raw_t is not None else None
    t_pseudo = next(pieces) if pseudo is not None else None
    t_pair = next(pieces) if batch.pair_raw is not None else None

    terms: list[tuple[str, Tensor, float]] = []
    fidelity = leaf.new_zeros(())
    if t_pair is not None and batch.pair_truth is not None:
        seen = matched(t_pair, batch)
        if config.mode == "supervised":
            assert isinstance(net.exact, IspNet)
            fidelity = fidelity + net.exact.original_loss(seen, batch.pair_truth).mean()
        else:
            weight = 1.0 if weights is None else weights[-len(t_pair) :]
            fidelity = fidelity + (weight * pair_loss(seen, batch.pair_truth)).mean()
    if t_pseudo is not None and batch.target is not None:
        weight = 1.0 if weights is None else weights[: len(t_pseudo)]
        fidelity = fidelity + config.pseudo * (weight * pair_loss(t_pseudo, batch.target)).mean()
    if fidelity.requires_grad:
        terms.append(("fidelity", fidelity, 1.0))
    if step >= config.warmup * config.steps and weights is not None:
        transport = leaf.new_zeros(())
        if t_raw is not None and batch.raw_t is not None:
            cost = fixed.cost(reference(batch.raw_t), t_raw)
            transport = transport + (cost - potential(t_raw)).mean()
        if t_pair is not None:
            transport = transport - potential(t_pair).mean()
        terms.append(("transport", transport, say * config.transport))
    elif t_raw is not None and not terms:  # no fidelity term yet: start from the reference rendering
        assert batch.raw_t is not None
        terms.append(("warmup", (t_raw - reference(batch.raw_t)).abs().mean(), 1.0))
    if committee is not None and (beta := _beta(step / config.steps)) > 0:
        for name, loss in _expert_losses(batch, committee, t_raw, t_pair, reference, weights).items():
            terms.append((name, loss, beta * committee.omega[name]))
    return terms


def _expert_losses(
    batch: Batch,
    committee: Committee,
    t_raw: Tensor | None,
    t_pair: Tensor | None,
    reference: Reference,
    weights: Tensor | None,
) -> dict[str, Tensor]:
    """Losses of the renderings against this step's reals, in the order of `Judged`."""
    fakes, references, reals, real_references = [], [], [], []
    if t_raw is not None and batch.raw_t is not None and batch.target is not None and batch.pseudo is not None:
        fakes.append(t_raw)
        references.append(reference(batch.raw_t))
        reals.append(batch.target)
        real_references.append(reference(batch.pseudo))
    if t_pair is not None and batch.pair_raw is not None and batch.pair_truth is not None:
        fakes.append(t_pair)
        references.append(reference(batch.pair_raw))
        reals.append(batch.pair_truth)
        real_references.append(references[-1])
    return committee.losses(
        torch.cat(fakes), torch.cat(reals), torch.cat(references), torch.cat(real_references), weights
    )


def _beta(progress: float) -> float:
    """Strength of the experts over the run: 0 for 5%, linear to 1 at 20%, from 80% down to a quarter."""
    rise, fall = (progress - 0.05) / 0.15, (progress - 0.8) / 0.2
    return min(max(rise, 0.0), 1.0) * (1 - 0.75 * min(max(fall, 0.0), 1.0))


def _net_optimizer(config: TrainConfig, net: IspNet) -> torch.optim.Optimizer:
    """Adam; in supervised mode the optimiser and betas of the architecture's own recipe."""
    recipe = net.recipe if config.mode == "supervised" else Recipe()
    kind = torch.optim.RAdam if recipe.optimizer == "radam" else torch.optim.Adam
    return kind(net.parameters(), config.lr, betas=recipe.betas)


def _set_rates(
    config: TrainConfig,
    step: int,
    led: bool,
    opt_net: torch.optim.Optimizer,
    opt_potential: torch.optim.Optimizer,
    committee: Committee | None,
) -> None:
    """Learning rates of a step. `led`: the network has pairs or pseudo-pairs to follow."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    # Adam's first steps are as large as its later ones whatever the gradient: they would spoil a network that is good.
    ramp = 1.0 if config.init is None else min(1.0, (step + 1) / RAMP)
    slow = 1.0 if led or step < config.warmup * config.steps else UNLED
    rates = [(opt_net, slow * ramp * config.lr, 0.02), (opt_potential, config.lr_potential, 0.1)]
    if committee is not None:
        rates.append((committee.optimizer, config.lr_experts, 0.1))
    for optimizer, rate, floor in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate * (floor + (1 - floor) * cosine)


def _alpha(config: TrainConfig, step: int) -> float:
    """Strength of the divergences: from `alpha_start` to `alpha` geometrically over the first fraction."""
    progress = 1.0 if config.alpha_fraction == 0 else min(1.0, step / (config.alpha_fraction * config.steps))
    return float(config.alpha_start ** (1 - progress) * config.alpha**progress)


def _to(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    moved = {
        key: getattr(batch, key).to(device, non_blocking=True)
        for key in ("raw_v", "raw_t", "target", "pseudo", "pair_raw", "pair_truth", "pair_mask")
        if getattr(batch, key) is not None
    }
    return replace(batch, **moved)


def validate(net: Any, pairs: Sequence[PairLike], config: TrainConfig, warn: Callable[[str], None]) -> float | None:
    """Mean PSNR in dB of a network over pairs; those that cannot be read are told and left out. None: all of them."""
    scores = []
    for pair in pairs:
        try:
            scores.append(psnr(render_frame(net, pair.frame(), config.color_input), pair.truth()))
        except EguotError as error:
            warn(f"not scored: {error}")
    if not scores:
        warn("no pair of --val could be scored, so there is no validation")
    return float(np.mean(scores)) if scores else None


COLUMNS = ("R(x)", "network", "truth")
"""Captions of a sheet's columns."""


def sheet_rows(config: TrainConfig, sources: Sources, ema: Any, reference: Reference) -> list[list[np.ndarray]]:
    """Rows of pictures for a sample sheet: R(x), T(x) and, where known, the truth; last a row of targets."""
    rows: list[list[np.ndarray]] = []
    side = 320
    frames = sources.frames[:4] if config.unpaired else [p.frame() for p in sources.pairs[:4]]
    for i, whole in enumerate(frames):
        part = middle(whole.height, whole.width, side)
        frame = replace(whole, mosaic=whole.mosaic[part])  # a large network takes minutes for all of it
        row = [reference_render(reference.alignment, config.color_input)(frame)]
        row.append(render_frame(ema, frame, config.color_input))
        if not config.unpaired:
            row.append(sources.pairs[i].truth()[part])
        rows.append(row if i else [captioned(p, text) for p, text in zip(row, COLUMNS, strict=False)])
    if sources.photos:
        shown = [photo[middle(photo.shape[0], photo.shape[1], side)] for photo in sources.photos[:3]]
        rows.append([captioned(photo, "a photo") for photo in shown])
    return rows


def _silent(line: str) -> None:
    """The echo of ranks whose messages rank 0 says already."""
