"""Rules on networks that break them one at a time, on the zoo's default, and on files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional as F

from eguot_compress import lint as lint_module
from eguot_compress.cli import lint as command
from eguot_compress.convert.tflite import to_tflite
from eguot_compress.lint import NEEDS_HALF, TARGETS, left_to_cpu, lint, lint_network, lint_tflite, receptive_margin
from eguot_sdk.errors import CheckpointError, GateError, UsageError
from eguot_train.checkpoint import build_isp
from eguot_train.isps.base import IspNet


class _Body(IspNet):
    name, halo = "probe", 2

    def __init__(self) -> None:
        super().__init__()
        self.a, self.tail = nn.Conv2d(4, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    def body(self, planes: Tensor) -> Tensor:
        return self.tail(self.middle(self.a(planes)))  # type: ignore[no-any-return]


class _Shuffled(_Body):
    def middle(self, x: Tensor) -> Tensor:
        return F.max_pool2d(torch.relu(F.pixel_shuffle(x, 2)).repeat(1, 4, 1, 1), 2)


class _Sliced(_Body):
    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 3)[:, :, :, ::2]


class _Rank5(_Body):
    def middle(self, x: Tensor) -> Tensor:
        return x.reshape(1, 3, 4, x.shape[2], x.shape[3]).flatten(1, 2)


class _Odd(_Body):
    """A transposed convolution whose maps are one row and column more than twice as large."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(12, 12, 3, stride=2)

    def middle(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.up(x), 2)


class _Prelu(_Body):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.PReLU()

    def middle(self, x: Tensor) -> Tensor:
        return self.act(x)  # type: ignore[no-any-return]


class _Normed(_Body):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(12)
        self.global_context = True

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(x))


class _Squashed(_Body):
    def body(self, planes: Tensor) -> Tensor:
        return torch.tanh(super().body(planes)).mul(0.58).add(0.5)


class _Wrapped(_Body):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 12, 3, padding=1, padding_mode="circular")
        self.global_context = True


class _Repeated(_Body):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 12, 5, padding=2, padding_mode="replicate")


class _NoHalo(_Body):
    halo = 0


class _Tall(_NoHalo):
    """Looks up and down only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.tail = nn.Conv2d(4, 12, (9, 1), padding=(4, 0)), nn.Conv2d(12, 12, 1)


class _Clipped(_NoHalo):
    """Whose clip is closed wherever weights are large."""

    def body(self, planes: Tensor) -> Tensor:
        return (1e3 * super().body(planes)).clamp(0, 1)


@pytest.mark.parametrize(
    ("net", "words", "severity"),
    [
        (_Shuffled, "rank-6", "error"),
        (_Sliced, "GATHER_ND", "error"),
        (_Rank5, "rank 5", "error"),
        (_Odd, "transposed convolution", "error"),
        (_Prelu, "PReLU has no fast int8", "warning"),
        (_Normed, "statistics", "error"),
        (_Squashed, "at the end", "warning"),
        (_Wrapped, "padding_mode 'circular'", "error"),
        (_Repeated, "padding_mode 'replicate'", "error"),
        (_NoHalo, "sees 2 packed pixels past", "error"),
        (_Tall, "sees 4 packed pixels past", "error"),
        (_Clipped, "sees 2 packed pixels past", "error"),
    ],
)
def test_each_rule(net: type[IspNet], words: str, severity: str) -> None:
    assert severity in {f.severity for f in lint_network(net()) if words in f.what}


def test_a_core_ml_file_is_told_from_a_run(tmp_path: Path) -> None:
    (tmp_path / "isp.mlpackage").mkdir()
    with pytest.raises(UsageError, match=r"of files, lint reads \.tflite"):
        lint(str(tmp_path / "isp.mlpackage"))


def test_a_plain_network_is_clean() -> None:
    assert list(lint_network(_Body())) == []
    assert lint("qisp-s") == []


@pytest.mark.parametrize("name", ["qisp-s", "qisp-l"])
def test_margin_measured_equals_margin_declared(name: str) -> None:
    net = build_isp(name)
    assert 0 <= net.halo - receptive_margin(net) < 2 * net.multiple


def test_a_run_and_a_file(run: Path, tiny: IspNet, tmp_path: Path) -> None:
    assert lint(str(run)) == []
    assert lint("default") == []
    path = tmp_path / "tiny.tflite"
    path.write_bytes(to_tflite(tiny, "fp32", side=16))
    assert list(lint_tflite(path)) == []


def test_only_the_targets_asked_for() -> None:
    found = [f for f in lint_network(_Sliced()) if "GATHER_ND" in f.what]
    assert found[0].targets == ("tflite-cpu", "tflite-gpu", "nnapi")
    with pytest.raises(UsageError, match="unknown target"):
        lint("qisp-s", ["toaster"])
    with pytest.raises(UsageError, match="no target given"):
        lint("qisp-s", [])
    with pytest.raises(UsageError, match=r"coreml-ane cannot run a \.tflite"):
        lint("default.tflite", ["coreml-ane"])


def test_what_is_no_isp(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown ISP"):
        lint("resnet")
    with pytest.raises(CheckpointError, match="not a run"):
        lint(str(tmp_path))
    (tmp_path / "net.onnx").touch()
    with pytest.raises(UsageError, match=r"of files, lint reads \.tflite"):
        lint(str(tmp_path / "net.onnx"))


def test_command() -> None:
    result = CliRunner().invoke(command, ["--isp", "qisp-s", "--target", "tflite-gpu"], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout == "qisp-s: clean\n"
    assert set(TARGETS) == {"tflite-cpu", "tflite-gpu", "nnapi", "coreml-ane"}


def test_refused_networks_are_exit_3() -> None:
    result = CliRunner().invoke(command, ["--isp", "liteispnet", "--json"])
    assert isinstance(result.exception, GateError)
    assert '"severity": "error"' in result.stdout
    each = json.loads(result.stdout)["findings"]
    told = CliRunner().invoke(command, ["--isp", "liteispnet"]).stdout.splitlines()[:-1]
    assert len(told) == len({(f["severity"], f["what"], tuple(f["targets"])) for f in each}) < len(each)
    assert [line.partition(":")[0] for line in told] == sorted(line.partition(":")[0] for line in told)


def test_a_target_is_told_its_own_findings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strided slicing stops TFLite files and no Core ML package."""
    monkeypatch.setattr(lint_module, "build_isp", lambda name: _Sliced())
    assert {f.targets for f in lint("qisp-s", ["nnapi"])} == {("nnapi",)}
    assert not [f for f in lint("qisp-s", ["coreml-ane"]) if "GATHER_ND" in f.what]
    assert next(f for f in lint("qisp-s") if "GATHER_ND" in f.what).targets == ("tflite-cpu", "tflite-gpu", "nnapi")


