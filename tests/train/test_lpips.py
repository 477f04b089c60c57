"""LPIPS: found or absent, and equal to torchmetrics on weights made for the test, as none were at hand."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from eguot_sdk.errors import UsageError
from eguot_sdk.isp import ISP
from eguot_sdk.pairs import list_pairs, write_pair
from eguot_sdk.paths import DEFAULT_ISP
from eguot_train.cli_data import evaluate as command
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera
from eguot_train.evaluate import evaluate_model
from eguot_train.lpips import BACKBONE, LINEAR, Lpips


def alexnet() -> nn.Sequential:
    """Its layers up to the last convolution, as torchvision numbers them, with random weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    torch.save({f"features.{k}": v for k, v in alexnet().state_dict().items()}, tmp_path / BACKBONE)
    channels = (64, 192, 384, 256, 256)
    torch.save({f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, n in enumerate(channels)}, tmp_path / LINEAR)
    return tmp_path


@pytest.mark.parametrize("size", [(64, 64), (131, 96)])
def test_it_equals_torchmetrics(weights: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("torchmetrics.functional.image.lpips")
    monkeypatch.setattr(module, "_get_tv_model_features", lambda net, pretrained=False: alexnet())
    theirs = module._LPIPS(net="alex", pnet_rand=True, model_path=str(weights / LINEAR)).eval()
    ours = Lpips.find(weights)
    assert ours is not None
    first = make_scene(0, *size)
    for second in (make_scene(1, *size), np.clip(first.astype(int) + 9, 0, 255).astype(np.uint8)):
        tensors = (torch.from_numpy(p).permute(2, 0, 1)[None].float() / 255 for p in (first, second))
        with torch.no_grad():
            expected = float(theirs(*tensors, normalize=True))
        assert expected > 0
        assert ours(first, second) == pytest.approx(expected, rel=1e-4)
    assert ours(first, first) == 0
    assert ours(first[:63], first[:63]) is None


def test_it_is_absent_or_found_where_others_keep_it(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(weights / "nothing"))
    assert Lpips.find() is None
    cache = weights / "cache" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (weights / BACKBONE).rename(cache / BACKBONE)
    monkeypatch.setenv("TORCH_HOME", str(weights / "cache"))
    pytest.importorskip("torchmetrics")
    found = Lpips.find()
    assert found is not None
    assert found.linear.name == LINEAR
    assert found(make_scene(0, 64, 64), make_scene(1, 64, 64)) is not None
    with pytest.raises(UsageError, match="LPIPS needs alexnet"):
        Lpips.find(weights)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("run",))


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps(Evil()), pickle.dumps([1])])
def test_a_file_that_is_no_weights_is_refused(weights: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    (weights / LINEAR).write_bytes(content)
    lpips = Lpips.find(weights)
    assert lpips is not None
    with pytest.raises(UsageError, match=LINEAR):
        lpips(make_scene(0, 64, 64), make_scene(1, 64, 64))
    assert "run" not in capfd.readouterr().out


def test_weights_of_another_network_are_refused(weights: Path) -> None:
    torch.save({f"lin{i}.model.1.weight": torch.rand(1, 64, 1, 1) for i in range(5)}, weights / LINEAR)
    lpips = Lpips.find(weights)
    assert lpips is not None
    with pytest.raises(UsageError, match="layer 1"):
        lpips(make_scene(0, 64, 64), make_scene(1, 64, 64))


@pytest.mark.parametrize("protocol", ["plain", "aligned"])
def test_evaluate_has_it_where_weights_are_given(
    protocol: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not DEFAULT_ISP.is_file():
        pytest.skip("this tree has no default ISP")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    for i in range(2):
        scene = make_scene(i, 96, 80)
        write_pair(tmp_path / "pairs", f"scene{i}", SynthCamera.from_seed(1).shoot(scene, f"scene{i}"), scene)
    asked = ["default", "--pairs", str(tmp_path / "pairs"), "--out", str(tmp_path), "--protocol", protocol, "--json"]
    plain = json.loads(CliRunner().invoke(command, asked).stdout)
    assert plain["lpips"] is None
    assert "lpips" not in Path(plain["csv"]).read_text()
    found = json.loads(CliRunner().invoke(command, [*asked, "--lpips", str(weights)]).stdout)
    with Path(found["csv"]).open(newline="") as file:
        values = [float(row["lpips"]) for row in csv.DictReader(file)]
    assert found["lpips"] == pytest.approx(np.mean(values), abs=1e-6)
    assert found["psnr_db"] == plain["psnr_db"]
    lpips = Lpips.find(weights)
    assert lpips is not None
    shared = evaluate_model("default", tmp_path / "pairs", protocol=protocol, lpips=lpips, workers=2)  # type: ignore[arg-type]
    assert [score.lpips for score in shared.scores] == pytest.approx(values, abs=1e-5)
    if protocol == "plain":
        pairs = list_pairs(tmp_path / "pairs")
        with ISP.load() as isp:
            expected = [lpips(isp.process(pair.frame()), pair.truth()) for pair in pairs]
        assert values == pytest.approx(expected, abs=1e-5)
