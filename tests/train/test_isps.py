"""The architectures: counts of METHOD.md 4, shapes, what each pixel depends on, the deployed forms, runs on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional as F

from eguot_sdk.errors import UsageError
from eguot_train.checkpoint import build_isp, load_run, prefixed, save_checkpoint
from eguot_train.cli import isps as command
from eguot_train.config import MODES, Mode, TrainConfig
from eguot_train.isps import ISPS, IspNet
from eguot_train.isps.base import checked, macs_per_pixel, mosaic
from eguot_train.isps.haar import dwt, idwt
from eguot_train.isps.packed import (
    PackedConv2d,
    ShuffledConv2d,
    doubling_conv,
    full_resolution_conv,
    mosaic_conv,
    written_out,
)
from eguot_train.isps.syenet import RepConv, SyeNet
from eguot_train.trainer import train

ROOT = Path(__file__).resolve().parent.parent.parent
COUNTS = {
    "efficientisp": 3_060,
    "robustisp": 1_616,
    "syenet": 108_715,
    "microisp": 13_560,
    "lan": 46_847,
    "punet": 5_725_199,
    "liteispnet": 9_039_623,
    "awnet": 50_618_596,
    "pynet": 47_551_666,
    "unet32": 1_926_252,
}
LARGE = ("punet", "liteispnet", "awnet", "pynet")
SMALL = [name for name in ISPS if name not in LARGE]
LOCAL = ["qisp-s", "robustisp", "efficientisp", "unet32", "punet"]


def shapes_only(name: str) -> IspNet:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return ISPS[name]()


def planes(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 4, height, width, generator=torch.Generator().manual_seed(height * width))


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_those_of_the_originals(name: str) -> None:
    assert shapes_only(name).parameter_count() == COUNTS[name]


def test_the_deployed_syenet_has_its_count() -> None:
    assert SyeNet(deployed=True).parameter_count() == 5_640


@pytest.mark.parametrize("name", ISPS)
def test_every_network_keeps_the_contract(name: str) -> None:
    net = shapes_only(name)
    assert net.name == name
    assert net.halo % net.multiple == 0
    if net.global_context:
        assert net.halo == 0
    assert net(torch.empty(2, 4, 96, 64, device="meta")).shape == (2, 3, 192, 128)
    body = net.body(torch.empty(1, 4, 48, 80, device="meta"))
    assert body.shape == (1, 3 * net.shuffle**2, 96 // net.shuffle, 160 // net.shuffle)


@pytest.mark.parametrize("name", ISPS)
def test_bodies_can_be_traced(name: str) -> None:
    """As the converters do."""

    class Body(nn.Module):
        def __init__(self, net: IspNet) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net.body(x)

    graph = torch.fx.symbolic_trace(Body(written_out(shapes_only(name).deploy())))
    assert graph(torch.empty(1, 4, 48, 48, device="meta")).shape[1] in (3, 12, 48)


def original_losses(net: IspNet) -> Tensor:
    """The network's own loss on a batch, after checking that it tells samples apart and likes the truth most."""
    side = 32
    rendered, truth = net(planes(side, side, 2)), torch.rand(2, 3, 2 * side, 2 * side)
    loss = net.original_loss(rendered, truth)
    assert loss.shape == (2,)
    with torch.no_grad():
        assert (net.original_loss(truth, truth) < loss).all()
        torch.testing.assert_close(net.original_loss(rendered[1:], truth[1:]), loss[1:], rtol=1e-4, atol=1e-5)
    return loss


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)])
def test_one_backward_reaches_every_weight_in_use(name: str) -> None:
    torch.manual_seed(0)
    net = ISPS[name]()
    original_losses(net).sum().backward()
    idle = {n for n, p in net.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())}
    # Heads of the coarser pictures serve losses at several scales, not the picture itself.
    assert not {n for n in idle if not n.startswith(("outputs.", "heads."))}
    assert bool(idle) == (name in ("pynet", "awnet"))


def saved_run(folder: Path, net: IspNet, isp: str) -> Path:
    save_checkpoint(folder, 1, prefixed("ema", net.state_dict()), {})
    (folder / "config.json").write_text(TrainConfig(mode="paired", isp=isp).to_json())
    return folder


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)])
def test_runs_load_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = ISPS[name]()
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    loaded = load_run(saved_run(tmp_path / "run", net, name))
    x = planes(96, 96)
    with torch.no_grad():
        assert torch.equal(loaded.net(x), net.eval()(x))
    assert loaded.spec_fields["architecture"] == name
    assert loaded.spec_fields["parameters"] == {**COUNTS, "syenet": 5_640}.get(name, net.deploy().parameter_count())


