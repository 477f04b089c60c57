"""Checkpoints and run folders: exact, whole or refused, and strict about what fits."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eguot_sdk.errors import CheckpointError, OutputError, UsageError
from eguot_train import checkpoint
from eguot_train.checkpoint import (
    build_isp,
    checkpoints,
    load_run,
    load_weights,
    optimizer_tensors,
    part,
    prefixed,
    read_checkpoint,
    restore_optimizer,
    save_checkpoint,
    write_file,
)
from eguot_train.config import TrainConfig


def awake(name: str = "qisp-s", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = build_isp(name)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return net


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    weights = {**prefixed("net", awake(seed=1).state_dict()), **prefixed("ema", awake(seed=2).state_dict())}
    save_checkpoint(folder, 20, weights, {"norms": {}})
    (folder / "config.json").write_text(TrainConfig(mode="unpaired").to_json())
    return folder


def test_tensors_and_state_come_back_exactly(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last),
        "b": torch.tensor(1.5),
        "c": torch.arange(7),
        "d": torch.randn(2, 3, dtype=torch.float64).T,
    }
    state = {"norms": {"fidelity": 0.1 + 0.2, "transport": 1e-17}, "data": {"raw": "x"}}
    path = save_checkpoint(tmp_path, 7, tensors, state)
    assert path == tmp_path / "checkpoints" / "000007.safetensors"
    found, back = read_checkpoint(path)
    assert back == {**state, "step": 7}
    assert set(found) == set(tensors)
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == path.parent.stat().st_mode & 0o666  # others may read it where they may enter


def test_the_newest_two_are_kept_in_the_order_of_steps(tmp_path: Path) -> None:
    for step in (5, 999_999, 1_000_000, 2_000_000):
        save_checkpoint(tmp_path, step, {"a": torch.zeros(1)}, {})
    assert [p.name for p in checkpoints(tmp_path)] == ["1000000.safetensors", "2000000.safetensors"]
    for name in (".3000000.safetensors.part", "notes.txt", "x.safetensors", "12.safetensors"):
        (tmp_path / "checkpoints" / name).write_bytes(b"")
    assert [int(p.stem) for p in checkpoints(tmp_path)] == [1_000_000, 2_000_000]
    assert checkpoints(tmp_path / "absent") == []


def test_what_stops_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "file", b"old")
    first = save_checkpoint(tmp_path, 1, {"a": torch.zeros(1)}, {})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot be written .*No space"):
        write_file(tmp_path / "file", b"new")
    with pytest.raises(OutputError, match=r"cannot be written .*No space"):
        save_checkpoint(tmp_path, 2, {"a": torch.ones(1)}, {})
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["file"]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [first.name]
    assert read_checkpoint(first)[1] == {"step": 1}


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    """Cut anywhere or with flipped bytes in its header: CheckpointError with the file's name, or still whole."""
    path = save_checkpoint(tmp_path, 3, {"a": torch.randn(40), "b": torch.randn(3)}, {"norms": {}})
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(120):
        data = bytearray(whole)
        if i < 40:
            data = data[: int(rng.integers(len(whole)))]
        else:
            for at in rng.integers(0, 200, int(rng.integers(1, 4))):
                data[at] = int(rng.integers(256))
        path.write_bytes(bytes(data))
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            refused += "000003.safetensors" in str(error)
    assert refused > 90


def header_only(header: bytes, claimed: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if claimed is None else claimed) + header


