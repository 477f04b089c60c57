"""The share of a training step spent outside the networks, and the loop's speed against a plain loop of the same nets.

The plain loop makes the same forward and backward passes on fixed tensors: no loader, costs, losses, references, log.
What the real loop takes longer is the share of a step outside the networks (target: at most 15%). Rounds of both
alternate. The time a step waits for its batch says whether the loader is a bottleneck. Data: procedural scenes.

    python benchmarks/train/run.py --out runs/train-speed
    python benchmarks/train/run.py --out runs/train-speed --device cuda    # with utilisation, memory, bf16 and compile

Writes OUT/results.json and prints a table. `--clock cpu` counts the loop's own processor time, which other work on the
machine does not stretch. Nothing here was run on a GPU so far: none was at hand.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import torch
from PIL import Image

from eguot_sdk.cli import Program
from eguot_train.checkpoint import build_isp
from eguot_train.config import TrainConfig
from eguot_train.data.batches import Batch, Batches
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import synth_folder
from eguot_train.potential import Potential, gradient_penalty
from eguot_train.trainer import Passes, build_committee, train

SCENES = 12
SKIP = 5
"""First steps of a round, which allocate (and compile)."""
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "supervised": ("supervised", ()),
    "paired": ("paired", ("warmup=0",)),
    "unpaired": ("unpaired", ("warmup=0",)),
    "unpaired, committee": ("unpaired", ("warmup=0", "experts=colour,structure,frequency")),
}
CUDA_SETTINGS = ("crop=128", "batch=32", "potential_width=64", "potential_reduce=1", "loaders=8")


def make_data(out: Path) -> dict[str, str]:
    """Raws and pairs of one synthetic camera, photos of other scenes."""
    if not out.is_dir():
        building = out.with_name(out.name + ".part")
        synth_folder(building, scenes=SCENES)
        (building / "srgb").mkdir()
        for i in range(SCENES):
            Image.fromarray(make_scene(100 + i, 480, 640)).save(building / "srgb" / f"{i:02d}.png")
        building.rename(out)
    return {role: str(out / role) for role in ("raw", "srgb", "pairs")}


def wait_for(device: torch.device) -> None:
    """Until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def real_loop(config: TrainConfig, clock: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Seconds of each step of the trainer, and the share of its wall time it waited for the batch."""
    steps: list[float] = []
    waits: list[float] = []
    stream, device = Batches.stream, torch.device(config.device)

    def timed(self: Batches, start: int, stop: int, *, pause: int = 0) -> Iterator[tuple[int, Batch]]:
        batches = stream(self, start, stop, pause=pause)
        while True:
            asked, called = clock(), time.perf_counter()
            found = next(batches, None)
            got = time.perf_counter()
            if found is None:
                return
            yield found
            wait_for(device)
            waits.append((got - called) / (time.perf_counter() - called))
            steps.append(clock() - asked)

    with tempfile.TemporaryDirectory() as folder, patch.object(Batches, "stream", timed):
        train(config, Path(folder) / "run", echo=lambda line: None)
    return steps[SKIP:-1], waits[SKIP:-1]  # the last one draws a sheet and saves the run


def plain_loop(config: TrainConfig, clock: Callable[[], float]) -> list[float]:
    """Seconds of each step of the same networks' passes and optimisers on fixed tensors."""
    device = torch.device(config.device)
    layout: dict[str, Any] = {"device": device, "memory_format": torch.channels_last}
    net, potential = build_isp(config.isp).to(**layout), Potential(
        config.potential_width, config.potential_reduce
    ).to(**layout)  # fmt: skip
    committee = build_committee(config)
    run_net, run_v = Passes(net, config, device), Passes(potential, config, device)
    opt_net, opt_v = torch.optim.Adam(net.parameters()), torch.optim.Adam(potential.parameters())
    crop, batch = config.crop, config.batch
    terms = {"unpaired": 2, "mixed": 3}.get(config.mode, 1)  # raws and pseudo-raws, pairs
    planes = torch.rand(terms * batch, 4, crop, crop).to(**layout)
    pictures = torch.rand(batch, 3, 2 * crop, 2 * crop).to(**layout)
    upstream = torch.rand(terms * batch, 3, 2 * crop, 2 * crop).to(**layout)
    experts: list[tuple[Any, tuple[torch.Tensor, ...]]] = []
    if committee is not None:
        committee.to(**layout)
        for expert in committee.members():
            with torch.no_grad():
                expert.observe(pictures, torch.ones(batch, device=device))
                seen = expert.transform(torch.cat([pictures, pictures]), torch.cat([pictures, pictures]))
            experts.append((expert, seen))
    times = []
    for step in range(config.steps):
        started = clock()
        if config.mode != "supervised":
            with torch.no_grad():
                fake = run_net(planes[:batch])
            loss = run_v(fake).mean() - run_v(pictures).mean()
            if step % config.r1_every == 0:
                loss = loss + gradient_penalty(potential, pictures) + gradient_penalty(potential, fake)
            opt_v.zero_grad(set_to_none=True)
            loss.backward()
            opt_v.step()
        if committee is not None:
            committee.optimizer.zero_grad(set_to_none=True)
            for expert, seen in experts:
                expert.judge(seen).sum().backward()
            committee.optimizer.step()
        rendered = run_net(planes)
        if config.mode != "supervised":
            leaf = rendered[:batch].detach().requires_grad_(True)
            torch.autograd.grad(run_v(leaf).sum(), leaf)
            for expert, seen in experts:
                inputs = tuple(x.detach().requires_grad_(True) for x in seen)
                torch.autograd.grad(expert.judge(inputs).sum(), inputs)
        opt_net.zero_grad(set_to_none=True)
        rendered.backward(upstream)
        opt_net.step()
        wait_for(device)
        times.append(clock() - started)
    return times[SKIP:]


def batch_seconds(config: TrainConfig) -> float:
    """Seconds that one batch takes to make, alone."""
    from eguot_train.data.batches import load_sources
    from eguot_train.reference import Alignment

    batches = Batches(config, load_sources(config), Alignment(), experts=bool(config.experts))
    batches.at(0)
    times = []
    for step in range(1, 11):
        started = time.perf_counter()
        batches.at(step)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


class Utilisation:
    """Mean of `torch.cuda.utilization` while it runs; None without its driver library."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._seen, self._done = device, list[int](), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Utilisation:
        if self._device.type == "cuda":
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            try:
                self._seen.append(torch.cuda.utilization(self._device))
            except Exception:  # pynvml absent or driver too old: the row goes without
                return

    def percent(self) -> float | None:
        return statistics.mean(self._seen) if self._seen else None


def measure(name: str, config: TrainConfig, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """One row: means over all steps of alternating rounds."""
    device = torch.device(config.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    real, waits, plain = [], [], []
    with Utilisation(device) as utilisation:
        for _ in range(rounds):
            plain += plain_loop(config, clock)
            steps, waited = real_loop(config, clock)
            real, waits = real + steps, waits + waited
    crops = config.batch * {"unpaired": 3, "mixed": 4}.get(config.mode, 1)
    step, bare = statistics.mean(real), statistics.mean(plain)
    return {
        "row": name,
        "precision": config.precision,
        "compile": config.compile,
        "batch": config.batch,
        "crop_px": 2 * config.crop,
        "step_ms": 1e3 * step,
        "plain_step_ms": 1e3 * bare,
        "share_outside_networks": 1 - bare / step,
        "waiting_for_batch": statistics.mean(waits),
        "batch_ms": 1e3 * batch_seconds(config),
        "crops_per_second": crops / step,
        "plain_crops_per_second": crops / bare,
        "utilisation_percent": utilisation.percent(),
        "peak_memory_mb": torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line a row."""
    lines = [
        "| | step ms | plain loop ms | outside networks | waiting for batch | crops/s | plain loop crops/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        how = f", {r['precision']}" + (", compiled" if r["compile"] else "")
        cells = [
            f"{r['row']}{how}", f"{r['step_ms']:.0f}", f"{r['plain_step_ms']:.0f}",
            f"{r['share_outside_networks']:.0%}", f"{r['waiting_for_batch']:.1%}", f"{r['crops_per_second']:.1f}",
            f"{r['plain_crops_per_second']:.1f}",
        ]  # fmt: skip
        if r["peak_memory_mb"] is not None:
            cells.append(f"{r['peak_memory_mb']:.0f} MB, {r['utilisation_percent']}% busy")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command(cls=Program)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--rows", default="supervised,paired,unpaired", show_default=True, help="Of " + "; ".join(ROWS))
@click.option("--isp", default="qisp-s", show_default=True)
@click.option("--steps", type=click.IntRange(min=SKIP + 1), default=29, show_default=True, help="Steps a round.")
@click.option("--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True)
def main(out: Path, device: str, rows: str, isp: str, steps: int, clock: str, rounds: int) -> None:
    """Measure, print a table and write OUT/results.json."""
    wanted = [row for row in rows.replace("; ", ",").split(",") if row] if rows != "all" else list(ROWS)
    if unknown := [row for row in wanted if row not in ROWS]:
        raise click.UsageError(f"unknown row {unknown[0]!r}: use all, or some of {'; '.join(ROWS)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("no GPU is at hand")
    out.mkdir(parents=True, exist_ok=True)
    folders = make_data(out / "data")
    never = {"checkpoint_every": 10**9, "sheet_every": 10**9, "weighted_alignment": False}
    variants: list[Callable[[TrainConfig], TrainConfig]] = [lambda c: c]
    if device == "cuda":
        variants += [lambda c: replace(c, precision="bf16"), lambda c: replace(c, precision="bf16", compile=True)]
    found = []
    for name in wanted:
        mode, settings = ROWS[name]
        config: TrainConfig = TrainConfig(mode=mode, isp=isp, device=device, steps=steps, **folders, **never)  # type: ignore[arg-type]
        config = config.with_settings(settings)
        if device == "cuda":
            config = config.with_settings(CUDA_SETTINGS)
        for variant in variants:
            click.echo(f"{name}", err=True)
            found.append(
                measure(name, variant(config), rounds, time.thread_time if clock == "cpu" else time.perf_counter)
            )
    machine = {"machine": platform.machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    (out / "results.json").write_text(
        json.dumps({**machine, "steps": steps, "rounds": rounds, "rows": found}, indent=1)
    )
    click.echo(table(found))


if __name__ == "__main__":
    main()
