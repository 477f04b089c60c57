"""Training with rounding in place and distillation: short real runs, and the parts against their definitions."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eguot_compress import finetune
from eguot_compress import qat as qat_module
from eguot_compress.calibration import CROP, crop_side
from eguot_compress.convert import convert
from eguot_compress.distill import distill
from eguot_compress.finetune import _colour_committee, _loss, _with_expert, confidence, transpose_planes
from eguot_compress.material import Folders, Material
from eguot_compress.qat import qat
from eguot_compress.quant_run import load_quantised, load_scales
from eguot_sdk.errors import CheckpointError, EguotError, UsageError
from eguot_sdk.ingest import pack
from eguot_sdk.isp import ISP
from eguot_sdk.ispfile import read_spec
from eguot_sdk.pairs import write_pair
from eguot_train.checkpoint import checkpoints, load_run, read_checkpoint, save_checkpoint
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera, dng_bytes


def test_transposed_planes_are_planes_of_the_transposed_mosaic() -> None:
    mosaic = np.arange(8 * 12, dtype=np.float32).reshape(8, 12)
    planes = torch.from_numpy(pack(mosaic)).permute(2, 0, 1)[None]
    expected = torch.from_numpy(pack(np.ascontiguousarray(mosaic.T))).permute(2, 0, 1)[None]
    assert torch.equal(transpose_planes(planes), expected)


class _Constant(nn.Module):
    def __init__(self, tilt: float) -> None:
        super().__init__()
        self.tilt = tilt

    def forward(self, planes: Tensor) -> Tensor:
        h, w = 2 * planes.shape[2], 2 * planes.shape[3]
        return (0.5 + self.tilt * torch.linspace(-1, 1, h)[:, None]).expand(len(planes), 3, h, w)


def test_a_teacher_that_contradicts_itself_counts_less() -> None:
    planes = torch.rand(2, 4, 16, 16)
    for tilt, low, high in ((0.0, 0.999, 1.0), (0.2, 0.0, 0.3)):
        teacher = _Constant(tilt)
        weight = confidence(teacher, planes, teacher(planes))
        assert weight.shape == (2,)
        assert low <= float(weight.min()) <= float(weight.max()) <= high


def test_material_is_a_function_of_seed_and_step(run: Path, pairs: Path) -> None:
    loaded = load_run(run)
    one, two = (Material(loaded, Folders(pairs=pairs), seed=s, batch=2) for s in (3, 4))
    again = Material(loaded, Folders(pairs=pairs), seed=3, batch=2)
    planes, truth = one.at(5)
    assert planes.shape == (2, 4, CROP, CROP)
    assert truth is not None
    assert truth.shape == (2, 3, 2 * CROP, 2 * CROP)
    assert torch.equal(planes, again.at(5)[0])
    assert not torch.equal(planes, two.at(5)[0])
    assert not torch.equal(planes, one.at(6)[0])
    assert [s for s, _, _ in one.stream(4)] == [0, 1, 2, 3]


def test_crops_are_as_small_as_pictures_ask(run: Path, tmp_path: Path) -> None:
    """There is no option for it, so what is smaller than the usual crop must do."""
    camera = SynthCamera.from_seed(1)
    for i in range(2):
        scene = make_scene(i, 72, 90)
        write_pair(tmp_path / "pairs", f"s{i}", camera.shoot(scene, f"s{i}"), scene)
    material = Material(load_run(run), Folders(pairs=tmp_path / "pairs"), seed=0, batch=2)
    planes, truth = material.at(0)
    assert planes.shape == (2, 4, 32, 32)
    assert truth is not None
    assert truth.shape == (2, 3, 64, 64)
    assert crop_side([camera.shoot(make_scene(0, 200, 200), "x")], [np.zeros((40, 90, 3), np.uint8)]) == 16
    with pytest.raises(UsageError, match="smaller than 34 px"):
        crop_side([camera.shoot(make_scene(0, 32, 90), "x")])


def test_folders_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not both"):
        Folders(pairs=tmp_path, raw=tmp_path)
    with pytest.raises(UsageError, match="needs --raw"):
        Folders(srgb=tmp_path)


def test_photos_need_a_run_with_an_alignment(run: Path, tmp_path: Path, pairs: Path) -> None:
    from PIL import Image

    from eguot_sdk.pairs import list_pairs

    pair = list_pairs(pairs)[0]
    raws, photos = tmp_path / "raws", tmp_path / "photos"
    for folder in (raws, photos):
        folder.mkdir()
    folders = Folders(raw=raws, srgb=photos)
    with pytest.raises(UsageError, match="no raws"):
        Material(load_run(run), folders, seed=0, batch=1)
    (raws / "raw.dng").write_bytes(dng_bytes(pair.frame()))
    Image.fromarray(pair.truth()).save(photos / "photo.png")
    with pytest.raises(UsageError, match="this one holds no colour alignment"):
        Material(load_run(run), folders, seed=0, batch=1)


def test_qat_gives_a_run_that_converts(run: Path, pairs: Path, tmp_path: Path) -> None:
    out = qat(run, tmp_path / "trained", folders=Folders(pairs=pairs), steps=6, seed=1)
    wanted = {"checkpoints", "config.json", "log.jsonl", "quantisation.json"}
    assert {p.name for p in out.iterdir()} - {"tensorboard"} == wanted
    state = load_scales(out)
    assert state is not None
    assert state.activations["q_input"] == (pytest.approx(1 / 255), -128)
    (result,) = convert(out, tmp_path / "files", precisions=["w8a8"])
    assert result.problem is None
    assert result.parity.twin.over_2_lsb <= 0.002
    assert result.path is not None
    told = read_spec(result.path).provenance
    assert (told["made_by"]["command"], told["made_by"]["steps"], told["made_by"]["seed"]) == ("qat", 6, 1)
    assert "calibration" not in told  # nothing was fitted on the crops of this conversion
    assert told["golden"]["files"] > 0


@pytest.mark.parametrize("isp", ["unet32", "lan"])
def test_networks_that_are_written_out_can_be_trained_with_rounding(
    make_run: Callable[..., Path], isp: str, pairs: Path, tmp_path: Path
) -> None:
    """Transposed and packed convolutions become plain ones: the run holds them so."""
    run = make_run(tmp_path / "run", isp=isp)
    out = qat(run, tmp_path / "trained", folders=Folders(pairs=pairs), steps=2, seed=1)
    before, after = load_run(run).net.state_dict(), load_run(out).net.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    (result,) = convert(out, tmp_path / "files", precisions=["w8a8"])
    assert result.problem is None
    assert result.parity.twin.max_lsb <= 1.001


def test_a_run_trained_with_rounding_is_measured_against_its_float_network(
    run: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps so wide that the trained weights are another network: float files and drops are the float network's."""
    monkeypatch.setattr(qat_module, "LR", 2e-2)
    out = qat(run, tmp_path / "trained", folders=Folders(pairs=pairs), steps=12, seed=1)
    before, after = load_run(run).net.state_dict(), load_run(out).net.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    held = load_quantised(out, load_run(out).net)
    assert held is not None
    deployed = load_run(run).net.deploy().state_dict()
    assert any(not torch.allclose(v, deployed[k], atol=0.02) for k, v in held[0].state_dict().items())
    results = {c.precision: c for c in convert(out, tmp_path / "files", precisions=["fp32", "w8a8"])}
    plain = {c.precision: c for c in convert(run, tmp_path / "plain", precisions=["fp32"])}
    assert results["fp32"].parity.network.psnr_db > 100
    assert plain["fp32"].path is not None
    assert results["fp32"].path is not None
    planes = torch.rand(1, 4, 32, 32, generator=torch.manual_seed(0))
    pictures = []
    for path in (plain["fp32"].path, results["fp32"].path):
        with ISP.load(path) as isp:
            pictures.append(isp.run(planes[0].permute(1, 2, 0).numpy()))
    np.testing.assert_array_equal(*pictures)
    # The file is its own network to the last steps, and far from the float one: both are said.
    assert results["w8a8"].parity.twin.psnr_db > results["w8a8"].parity.network.psnr_db + 3