@torch.no_grad()
def reach(net: IspNet, side: int) -> int:
    """Margin in packed pixels that a tile needs whose sides are multiples of `multiple`, measured.

    One input pixel is changed at a time. All weights are made positive, so that nothing can cancel; the changed
    pixel dwarfs the others, so that it wins every maximum.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            fan = module.weight.numel() / module.weight.shape[1 if isinstance(module, nn.ConvTranspose2d) else 0]
            module.weight.fill_(4 / fan)  # keeps the signal alive over deep networks
            if module.bias is not None:
                module.bias.zero_()
    squash, torch.tanh = torch.tanh, lambda x: x
    try:
        farthest, block = 0, net.multiple
        net.double()
        for height, width in ((side, 2 * block), (2 * block, side)):  # strips, one axis at a time
            x = torch.full((1, 4, height, width), 1e-6, dtype=torch.float64)
            plain, middle = net(x), side // 2 // block * block
            for center in {middle, middle + block - 1}:
                other = x.clone()
                other[:, :, min(center, height - 1), min(center, width - 1)] = 1.0
                changed = (net(other) - plain).abs().amax(1)[0] > 0
                touched = {int(v) // 2 // block for v in changed.any(int(height > width)).nonzero()[:, 0]}
                assert 0 not in touched
                assert side // block - 1 not in touched
                farthest = max(farthest, *(max(b * block - center, center - (b + 1) * block + 1) for b in touched))
    finally:
        torch.tanh = squash
    return farthest


@pytest.mark.parametrize("name", LOCAL)
def test_the_halo_is_what_a_pixel_depends_on(name: str) -> None:
    """In the form that is converted, whose zeros rounding may fill."""
    net = written_out(ISPS[name]().deploy())
    assert -(-reach(net, {"unet32": 160, "punet": 512}.get(name, 48)) // net.multiple) * net.multiple == net.halo


@pytest.mark.parametrize("name", [n for n in SMALL if n not in LOCAL and not n.startswith("qisp")])
def test_networks_of_global_context_see_the_whole_frame(name: str) -> None:
    torch.manual_seed(0)
    net = ISPS[name]().double().eval()
    if name != "syenet":  # the others start so small that nothing can be seen through them
        for parameter in net.parameters():
            parameter.data.normal_(0.0, 0.3)
    assert net.global_context
    x = torch.rand(1, 4, 120, 120, dtype=torch.float64)
    other = x.clone()
    other[:, :, 60:, 60:] = 1.0
    with torch.no_grad():
        assert (net(other) - net(x))[:, :, :8, :8].abs().max() > 0


def test_syenet_deploys_to_equal_pictures() -> None:
    torch.manual_seed(0)
    net = SyeNet()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 2.0)
            for tensor in (module.bias, module.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor, 0.0, 0.3)
    net.eval()
    deployed = net.deploy()
    assert deployed.parameter_count() == 5_640
    assert deployed.deploy() is deployed
    assert not deployed.training
    x = planes(40, 56, 2)
    with torch.no_grad():
        expected = net(x)
        assert float(expected.std()) > 0.01
        torch.testing.assert_close(deployed(x), expected, rtol=1e-5, atol=1e-5)


def test_branches_merge_exactly_for_every_shape() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 11, 9)
    for kernel in (3, 5):
        branches = RepConv(4, 6, kernel, 7).train()
        branches(torch.randn(8, 4, 16, 16))  # statistics away from 0 and 1
        branches.eval()
        weight, bias = branches.merged()
        with torch.no_grad():
            torch.testing.assert_close(F.conv2d(x, weight, bias, padding=kernel // 2), branches(x))


def full(maps: Tensor) -> Tensor:
    return F.pixel_shuffle(maps, 2)


@pytest.mark.parametrize("plain", [False, True])
def test_packed_layers_are_the_layers_they_stand_for(plain: bool) -> None:
    torch.manual_seed(0)
    three, one, two = full_resolution_conv(5, 3), mosaic_conv(6), doubling_conv(7, 2)
    assert [sum(p.numel() for p in c.parameters()) for c in (three, one, two)] == [138, 102, 126]

    def run(packed: PackedConv2d, x: Tensor) -> Tensor:
        out: Tensor = (packed.written_out() if plain else packed)(x)
        return out

    x = torch.randn(2, 20, 6, 9)
    with torch.no_grad():
        torch.testing.assert_close(full(run(three, x)), three.layer(full(x)))
        torch.testing.assert_close(run(one, x[:, :4]), one.layer(mosaic(x[:, :4])))
        torch.testing.assert_close(full(run(two, x[:, :7])), two.layer(x[:, :7]))


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(6, 4, 2, stride=2),
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, bias=False),
        nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1, groups=2),
        nn.ConvTranspose2d(6, 4, 7, stride=3, padding=2),
    ],
)
def test_a_transposed_convolution_is_one_and_a_shuffle(layer: nn.ConvTranspose2d) -> None:
    x = torch.randn(2, 6, 5, 7)
    assert ShuffledConv2d.fits(layer)
    torch.testing.assert_close(ShuffledConv2d(layer)(x), layer(x))


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(6, 4, 3, stride=2),  # one row too many
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1),  # one too few
        nn.ConvTranspose2d(6, 4, (2, 3), stride=(2, 3)),
        nn.ConvTranspose2d(6, 4, 2, stride=2, padding=1, dilation=3, output_padding=1),
    ],
)
def test_a_transposed_convolution_of_another_kind_stays(layer: nn.ConvTranspose2d) -> None:
    net = nn.Sequential(layer)
    assert written_out(net) is net


@pytest.mark.parametrize("name", ["lan", "punet", "unet32", "syenet", "qisp-s"])
def test_written_out_networks_render_the_same_with_layers_that_convert(name: str) -> None:
    torch.manual_seed(0)
    net = ISPS[name]().deploy().eval()
    for parameter in net.parameters():
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
    plain = written_out(net)
    assert (plain is net) == (name == "qisp-s")
    for path, module in plain.named_modules():
        assert not (isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and list(module.children())), path
        assert not isinstance(module, PackedConv2d)
        assert not isinstance(module, nn.ConvTranspose2d)
    x = planes(32, 48)
    with torch.no_grad():
        expected = net(x)
        assert float(expected.std()) > 0.01
        torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-5)


def test_haar_is_orthonormal_and_inverts() -> None:
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bands = dwt(x)
    assert bands.shape == (2, 12, 4, 6)
    torch.testing.assert_close(idwt(bands), x)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())
    torch.testing.assert_close(bands[:, :3], 2 * F.avg_pool2d(x, 2))
    flat = dwt(torch.ones(1, 1, 4, 4))
    assert flat[:, 1:].abs().max() == 0


def test_macs_are_counted_as_by_hand() -> None:
    """RobustISP: three 3x3 convolutions at packed resolution, four output pixels each."""
    assert macs_per_pixel(ISPS["robustisp"]()) == 9 * (4 * 16 + 16 * 4 + 4 * 12) / 4


def test_the_command_lists_every_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(command, ["--json"])
    assert done.exit_code == 0, done.output
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert list(rows) == list(ISPS)
    for name, count in {**COUNTS, "syenet": 5_640}.items():
        assert rows[name]["parameters"] == count
    assert rows["syenet"]["training"]["parameters"] == COUNTS["syenet"]
    family = ["qisp-xs", "qisp-s", "qisp-m", "qisp-l"]
    assert [name for name, row in rows.items() if "training" in row] == [*family, "syenet"]
    assert set(rows["lan"]) == {"name", "parameters", "macs_per_pixel", "halo", "global_context", "mobile_safe"}
    assert rows["robustisp"]["macs_per_pixel"] == 396
    assert all(rows[name]["training"]["macs_per_pixel"] == rows[name]["macs_per_pixel"] > 0 for name in family)
    few = ("qisp-s", "syenet")
    monkeypatch.setattr("eguot_train.isps.ISPS", {name: ISPS[name] for name in few})
    text = CliRunner().invoke(command, [])
    assert text.exit_code == 0, text.output
    _header, *lines = text.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(few)
    assert lines[1].split() == ["syenet", "5,640", "1,608", "0", "frame", "no", "108,715", "parameters"]


def config(folders: dict[str, str], isp: str, mode: Mode = "supervised", **fields: Any) -> TrainConfig:
    return TrainConfig(mode=mode, isp=isp, **folders, **{"steps": 3, "batch": 2, "crop": 32, **fields})


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(ROOT / "examples")
    return "own_isp:OwnIsp"


def test_a_class_of_your_own_trains_and_loads_back(own: str, folders: dict[str, str], tmp_path: Path) -> None:
    run = train(config(folders, own), tmp_path / "run", echo=lambda line: None)
    loaded = load_run(run)
    assert (loaded.net.name, loaded.spec_fields["architecture"], loaded.step) == ("own-isp", own, 3)
    assert reach(build_isp(own), 32) == loaded.net.halo


def test_syenet_trains_with_statistics_in_the_average(folders: dict[str, str], tmp_path: Path) -> None:
    loaded = load_run(train(config(folders, "syenet"), tmp_path / "run", echo=lambda line: None))
    statistics = [b for n, b in loaded.net.named_buffers() if n.endswith("running_mean")]
    assert statistics
    assert all(s.abs().max() > 0 for s in statistics)
    x = planes(32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.net.deploy()(x), loaded.net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ISPS)
def test_every_network_trains_in_every_mode(name: str, mode: Mode, folders: dict[str, str], tmp_path: Path) -> None:
    run = train(config(folders, name, mode, steps=20, potential_width=4), tmp_path / "run", echo=lambda line: None)
    loaded = load_run(run)
    x = planes(32, 32)
    with torch.no_grad():
        picture = loaded.net(x)
    assert loaded.step == 20
    assert picture.isfinite().all()


def test_supervised_runs_use_the_loss_and_the_optimiser_of_the_architecture(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps of LAN as the trainer takes them, against RAdam on its loss by hand."""
    from eguot_train.isps.lan import Lan

    seen: list[tuple[Tensor, Tensor]] = []
    original = Lan.original_loss

    def spy(self: Lan, rendered: Tensor, truth: Tensor) -> Tensor:
        seen.append((rendered.detach().clone(), truth.clone()))
        return original(self, rendered, truth)

    kinds: list[dict[str, object]] = []
    radam = torch.optim.RAdam.__init__
    monkeypatch.setattr(Lan, "original_loss", spy)
    monkeypatch.setattr(
        torch.optim.RAdam,
        "__init__",
        lambda self, p, lr, **k: (kinds.append({"lr": lr, **k}), radam(self, p, lr, **k))[1],
    )
    run = train(config(folders, "lan"), tmp_path / "run", echo=lambda line: None)
    assert kinds == [{"lr": 1e-3, "betas": (0.9, 0.999)}]
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    mean = np.mean([float(original(Lan(), r, t).mean()) for r, t in seen])
    assert len(seen) == 3
    assert logged[-1]["loss_fidelity"] == pytest.approx(mean, rel=1e-5)