def test_foreign_and_hostile_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "000001.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of eguot-sdk"):
        read_checkpoint(path)
    for state in ("{}", "[]", '{"step": "3"}', '{"step": null}', '{"step": -1}', '{"step": true}', "7"):
        save_file({"a": torch.zeros(2)}, path, metadata={"state": state})
        with pytest.raises(CheckpointError, match="names no step"):
            read_checkpoint(path)
    for state in ("", "{", "[" * 100_000, '{"step": 1' + "}" * 9):
        save_file({"a": torch.zeros(2)}, path, metadata={"state": state})
        with pytest.raises(CheckpointError, match="damaged or not"):
            read_checkpoint(path)
    for data in (
        b"",
        b"PK\x03\x04 a pickle of torch.save",
        header_only(b"{}", 1 << 60),
        header_only(json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()),
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged or not"):
            read_checkpoint(path)
    with pytest.raises(CheckpointError, match="damaged or not"):
        read_checkpoint(tmp_path / "absent.safetensors")


def test_weights_must_fit(tmp_path: Path) -> None:
    net = awake()
    state = net.state_dict()
    key = "stem.own.weight"
    for wrong, why in (
        ({k: v for k, v in state.items() if k != key}, f"Missing key.*{key}"),
        ({**state, "extra": torch.zeros(1)}, "Unexpected key.*extra"),
        ({**state, key: torch.zeros(2, 2)}, f"size mismatch for {key}"),
    ):
        with pytest.raises(CheckpointError, match=f"somewhere: weights do not fit the network .*{why}") as caught:
            load_weights(awake(seed=1), wrong, "somewhere")
        assert "\n" not in str(caught.value)
    spoilt = {**state, key: torch.full_like(state[key], torch.nan)}
    with pytest.raises(CheckpointError, match=f"somewhere: {key} holds values that are no numbers"):
        load_weights(awake(seed=1), spoilt, "somewhere")
    other = awake(seed=1)
    load_weights(other, state, "somewhere")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_parts_are_told_apart_by_their_prefix() -> None:
    tensors = {**prefixed("opt", {"0.step": torch.zeros(1)}), **prefixed("opt_net", {"0.step": torch.ones(1)})}
    assert set(tensors) == {"opt.0.step", "opt_net.0.step"}
    assert part("opt", tensors)["0.step"] == 0
    assert part("opt_net", tensors)["0.step"] == 1
    assert part("net", tensors) == {}


def test_an_optimiser_goes_on_as_if_it_had_not_stopped() -> None:
    """Three steps, save, three more; against restoring into a new optimiser. Bit for bit, channels last."""

    def steps(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for i in range(first, last):
            x = torch.rand(1, 4, 24, 24, generator=torch.Generator().manual_seed(i))
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        net = awake().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net, torch.optim.Adam(net.parameters(), 1e-2, betas=(0.5, 0.99))

    unbroken, optimizer = fresh()
    steps(unbroken, optimizer, 0, 6)
    first, optimizer = fresh()
    steps(first, optimizer, 0, 3)
    kept = {key: value.clone().contiguous() for key, value in optimizer_tensors(optimizer).items()}
    second, optimizer = fresh()
    load_weights(second, {key: value.clone() for key, value in first.state_dict().items()}, "first")
    restore_optimizer(optimizer, kept)
    steps(second, optimizer, 3, 6)
    for a, b in zip(unbroken.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_load_run_gives_the_ema_weights(run: Path) -> None:
    loaded = load_run(run)
    assert loaded.step == 20
    assert loaded.config == TrainConfig(mode="unpaired")
    assert not loaded.net.training
    expected = awake(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(loaded.net.parameters(), expected.parameters(), strict=True))
    assert loaded.spec_fields == {
        "architecture": "qisp-s",
        "parameters": sum(p.numel() for p in expected.deploy().parameters()),
        "halo": loaded.net.halo,
        "multiple": loaded.net.multiple,
        "global_context": False,
        "color_input": "srgb",
    }


def test_load_run_takes_the_newest(run: Path) -> None:
    weights = prefixed("ema", awake(seed=9).state_dict())
    save_checkpoint(run, 30, weights, {})
    assert load_run(run).step == 30
    assert torch.equal(next(load_run(run).net.parameters()), weights["ema.stem.own.weight"])


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; give a folder"):
        load_run(tmp_path / "absent")
    (run / "config.json").write_text(TrainConfig(mode="unpaired", isp="qisp-m").to_json())
    with pytest.raises(CheckpointError, match="weights do not fit the network"):
        load_run(run)
    (run / "config.json").write_text(TrainConfig(mode="unpaired", isp="nothing").to_json())
    with pytest.raises(UsageError, match="unknown ISP 'nothing': use one of qisp-xs, qisp-s"):
        load_run(run)
    for garbage in (b"", b"\xff\xfe\x00", b"[]", b'{"mode": 7}'):
        (run / "config.json").write_bytes(garbage)
        with pytest.raises(CheckpointError, match=r"config"):
            load_run(run)
    (run / "config.json").write_text(TrainConfig(mode="unpaired").to_json())
    for path in checkpoints(run):
        path.unlink()
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        load_run(run)


class Touching:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    run, mark = tmp_path / "run", tmp_path / "ran"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(TrainConfig(mode="paired").to_json())
    torch.save({"net": Touching(mark)}, tmp_path / "pickled.pt")
    (tmp_path / "pickled.pt").rename(run / "checkpoints" / "000001.safetensors")
    with pytest.raises(CheckpointError):
        load_run(run)
    assert not mark.exists()
    (run / "checkpoints" / "000001.safetensors").rename(tmp_path / "pickled.pt")
    torch.load(tmp_path / "pickled.pt", weights_only=False)
    assert mark.exists(), "the file would have run"


def test_a_run_folder_does_not_choose_what_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from eguot_train.checkpoint import TRUST, _refuse_foreign_code

    monkeypatch.delenv(TRUST, raising=False)
    _refuse_foreign_code(tmp_path, "qisp-s")
    _refuse_foreign_code(tmp_path, "pathlib:Path")  # imported already, by the caller's own choice
    with pytest.raises(CheckpointError, match="import its module first"):
        _refuse_foreign_code(tmp_path, "never_imported_module:Net")
    monkeypatch.setenv(TRUST, "1")
    _refuse_foreign_code(tmp_path, "never_imported_module:Net")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_weight_that_is_no_number_is_enough(value: float) -> None:
    state = {name: tensor.clone() for name, tensor in awake().state_dict().items()}
    state["stem.own.weight"].view(-1)[-1] = value
    with pytest.raises(CheckpointError, match=r"somewhere: stem\.own\.weight holds values that are no numbers"):
        load_weights(awake(seed=1), state, "somewhere")


def test_a_config_is_read_to_a_limit(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has some thousand characters; a file of gigabytes must not be read to its end."""
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(" " * 2000 + text)
    assert load_run(run).step == 20
    monkeypatch.setattr(checkpoint, "MAX_CONFIG", 2000)
    with pytest.raises(CheckpointError, match="config"):
        load_run(run)