def test_qat_on_dark_pictures_keeps_the_range_for_white(
    run: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start: dict[str, tuple[float, int]] = {}
    real = qat_module.post_train

    def noted(*args: Any, **kwargs: Any) -> Any:
        net, state = real(*args, **kwargs)
        start.update(state.activations)
        return net, state

    def dark(self: Material, step: int) -> tuple[Tensor, Tensor | None]:
        return torch.full((2, 4, CROP, CROP), 0.05), None

    monkeypatch.setattr(qat_module, "post_train", noted)
    monkeypatch.setattr(Material, "at", dark)
    out = qat(run, tmp_path / "dark", folders=Folders(pairs=pairs), teacher=run, steps=40)
    state = load_scales(out)
    assert state is not None
    assert all(scale >= start[name][0] * 0.999 for name, (scale, _) in state.activations.items())


def test_qat_takes_a_cast_away(run: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = qat_module.post_train

    def tinted(*args: Any, **kwargs: Any) -> Any:
        net, state = real(*args, **kwargs)
        with torch.no_grad():
            net.get_submodule("tail").bias.add_(0.1)
        return net, state

    monkeypatch.setattr(qat_module, "post_train", tinted)
    monkeypatch.setattr(qat_module, "LR", 5e-3)
    monkeypatch.setattr(qat_module, "BATCH", 2)
    errors = []
    for steps in (1, 30):
        out = qat(run, tmp_path / f"s{steps}", folders=Folders(pairs=pairs), teacher=run, steps=steps)
        lines = (out / "log.jsonl").read_text().splitlines()
        errors.append(json.loads(lines[-1])["loss"])
    assert errors[1] < 0.8 * errors[0]


def test_qat_is_repeatable(run: Path, pairs: Path, tmp_path: Path) -> None:
    states = [qat(run, tmp_path / n, folders=Folders(pairs=pairs), steps=3, seed=5) for n in ("a", "b")]
    assert load_scales(states[0]) == load_scales(states[1])
    held = [load_quantised(s, load_run(s).net) for s in states]
    nets = [h[0].state_dict() for h in held if h is not None]
    assert len(nets) == 2
    assert all(torch.equal(v, nets[1][k]) for k, v in nets[0].items())


def test_a_student_comes_nearer_to_its_teacher(run: Path, pairs: Path, tmp_path: Path) -> None:
    teacher = load_run(run).net
    planes, _ = Material(load_run(run), Folders(pairs=pairs), seed=99, batch=4).at(0)
    target = teacher(planes).detach().clamp(0, 1)
    errors = []
    for steps in (1, 60):
        out = distill(run, tmp_path / f"d{steps}", isp="qisp-s", folders=Folders(pairs=pairs), steps=steps)
        student = load_run(out)
        assert student.config.isp == "qisp-s"
        errors.append(float((student.net(planes).detach() - target).abs().mean()))
    assert errors[1] < 0.6 * errors[0]


def test_a_student_with_batch_norm_keeps_its_statistics(run: Path, pairs: Path, tmp_path: Path) -> None:
    """The student of the run is the one that was trained: means that were never measured would be zero."""
    out = distill(run, tmp_path / "out", isp="syenet", folders=Folders(pairs=pairs), steps=3)
    norms = [m for m in load_run(out).net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(m.running_mean is not None and bool((m.running_mean != 0).any()) for m in norms)


def test_what_cannot_be_a_teacher(run: Path, tmp_path: Path, make_run: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError):
        qat(run, tmp_path / "x", teacher=tmp_path, steps=1)
    camera = make_run(tmp_path / "camera", color_input="camera")
    with pytest.raises(UsageError, match="must take the same"):
        qat(run, tmp_path / "x", teacher=camera, steps=1)
    with pytest.raises(UsageError, match="unknown ISP"):
        distill(run, tmp_path / "x", isp="resnet", steps=1)
    assert not (tmp_path / "x").exists()


def test_a_failure_leaves_no_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(qat_module, "fine_tune", broken)
    with pytest.raises(KeyboardInterrupt):
        qat(run, tmp_path / "out", steps=1)
    assert list(tmp_path.iterdir()) == []


def test_the_colour_expert_counts_by_its_share_of_the_gradient() -> None:
    torch.manual_seed(0)
    target, rendered = torch.rand(3, 3, 64, 64), torch.rand(3, 3, 64, 64, requires_grad=True)
    loss = (rendered - target).square().mean()
    (plain,) = torch.autograd.grad(loss, rendered, retain_graph=True)
    committee = _colour_committee(0.03, seed=1)
    assert torch.equal(_with_expert(loss, rendered, target, committee, 0.0), plain)
    added = _with_expert(loss, rendered, target, committee, 0.03) - plain
    assert float(added.norm() / plain.norm()) == pytest.approx(0.03, rel=1e-3)


def test_the_colour_expert_starts_from_the_seed_alone() -> None:
    first = _colour_committee(0.1, seed=5)
    torch.rand(7)
    again, other = _colour_committee(0.1, seed=5), _colour_committee(0.1, seed=6)
    weights = [next(c.parameters()) for c in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_structure_features_see_blur_and_not_brightness() -> None:
    torch.manual_seed(0)
    truth = torch.rand(1, 3, 64, 64) * 0.5
    blurred, brighter = nn.functional.avg_pool2d(truth, 5, 1, 2), truth + 0.2
    planes = torch.rand(1, 4, 32, 32)

    def extra(rendered: Tensor) -> float:
        with_it, without = (float(_loss(rendered, truth, None, planes, weight)[0]) for weight in (1.0, 0.0))
        return with_it - without

    assert extra(truth) == pytest.approx(0, abs=1e-5)
    assert extra(blurred) > 20 * extra(brighter)


def test_distillation_with_structure_features_runs(run: Path, pairs: Path, tmp_path: Path) -> None:
    folders = Folders(pairs=pairs)
    plain = distill(run, tmp_path / "a", isp="robustisp", folders=folders, steps=2)
    other = distill(run, tmp_path / "b", isp="robustisp", folders=folders, steps=2, structure=0.1)
    losses = [json.loads((p / "log.jsonl").read_text().splitlines()[-1])["loss"] for p in (plain, other)]
    assert losses[1] > losses[0]


class _Stopped(BaseException):
    """Stands for a kill: nothing in the code under test handles it."""


@pytest.mark.parametrize("command", ["qat", "distill"])
def test_a_killed_run_goes_on_to_the_same_end(
    command: str, run: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, scales and log are those of a run that nobody stopped."""

    def start(out: Path, resume: bool = False) -> Path:
        if command == "qat":
            return qat(run, out, folders=Folders(pairs=pairs), steps=34, seed=5, resume=resume)
        return distill(run, out, isp="robustisp", folders=Folders(pairs=pairs), steps=34, seed=5, resume=resume)

    monkeypatch.setattr(finetune, "KEEP_EVERY", 10)
    whole = start(tmp_path / "whole")
    at = Material.at

    def stopping(self: Material, step: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        if step == 17:
            raise _Stopped
        return at(self, step)

    monkeypatch.setattr(Material, "at", stopping)
    with pytest.raises(_Stopped):
        start(tmp_path / "out")
    monkeypatch.setattr(Material, "at", at)
    begun = tmp_path / "out.unfinished"
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="go on with --resume, or delete"):
        start(tmp_path / "out")
    out = start(tmp_path / "out", resume=True)
    assert not begun.exists()
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert (out / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()
    (mine, state), (other, wanted) = (read_checkpoint(checkpoints(r)[-1]) for r in (out, whole))
    assert state == wanted
    assert mine.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in mine.items())
    assert load_scales(out) == load_scales(whole)


@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_keeps_what_was_learnt(
    run: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at = Material.at

    def interrupted(self: Material, step: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        if step == 5:
            signal.raise_signal(signal.SIGINT)
        return at(self, step)

    monkeypatch.setattr(Material, "at", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 10 of 30; go on with --resume"):
        distill(run, tmp_path / "out", isp="robustisp", folders=Folders(pairs=pairs), steps=30)
    assert "Ctrl-C again stops at once" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["out.unfinished"]
    assert checkpoints(tmp_path / "out.unfinished" / "progress")[-1].stem == "000010"


def test_what_cannot_be_resumed(run: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = Folders(pairs=pairs)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        distill(run, tmp_path / "out", isp="robustisp", folders=folders, steps=4, resume=True)
    kept = tmp_path / "out.unfinished"
    save_checkpoint(kept / "progress", 2, {}, {"asked": {"command": "distill", "steps": 9}})
    with pytest.raises(UsageError, match="started with teacher=None, which cannot become 'qisp-s'"):
        distill(run, tmp_path / "out", isp="robustisp", folders=folders, steps=4, resume=True)
    assert kept.is_dir()
    checkpoints(kept / "progress")[0].unlink()  # killed before any step was kept: begins anew
    assert distill(run, tmp_path / "out", isp="robustisp", folders=folders, steps=4, resume=True).is_dir()
    assert not kept.exists()


def test_a_loss_that_is_no_number_leaves_no_folder(
    run: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another try would meet it again."""
    monkeypatch.setattr(finetune, "KEEP_EVERY", 10)
    monkeypatch.setattr(
        finetune, "pair_loss", lambda a, b: (a - b).square().mean((1, 2, 3)) / (0 if len(seen) > 12 else 1)
    )
    seen: list[int] = []
    at = Material.at
    monkeypatch.setattr(Material, "at", lambda self, step: seen.append(step) or at(self, step))
    with pytest.raises(EguotError, match="the loss is"):
        distill(run, tmp_path / "out", isp="robustisp", folders=Folders(pairs=pairs), steps=30)
    assert list(tmp_path.iterdir()) == []