def test_a_crop_the_network_cannot_take_is_refused_before_a_folder_is_made(
    folders: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="multiples of 8, not 36"):
        train(config(folders, "unet32", crop=36), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "unknown ISP 'nothing': use one of qisp-xs, qisp-s"),
        ("no_such_module:Net", "cannot import no_such_module"),
        ("json:JSONDecoder", "must be a subclass of"),
        ("own_isp:Missing", "has no such class"),
        ("../own_isp:OwnIsp", "unknown ISP"),
    ],
)
def test_names_that_are_no_architecture_are_refused(own: str, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_isp(name)


class _Broken(IspNet):
    name, halo = "broken", 1

    def body(self, planes: Tensor) -> Tensor:
        return planes


def test_a_class_that_breaks_the_contract_is_told_what() -> None:
    with pytest.raises(UsageError, match=r"must give \[1, 3, 96, 128\], it gave \[1, 1, 96, 128\]"):
        checked(_Broken(), "here:_Broken")
    net = _Broken()
    net.multiple = 4
    with pytest.raises(UsageError, match="halo must be a multiple"):
        checked(net, "here:_Broken")
    with pytest.raises(UsageError, match="give the class a `name`"):
        checked(IspNet(), "here:IspNet")
    with pytest.raises(UsageError, match="subclass"):
        checked(nn.Conv2d(4, 12, 1), "torch.nn:Conv2d")


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("faulty_a", "def __init__(self, width): pass", r"making it, without arguments, fails \(TypeError"),
        (
            "faulty_c",
            "def __init__(self): __import__('json').loads('{')",
            r"JSONDecodeError: .*, faulty_c\.py line 5\)",
        ),
        ("faulty_b", "def body(self, x): return self.no", r"stop it \(AttributeError: .*no.*, faulty_b\.py line 5\)"),
    ],
)
def test_faults_of_an_own_class_are_one_line_with_a_place(
    name: str, code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}.py").write_text(
        f"from eguot_train.isps import IspNet\n\nclass Net(IspNet):\n    name, halo = 'net', 1\n    {code}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=words):
        build_isp(f"{name}:Net")
    (tmp_path / f"{name}_syntax.py").write_text("def\n")
    with pytest.raises(UsageError, match=rf"fails \(SyntaxError: .*{name}_syntax\.py, line 1\)\)"):
        build_isp(f"{name}_syntax:Net")
    (tmp_path / f"{name}_broken.py").write_text("1 / 0\n")
    with pytest.raises(UsageError, match=r"fails \(ZeroDivisionError: division by zero, faulty_._broken.py line 1\)"):
        build_isp(f"{name}_broken:Net")
    with pytest.raises(UsageError, match="names a file; write own:Net"):
        build_isp("own.py:Net")
