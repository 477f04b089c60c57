"""The processes of one run: torch.distributed under torchrun, one process and no communication otherwise.

Every rank runs the same loop on its share of the batch. Gradients are averaged after the backward pass, in one message
per network, instead of by DistributedDataParallel: networks here are small (two thousand to some million weights), the
penalties need a second backward pass, and micro-batches add up before anything is sent. Whatever else depends on the
whole batch (norms, mean weights, running statistics) goes through `mean` and `total`, so that all ranks take the same
step, which is the step of one process that holds the whole batch.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from eguot_sdk.errors import EguotError, UsageError

T = TypeVar("T")
TIMEOUT = timedelta(hours=1)
"""How long the others wait for rank 0 while it validates and writes."""
START = timedelta(minutes=10)
"""How long a start may take until all have come."""
POLL_S = 0.02


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, gloo on CPUs and NCCL on GPUs; gives the device of this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    if "RANK" not in os.environ:
        raise UsageError("WORLD_SIZE is set, but not by torchrun: start with torchrun, or `unset WORLD_SIZE`")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    store, rank, world = next(dist.rendezvous("env://", timeout=START))
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = own_part(store, rank, world)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def own_part(store: dist.Store, rank: int, world: int) -> dist.Store:
    """The part of torchrun's store that belongs to this start of the processes alone.

    The store outlives processes that torchrun starts again, with the addresses of the dead in it, and who reads those
    before they are written anew waits for nobody. So each greets rank 0 with a number never used before, and rank 0
    answers that number with the name of this start. Counting restarts would not do: machines count them differently.
    """
    if rank > 0:
        greeting = uuid.uuid4().hex
        store.set(f"greeting/{rank}", greeting)
        store.wait([f"start/{greeting}"], START)
        start = store.get(f"start/{greeting}").decode()
        store.set(f"{start}/here/{rank}", "")
        return dist.PrefixStore(start, store)
    start, answered, deadline = uuid.uuid4().hex, dict[int, str](), time.monotonic() + START.total_seconds()
    missing = set(range(1, world))
    while missing:
        for other in missing:
            if store.check([f"greeting/{other}"]):
                greeting = store.get(f"greeting/{other}").decode()
                if answered.get(other) != greeting:  # the first may be that of a dead process
                    store.set(f"start/{greeting}", start)
                    answered[other] = greeting
        missing = {other for other in missing if not store.check([f"{start}/here/{other}"])}
        if time.monotonic() > deadline:
            raise EguotError(f"processes {sorted(missing)} did not come within {START}")
        time.sleep(POLL_S if missing else 0)
    return dist.PrefixStore(start, store)


def world() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; rank 0 writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def speaks() -> bool:
    """Whether this is the process that talks to the person, also before and after the processes are joined."""
    return os.environ.get("RANK", "0") == "0"


def restarted() -> bool:
    """Whether torchrun has started this process again after one of the run died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def job() -> str | None:
    """What names the torchrun that started this process, the same after every restart; None without one.

    Where the agents share a store its address is theirs alone, whichever machine is rank 0 after a restart; else
    rank 0 stays where it is, below one agent.
    """
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if run is None:
        return None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return f"{run} at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return f"{run} below process {os.getppid()} of {socket.gethostname()}"


def wait() -> None:
    """Go on when all have come this far."""
    if world() > 1:
        dist.barrier()


def total(values: Tensor) -> Tensor:
    """Sum over the ranks, on every rank; carries no gradient."""
    if world() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values)
    return values


def gathered(values: Tensor) -> Tensor:
    """The values [n] of all ranks in their order, on every rank; each holds as many. Carries no gradient."""
    if world() == 1:
        return values
    pieces = [torch.empty_like(values) for _ in range(world())]
    dist.all_gather(pieces, values.detach().contiguous())
    return torch.cat(pieces)


def mean(values: Tensor) -> Tensor:
    """Mean over the ranks, on every rank; carries no gradient."""
    return values if world() == 1 else total(values) / world()


def mean_of(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Each value's mean over the ranks, which must hold the same keys."""
    if world() == 1:
        return dict(values)
    return dict(zip(values, mean(torch.tensor(list(values.values()), device=device)).tolist(), strict=True))


def any_of(flag: bool) -> bool:
    """Whether the flag of one rank at least is set, on every rank."""
    if world() == 1:
        return flag
    return bool(total(torch.tensor(float(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")) > 0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their mean over the ranks."""
    if world() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = mean(torch.cat([g.reshape(-1) for g in gradients]))
    for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(piece.view(gradient.shape))


def equalise(*modules: nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers."""
    if world() > 1:
        for module in modules:
            module.load_state_dict(from_first(module.state_dict))


def from_first(make: Callable[[], T]) -> T:
    """What rank 0 makes, on every rank."""
    if world() == 1:
        return make()
    box = [make() if rank() == 0 else None]
    dist.broadcast_object_list(box)
    made: T = box[0]  # type: ignore[assignment]
    return made
