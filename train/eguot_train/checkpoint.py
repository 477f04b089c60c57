"""Run folders and checkpoints: safetensors with JSON in the header, no pickle, written beside and renamed.

RUN/config.json            the TrainConfig
RUN/log.jsonl              one object per logged step
RUN/checkpoints/NNNNNN.safetensors
    net.* ema.* potential.*       weights
    opt_net.I.K opt_potential.I.K optimiser state K of parameter I
    committee.*                   the experts with their statistics and optimiser, where there are any
    metadata `state`              JSON: step, norms, what was fitted (`fits`), weights of photos, data hashes
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from eguot_sdk.errors import CheckpointError, OutputError, UsageError
from eguot_sdk.output import written_beside
from eguot_sdk.paths import means_default

from .config import TrainConfig
from .isps import ISPS, IspNet
from .isps.base import checked, fault

DEFAULT_RUN = Path(__file__).parent / "models" / "default"
"""The float network behind the default ISP, as a run folder (`default_isp.py` makes it)."""
KEEP = 2
TRUST = "EGUOT_TRUST_RUN"
"""Environment variable that lets run folders name classes to import."""
MAX_CONFIG = 1 << 20
"""Characters read of a config.json, which has some thousand."""
OWN_CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
NAME = re.compile(r"\d{6,}\.safetensors")


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if NAME.fullmatch(p.name)), key=lambda p: int(p.stem))


def write_file(path: Path, data: bytes) -> None:
    """Write a file beside its place and rename it, so that it is there whole or not at all. Raises OutputError."""
    with written_beside(path) as handle:
        handle.write(data)


def save_checkpoint(run: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write a checkpoint and drop all but the newest two. Raises OutputError."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{step:06d}.safetensors"
    temporary = folder / f".{path.name}.part"
    try:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
            temporary,
            metadata={"state": json.dumps({**state, "step": step})},
        )
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        temporary.chmod(folder.stat().st_mode & 0o666)  # safetensors leaves it to its owner alone, also on shared disks
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        raise OutputError(f"{path}: cannot be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    for old in checkpoints(run)[:-KEEP]:
        old.unlink()
    return path


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint. Raises CheckpointError when it is damaged or not ours."""
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            state = json.loads(metadata["state"])
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path.name}: damaged or not a checkpoint of eguot-sdk ({error})") from error
    if not isinstance(state, dict) or type(state.get("step")) is not int or state["step"] < 0:
        raise CheckpointError(f"{path.name}: its header names no step")
    return tensors, state


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `prefix.` before their names."""
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def part(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `prefixed`: those of one prefix, without it."""
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{prefix}.")}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state as flat tensors I.K."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": v for i, entry in state.items() for k, v in entry.items() if isinstance(v, Tensor)}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A trained network and what made it."""

    net: IspNet
    """EMA weights, eval mode, on the CPU."""
    config: TrainConfig
    step: int
    spec_fields: dict[str, Any]
    """Fields of IspSpec that the run decides."""
    state: dict[str, Any]
    """State of the checkpoint: alignment, cost scales, data hashes."""


def build_isp(name: str) -> IspNet:
    """A new network by its command-line name, or of your own class by `package.module:Class`.

    The module is imported from the Python path; a run folder only ever names it. Raises UsageError.
    """
    if name in ISPS:
        return ISPS[name]()
    if OWN_CLASS.fullmatch(name):
        try:
            net: object = _own_class(name)()
        except UsageError:
            raise
        except Exception as error:  # it is somebody's code
            raise UsageError(f"{name}: making it, without arguments, fails ({fault(error)})") from error
        return checked(net, name)
    raise UsageError(f"unknown ISP {name!r}: use one of {', '.join(ISPS)}, or package.module:Class of your own")


def _refuse_foreign_code(run: Path, isp: str) -> None:
    """A run folder must not choose what gets imported: its own class has to be imported already, or trusted."""
    known = isp.partition(":")[0] in sys.modules or os.environ.get(TRUST) == "1"
    if OWN_CLASS.fullmatch(isp) and not known:
        raise CheckpointError(
            f"{run} was trained with the class {isp}: if you trust this run, set {TRUST}=1 and put the "
            f"folder of {re.split('[.:]', isp)[0]} on PYTHONPATH; from Python, import its module first"
        )


def _own_class(name: str) -> type[IspNet]:
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        file, _, inside = module_name.rpartition(".")
        if inside == "py" and file:
            raise UsageError(f"{name}: names a file; write {file}:{class_name}, its folder on PYTHONPATH") from error
        raise UsageError(f"{name}: cannot import {module_name} ({error}); put its folder on PYTHONPATH") from error
    except Exception as error:
        raise UsageError(f"{name}: importing {module_name} fails ({fault(error)})") from error
    own = getattr(module, class_name, None)
    if not (isinstance(own, type) and issubclass(own, IspNet)):
        raise UsageError(f"{name} must be a subclass of eguot_train.isps.IspNet, {module_name} has no such class")
    return own


def named_run(run: Path) -> Path:
    """The folder of a run as a person names it: `default` is DEFAULT_RUN."""
    return DEFAULT_RUN if means_default(run) else run


def read_config(run: Path) -> TrainConfig:
    """The config saved with a run. Raises CheckpointError where there is none or it is not ours."""
    path = run / "config.json"
    if not path.is_file():
        if run.is_file():
            what = "is a file; a run is the folder that `train` wrote, from which `convert` makes ISP files"
        elif not run.exists():
            what = "does not exist; give a folder that `eguot-sdk train` wrote"
        else:
            what = "is not a run folder (no config.json): give a folder that `eguot-sdk train` wrote"
        raise CheckpointError(f"{run} {what}")
    with open(path, encoding="utf-8", errors="replace") as handle:
        return TrainConfig.from_json(handle.read(MAX_CONFIG))


def load_run(run: Path) -> LoadedRun:
    """The newest checkpoint of a run folder. Raises CheckpointError with what is missing."""
    run = Path(run)
    config = read_config(run)
    found = checkpoints(run)
    if not found:
        raise CheckpointError(f"{run} holds no checkpoint yet: let training reach its first one")
    tensors, state = read_checkpoint(found[-1])
    _refuse_foreign_code(run, config.isp)
    net = build_isp(config.isp)
    load_weights(net, part("ema", tensors), found[-1].name)
    fields = {
        "architecture": config.isp,
        "parameters": net.deploy().parameter_count(),
        "halo": net.halo,
        "multiple": net.multiple,
        "global_context": net.global_context,
        "color_input": config.color_input,
    }
    return LoadedRun(net.eval(), config, state["step"], fields, state)


def load_weights(net: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Strict load: a missing, extra or misshapen tensor is an error naming it, and so is one with NaN or infinity."""
    try:
        net.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"{where}: weights do not fit the network ({reason})") from error
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{where}: {name} holds values that are no numbers")
