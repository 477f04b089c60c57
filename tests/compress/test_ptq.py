"""Rounding of weights against exhaustive search, and post-training quantisation against plain rounding."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from eguot_compress.cli import distill, qat
from eguot_compress.cli import quantize as command
from eguot_compress.convert import convert
from eguot_compress.fake_quant import QuantIsp, calibrate, quantise_body
from eguot_compress.material import Folders
from eguot_compress.ptq import half_weights, post_train, quantize, round_rows
from eguot_compress.quant_run import FILE, load_scales
from eguot_sdk.errors import CheckpointError, UsageError
from eguot_train.checkpoint import load_run
from eguot_train.isps.base import IspNet


def test_independent_inputs_are_rounded_to_nearest() -> None:
    torch.manual_seed(0)
    weight, scale = torch.randn(3, 10), torch.tensor([0.1, 0.05, 0.2])
    nearest = torch.round(weight / scale[:, None]).clamp(-127, 127) * scale[:, None]
    torch.testing.assert_close(round_rows(weight, scale, torch.eye(10)), nearest)


def test_like_inputs_let_errors_cancel() -> None:
    """Against the best of all roundings up or down, found by trying them all."""
    torch.manual_seed(1)
    scale = torch.tensor([0.25])
    weight = (torch.randint(-9, 9, (1, 8)) + 0.4) * scale  # nearest rounds all of them down
    inputs = 0.5 + 0.05 * torch.randn(200, 8)
    moments = inputs.T @ inputs

    def error(candidate: Tensor) -> float:
        return float(((weight - candidate) @ inputs.T).square().sum())

    steps = torch.floor(weight / scale)
    best = min(error((steps + torch.tensor(up)) * scale) for up in itertools.product((0.0, 1.0), repeat=8))
    nearest = error(torch.round(weight / scale) * scale)
    found = error(round_rows(weight, scale, moments))
    assert nearest > 20 * best
    assert found < nearest / 5


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    moments = torch.zeros(4, 4)
    moments[0, 0] = 1.0
    weight = torch.tensor([[0.3, 0.2, 0.1, -0.2]])
    assert torch.isfinite(round_rows(weight, torch.tensor([0.1]), moments)).all()


def loss_of(net: IspNet, reference: Tensor, pictures: Tensor, bits: int) -> float:
    rounded, state = post_train(net, pictures, bits=bits)  # type: ignore[arg-type]
    body = quantise_body(rounded, bits=bits)  # type: ignore[arg-type]
    body.load_state(state)
    return float((QuantIsp(body, net.shuffle)(pictures).detach() - reference).square().mean())


def test_better_than_plain_rounding(tiny: IspNet, pictures: Tensor) -> None:
    reference = tiny(pictures).detach().clamp(0, 1)
    plain = quantise_body(tiny)
    calibrate(plain, [pictures])
    plain_loss = float((QuantIsp(plain, 2)(pictures).detach() - reference).square().mean())
    assert loss_of(tiny, reference, pictures, 8) < 0.7 * plain_loss


def test_the_network_given_is_left_alone(tiny: IspNet, pictures: Tensor) -> None:
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    post_train(tiny, pictures, bits=8)
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())


def test_weights_lie_on_their_steps(tiny: IspNet, pictures: Tensor) -> None:
    rounded, state = post_train(tiny, pictures, bits=None)
    assert state.activations == {}
    for name, scales in state.weights.items():
        weight = rounded.get_submodule(name).weight.detach()  # type: ignore[operator]
        steps = weight / torch.tensor(scales)[:, None, None, None]
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
        assert float(steps.abs().max()) <= 127.001


def test_means_are_kept(tiny: IspNet, pictures: Tensor) -> None:
    """No cast: the mean colour of the calibration pictures stays."""
    rounded, state = post_train(tiny, pictures, bits=8)
    body = quantise_body(rounded)
    body.load_state(state)
    exact, found = (
        tiny(pictures).detach().clamp(0, 1).mean((0, 2, 3)),
        QuantIsp(body, 2)(pictures).detach().mean((0, 2, 3)),
    )
    assert float((exact - found).abs().max()) < 0.5 / 255


class _Grouped(nn.Module):
    """Groups, strides, dilation and string padding."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 8, 3, padding="same", groups=2)
        self.b = nn.Conv2d(8, 8, 3, stride=2, padding=2, dilation=2, groups=8)
        self.tail = nn.Conv2d(8, 48, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.tail(torch.relu(self.b(torch.relu(self.a(x)))))  # type: ignore[no-any-return]


def test_groups_strides_and_dilation(pictures: Tensor) -> None:
    torch.manual_seed(0)
    net = _Grouped().eval()
    rounded, state = post_train(net, pictures, bits=None)  # type: ignore[arg-type]
    body = quantise_body(rounded, bits=None)
    body.load_state(state)
    exact, found = net.body(pictures), body(pictures)
    assert float((exact - found).detach().abs().mean()) < 0.01 * float(exact.detach().abs().mean())


# Runs.


@pytest.fixture(scope="module")
def small(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(run, tmp_path_factory.mktemp("quantised") / "small")


def test_a_quantised_run_converts_to_exactly_its_scales(run: Path, tmp_path: Path) -> None:
    quantize(run, tmp_path / "small")
    state = load_scales(tmp_path / "small")
    assert state is not None
    (result,) = convert(tmp_path / "small", tmp_path / "out", precisions=["w8a8"])
    assert result.problem is None
    assert result.path is not None
    from ai_edge_litert.interpreter import Interpreter

    stored = set()
    for tensor in Interpreter(str(result.path)).get_tensor_details():
        scales = tensor["quantization_parameters"]["scales"]
        if len(scales) == 1:
            stored.add((float(scales[0]), int(tensor["quantization"][1])))
    assert stored == set(state.activations.values())


def test_what_it_learns_from_is_said(
    run: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(run, tmp_path / "one", folders=Folders(pairs=pairs))
    assert "calibration: pairs (3)" in capsys.readouterr().err
    quantize(run, tmp_path / "two")
    assert "calibration: procedural scenes (16)" in capsys.readouterr().err
    for seed in ("-1", str(2**63)):
        arguments = [str(run), "--out", str(tmp_path / "three"), "--seed", seed]
        for made in (command, qat, distill):
            assert (
                CliRunner().invoke(made, [*arguments, *(["--isp", "qisp-s"] if made is distill else [])]).exit_code == 2
            )


def test_an_existing_folder_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        quantize(run, tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r.pop("weights"),
        lambda r: r.update(version=99),
        lambda r: r["activations"].update(q_input=[float("nan"), 0]),
        lambda r: r["activations"].update(q_input=[0.1, 900]),
        lambda r: r.update(checkpoint="999999.safetensors"),
        lambda r: r.update(activations=[1, 2]),
        lambda r: r["activations"].update(q_input=[10**400, 0]),
        lambda r: r["activations"].update(q_input=[0.1, float("inf")]),
        lambda r: r.pop("checkpoint"),
        lambda r: r.update(float_layers=["nope"]),
        lambda r: r.update(float_layers=[["tail"]]),
        lambda r: r["activations"].update(q_input=[1e300, 0]),
        lambda r: r["activations"].update(q_input=[1e-60, 0]),
        lambda r: r["weights"].update(spare=[1.0, 1e39]),
    ],
)
def test_damaged_scales_are_refused(small: Path, tmp_path: Path, damage: Callable[[dict[str, object]], object]) -> None:
    path = shutil.copytree(small, tmp_path / "small") / FILE
    record = json.loads(path.read_text())
    damage(record)
    for text in (json.dumps(record), "[" * 100_000, "{"):
        path.write_text(text)
        with pytest.raises(CheckpointError) as caught:
            load_scales(tmp_path / "small")
        assert "\n" not in str(caught.value)


def test_scales_of_another_architecture_are_refused(run: Path, tmp_path: Path, make_run: Callable[..., Path]) -> None:
    quantize(run, tmp_path / "small")
    other = make_run(tmp_path / "medium", "qisp-m")
    record = json.loads((tmp_path / "small" / FILE).read_text())
    (other / FILE).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="do not fit"):
        convert(other, tmp_path / "out", precisions=["w8a8"])


def test_the_run_still_loads_as_a_float_run(run: Path, tmp_path: Path) -> None:
    quantize(run, tmp_path / "small")
    loaded = load_run(tmp_path / "small")
    assert loaded.state["made_by"]["command"] == "quantize"
    assert loaded.step == load_run(run).step


def test_fp16_weights_make_good_what_a_bias_loses(tiny: IspNet, pictures: Tensor) -> None:
    with torch.no_grad():
        for conv in (tiny.first, tiny.second, tiny.tail):
            conv.bias.add_(0.5)  # type: ignore[operator, union-attr]
    plain = copy.deepcopy(tiny)
    for parameter in plain.parameters():
        parameter.data = parameter.data.half().float()
    held = half_weights(tiny, pictures)
    assert all(torch.equal(p, p.half().float()) for p in held.parameters())
    with torch.no_grad():
        exact = tiny(pictures)
        error, plain_error = ((net(pictures) - exact).square().mean() for net in (held, plain))
    assert float(error) < 0.2 * float(plain_error)
