"""Small runs and networks for the tests of conversion. Everything is seeded and made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eguot_sdk.pairs import write_pair
from eguot_train.checkpoint import build_isp, prefixed, save_checkpoint
from eguot_train.config import TrainConfig
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera
from eguot_train.isps.base import IspNet
from eguot_train.isps.qisp import Shared


class TinyResidual(IspNet):
    """A body at packed resolution with a sum and a leftover ReLU: what QISP does not exercise."""

    name, shuffle, halo, multiple = "tiny-residual", 2, 4, 1

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, width, 3, padding=1)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.tail = nn.Conv2d(width, 12, 3, padding=1)

    def body(self, planes: Tensor) -> Tensor:
        features = torch.relu(self.stem(planes))
        features = torch.relu(features + self.second(torch.relu(self.first(features))))
        return self.tail(features)


def lively(net: IspNet, seed: int = 0) -> IspNet:
    """Weights that give a picture in [0, 1] with detail, so that comparisons mean something."""
    torch.manual_seed(seed)
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0.0, (2 / max(parameter[0].numel(), 16)) ** 0.5)
    summed = [[m.own, m.at_places.layer] for m in net.modules() if isinstance(m, Shared)]
    tail = [m for m in net.get_submodule("tail").modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for conv in (conv for both in summed for conv in both):
            conv.weight.mul_(0.5**0.5)
        for conv in tail:
            conv.weight.mul_(0.15)
            conv.bias.uniform_(0.35 / len(tail), 0.65 / len(tail))  # type: ignore[union-attr]
    return net.eval()


@pytest.fixture
def tiny() -> IspNet:
    return lively(TinyResidual())


@pytest.fixture
def relive() -> Callable[[IspNet, int], IspNet]:
    """Gives a network other lively weights."""
    return lively


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Writes a run folder with lively weights: make_run(folder, isp="qisp-s", **config)."""
    return write_run


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three small pairs of a synthetic camera."""
    folder = tmp_path_factory.mktemp("pairs")
    camera = SynthCamera.from_seed(1)
    for i in range(3):
        scene = make_scene(100 + i, 160, 200)
        write_pair(folder, f"scene-{i}", camera.shoot(scene, f"scene-{i}"), scene)
    return folder


@pytest.fixture(scope="session")
def pictures() -> Tensor:
    """[6, 4, 32, 32] smooth companded planes over the whole range."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(6, 4, 9, 9, generator=generator)
    return nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 1)


def write_run(folder: Path, isp: str = "qisp-s", **config: object) -> Path:
    """A run folder as training leaves it, with lively weights."""
    net = lively(build_isp(isp))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(TrainConfig(mode="supervised", isp=isp, **config).to_json())  # type: ignore[arg-type]
    save_checkpoint(folder, 7, prefixed("ema", net.state_dict()), {"data": {"pairs": "0" * 64}})
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "street")
