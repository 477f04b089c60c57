"""The committee: whom gradients reach, what weights do, penalties, checkpoints, an expert of one's own."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from natural_images import blur, checker, coarse, gain, natural
from torch import Tensor, nn

from eguot_sdk.errors import CheckpointError, UsageError
from eguot_train.experts import ColourExpert, Committee, Expert, FrequencyExpert, StructureExpert
from eguot_train.experts.base import Features
from eguot_train.experts.frequency import frequency_features


def make(gamma: float = 10.0, seed: int = 0) -> Committee:
    torch.manual_seed(seed)
    experts = [ColourExpert(8), StructureExpert(8), FrequencyExpert(8)]
    return Committee(experts, (0.4, 0.3, 0.3), lr=1e-3, gamma=gamma, penalty_every=2)


@pytest.fixture(scope="module")
def real() -> Tensor:
    return natural(4, 64, 1)


@pytest.fixture(scope="module")
def fake() -> Tensor:
    return checker(gain(blur(natural(4, 64, 2)), 0, 1.1), 0.01)


def digest(module: nn.Module) -> str:
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in module.state_dict().values())).hexdigest()


def test_gradients_never_reach_reals_or_references(real: Tensor, fake: Tensor) -> None:
    committee = make()
    inputs = [t.clone().requires_grad_(True) for t in (real, fake, coarse(real), coarse(fake))]
    r, f, rr, fr = inputs
    committee.step(r, f, rr, fr)
    assert all(t.grad is None for t in inputs)
    for loss in committee.losses(f, r, fr, rr).values():
        loss.backward()
    assert f.grad is not None
    assert f.grad.abs().sum() > 0
    assert r.grad is None
    assert rr.grad is None
    assert fr.grad is None


def test_losses_leave_the_experts_alone(real: Tensor, fake: Tensor) -> None:
    committee = make()
    committee.step(real, fake, coarse(real), coarse(fake))
    before = digest(committee)
    leaf = fake.clone().requires_grad_(True)
    total = sum(committee.losses(leaf, real, coarse(fake), coarse(real)).values())
    torch.autograd.grad(total, leaf)
    assert digest(committee) == before


@pytest.mark.parametrize("gamma", [0.0, 10.0])
def test_a_real_of_weight_zero_has_no_influence(real: Tensor, fake: Tensor, gamma: float) -> None:
    weights = torch.tensor([4 / 3, 0.0, 4 / 3, 4 / 3])
    odd = real.clone()
    odd[1] = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(9))
    results = []
    for reals in (real, odd):
        committee = make(gamma)
        for _ in range(3):
            committee.step(reals, fake, coarse(reals), coarse(fake), weights)
        results.append((committee.state_dict(), committee.losses(fake, reals, coarse(fake), coarse(reals), weights)))
    for key, value in results[0][0].items():
        assert torch.equal(value, results[1][0][key]), key
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])
    committee = make(gamma)
    for _ in range(3):
        committee.step(odd, fake, coarse(odd), coarse(fake))
    assert any(not torch.equal(v, results[0][0][k]) for k, v in committee.state_dict().items())


def test_penalised_gradients_are_finite_even_on_flat_pictures(real: Tensor) -> None:
    committee = make()
    for flat in (torch.zeros_like(real), torch.ones_like(real), torch.full_like(real, 1.4)):
        logged = committee.step(real, flat, coarse(real), flat)
        assert all(torch.tensor(v).isfinite() for v in logged.values())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in committee.parameters())
        leaf = flat.clone().requires_grad_(True)
        for loss in committee.losses(leaf, real, flat, coarse(real)).values():
            (gradient,) = torch.autograd.grad(loss, leaf)
            assert gradient.isfinite().all()


class _Linear(Expert):
    """Mean colour through one linear layer, so that its penalty has a closed form."""

    name = "linear"

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1, bias=False)

    def transform(self, rgb: Tensor, reference: Tensor | None = None) -> Features:
        return (rgb.mean((2, 3)),)

    def judge(self, features: Features) -> Tensor:
        return self.head(features[0]).squeeze(1)


def test_step_against_the_formula(real: Tensor, fake: Tensor) -> None:
    """softplus(-(D(y) - D(t))) by weight plus gamma / 2 (R1 by weight + R2), from the definition."""
    weights = torch.tensor([0.5, 1.5, 0.0, 2.0])
    torch.manual_seed(0)
    expert = _Linear()
    w = expert.head.weight.detach().clone().requires_grad_(True)
    margin = (real - fake).mean((2, 3)) @ w[0]
    loss = (weights * torch.log1p(torch.exp(-margin))).mean()
    penalty = 10 / 2 * (weights.mean() + 1) * w.square().sum()
    (want,) = torch.autograd.grad(loss + penalty, w)
    want = want / want.norm() if want.norm() > 1 else want
    committee = Committee([expert], [1.0], penalty_every=1)
    logged = committee.step(real, fake, weights=weights)
    assert logged["loss_d_linear"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert logged["sign_linear"] == pytest.approx(float((margin.detach() > 0).float().mean()))
    assert expert.head.weight.grad is not None
    torch.testing.assert_close(expert.head.weight.grad, want, rtol=1e-4, atol=1e-7)


def test_fakes_and_reals_get_opposite_losses(real: Tensor, fake: Tensor) -> None:
    committee = make()
    logged = committee.step(real, fake, coarse(real), coarse(fake))
    plain = copy.deepcopy(committee).losses(fake, real, coarse(fake), coarse(real))
    assert set(plain) == {"colour", "structure", "frequency"}
    assert set(logged) == {f"{kind}_{name}" for kind in ("loss_d", "sign") for name in plain}
    # softplus(m) - softplus(-m) = m: the two sides differ by the mean margin, which training makes positive.
    for _ in range(30):
        committee.step(real, fake, coarse(real), coarse(fake))
    after = committee.losses(fake, real, coarse(fake), coarse(real))
    assert all(after[name] > plain[name] for name in plain)


def test_restored_committee_goes_on_bit_for_bit(real: Tensor, fake: Tensor) -> None:
    one = make()
    for _ in range(3):
        one.step(real, fake, coarse(real), coarse(fake))
    two = make(seed=5)
    two.restore({key: value.clone() for key, value in one.tensors().items()})
    for _ in range(3):
        assert one.step(real, fake, coarse(real), coarse(fake)) == two.step(real, fake, coarse(real), coarse(fake))
    assert digest(one) == digest(two)


def test_a_checkpoint_of_other_experts_is_refused() -> None:
    with pytest.raises(CheckpointError, match="committee"):
        Committee([ColourExpert(8)], [1.0]).restore(make().tensors())


def test_names_and_shares_must_match() -> None:
    with pytest.raises(UsageError, match="different names"):
        Committee([ColourExpert(8), ColourExpert(8)], [0.5, 0.5])
    with pytest.raises(UsageError, match="one share"):
        Committee([ColourExpert(8)], [0.5, 0.5])


def test_an_expert_of_ones_own_learns() -> None:
    """The example of `experts/base.py`: frozen features, a trained head."""

    class TextureExpert(Expert):
        name = "texture"

        def __init__(self, backbone: nn.Module) -> None:
            super().__init__()
            self.backbone = backbone.eval().requires_grad_(False)
            self.head = nn.Sequential(nn.Conv2d(64, 64, 1), nn.LeakyReLU(0.2), nn.Conv2d(64, 1, 1))

        def transform(self, rgb: Tensor, reference: Tensor | None = None) -> Features:
            return (self.backbone(rgb.clamp(0, 1)),)

        def judge(self, features: Features) -> Tensor:
            return self.head(features[0]).mean((1, 2, 3))

    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 64, 5, stride=2), nn.ReLU())
    committee = Committee([TextureExpert(backbone)], [0.1], lr=1e-3)
    before = digest(backbone)
    for seed in range(40):
        logged = committee.step(natural(8, 64, seed), natural(8, 64, 500 + seed) + 0.3)
    assert logged["sign_texture"] == 1.0
    assert digest(backbone) == before


def test_penalties_that_are_taken_seldom_count_for_the_steps_between(real: Tensor, fake: Tensor) -> None:
    """At every third step three times gamma / 2 (R1 + R2), in between none; from the definition."""
    torch.manual_seed(0)
    expert = _Linear()
    committee = Committee([expert], [1.0], lr=1e-9, penalty_every=3)
    for step in range(4):
        w = expert.head.weight.detach().clone().requires_grad_(True)
        loss = torch.log1p(torch.exp(-(real - fake).mean((2, 3)) @ w[0])).mean()
        if step % 3 == 0:
            loss = loss + 3 * 10 / 2 * 2 * w.square().sum()
        (want,) = torch.autograd.grad(loss, w)
        want = want / want.norm() if want.norm() > 1 else want  # the gradient's length is at most 1
        committee.step(real, fake)
        assert expert.head.weight.grad is not None
        torch.testing.assert_close(expert.head.weight.grad, want, rtol=1e-4, atol=1e-7)


def test_a_step_gathers_statistics_of_its_reals_by_weight(real: Tensor, fake: Tensor) -> None:
    expert = FrequencyExpert(8)
    weights = torch.tensor([0.5, 1.5, 0.0, 2.0])
    committee = Committee([expert], [1.0])
    committee.step(real, fake, weights=weights)
    expected = (weights[:, None, None] * frequency_features(real)[1]).sum(0) / 4
    torch.testing.assert_close(expert.vector_scale.mean, expected)
    committee.losses(fake, real, weights=weights)
    torch.testing.assert_close(expert.vector_scale.mean, expected)  # a loss for the network gathers nothing


def test_an_adversarys_step_forgets_where_it_came_from(real: Tensor, fake: Tensor) -> None:
    """Without momentum: once reals and fakes change sides, the very next step turns round."""
    torch.manual_seed(0)
    expert = _Linear()
    committee = Committee([expert], [1.0], lr=1e-3, gamma=0.0)
    for _ in range(5):
        committee.step(real, fake)
    before = expert.head.weight.detach().clone()
    committee.step(fake, real)
    assert expert.head.weight.grad is not None
    moved = expert.head.weight.detach() - before
    assert (moved.sign() == -expert.head.weight.grad.sign()).all()