def test_a_halo_that_is_one_too_small_shows_seams() -> None:
    for halo, fine in ((1, False), (2, True)):
        net = _Body()
        net.halo = halo
        assert (list(lint_network(net)) == []) == fine


def test_files_are_told_what_each_delegate_leaves_to_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the published lists: NNAPI has no LEAKY_RELU, neither has GATHER_ND, nobody has a custom op or rank 5."""
    ops = {"CONV_2D": 3, "GATHER_ND": 1, "LEAKY_RELU": 2, "CUSTOM": 1}
    monkeypatch.setattr(lint_module, "describe", lambda path: {"ops": ops, "input": [{"dtype": "int8"}]})
    monkeypatch.setattr(lint_module, "_largest_rank", lambda path: 5)
    found = {f.where: f for f in lint_tflite(tmp_path / "net.tflite")}
    assert set(found) == {"GATHER_ND", "LEAKY_RELU", "CUSTOM", "net.tflite"}
    assert (found["GATHER_ND"].severity, found["GATHER_ND"].targets) == ("warning", ("tflite-gpu", "nnapi"))
    assert (found["LEAKY_RELU"].severity, found["LEAKY_RELU"].targets) == ("warning", ("nnapi",))
    assert (found["CUSTOM"].severity, found["CUSTOM"].targets) == ("error", ("tflite-cpu", "tflite-gpu", "nnapi"))
    assert (found["net.tflite"].severity, found["net.tflite"].targets) == ("error", ("tflite-gpu", "nnapi"))
    assert "rank 5" in found["net.tflite"].what
    monkeypatch.setattr(lint_module, "_largest_rank", lambda path: 4)
    assert "net.tflite" not in {f.where for f in lint_tflite(tmp_path / "net.tflite")}
    assert left_to_cpu("tflite", ops) == {
        "tflite-cpu": ["CUSTOM"], "tflite-gpu": ["CUSTOM", "GATHER_ND"], "nnapi": ["CUSTOM", "GATHER_ND", "LEAKY_RELU"]
    }  # fmt: skip
    assert left_to_cpu("coreml", ["conv"]) == {"coreml-ane": [NEEDS_HALF]}
    assert left_to_cpu("coreml", ["conv"], half=True) == left_to_cpu("onnx", ["Conv"]) == {}


class _Ended(_Body):
    """Its last op has no integer form."""

    def body(self, planes: Tensor) -> Tensor:
        return F.gelu(super().body(planes))


def test_the_last_op_is_looked_at_too() -> None:
    assert any("gelu has no int8 form" in f.what for f in lint_network(_Ended()))


def test_files_with_int16_values_are_slow_everywhere(tmp_path: Path) -> None:
    found = list(lint_tflite(Path(__file__).parents[1] / "data" / "tiny.w8a16.tflite"))
    assert [f.severity for f in found if "int16" in f.what] == ["warning"]
    assert all("int16" in left[0] for left in left_to_cpu("tflite", {"CONV_2D": 1}, int16=True).values())
