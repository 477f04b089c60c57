"""The committee: trains the experts' discriminators and hands the network one loss per expert.

Relativistic pairing (a fake is judged against the real beside it) with zero-centred penalties on both, taken at
the transforms' outputs. Every pair counts by the outlier weight w(y) of its real, or the experts would bring back
the very targets that the transport discounts. How much each loss counts for the network is the trainer's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eguot_sdk.errors import UsageError

from .. import ranks
from ..checkpoint import load_weights, optimizer_tensors, part, prefixed, restore_optimizer
from ..health import check_finite
from .base import Expert, Features

GAMMA = 10.0
PENALTY_EVERY = 8
GRADIENT_LIMIT = 1.0


class Committee(nn.Module):
    """Experts with their optimiser. `omega`: share of each, by its place in `experts`.

    `parts`: micro-batches of a step. `bf16`: discriminators run in bfloat16, except under a penalty; transforms never.
    """

    def __init__(
        self,
        experts: Sequence[Expert],
        omega: Sequence[float],
        *,
        lr: float = 1e-4,
        gamma: float = GAMMA,
        penalty_every: int = PENALTY_EVERY,
        parts: int = 1,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        names = [expert.name for expert in experts]
        if len(set(names)) != len(names) or len(names) != len(omega):
            raise UsageError(
                f"a committee needs experts of different names and one share for each, got {names} and {omega}"
            )
        self.experts = nn.ModuleList(experts)
        self.omega = dict(zip(names, omega, strict=True))
        self.gamma, self.penalty_every = gamma, penalty_every
        self._parts, self._bf16 = parts, bf16
        trained = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr, betas=(0.0, 0.99))
        self._steps = 0

    def members(self) -> list[Expert]:
        """The experts in their order."""
        return [expert for expert in self.experts if isinstance(expert, Expert)]

    def step(
        self,
        real: Tensor,
        fake: Tensor,
        real_reference: Tensor | None = None,
        fake_reference: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        step: int = 0,
    ) -> dict[str, float]:
        """One step of every discriminator on pictures [B, 3, H, W]; weights [B] of the reals, mean 1.

        Returns, by expert, the loss and the share of pairs judged rightly (`sign_NAME`). Raises TrainingDiverged, which
        names `step`, where a loss or a gradient is no number, before any weight is touched.
        """
        weights = real.new_ones(len(real)) if weights is None else weights.detach()
        penalise = self.gamma > 0 and self._steps % self.penalty_every == 0
        self._steps += 1
        logged = {}
        self.optimizer.zero_grad(set_to_none=True)
        for expert in self.members():
            with torch.no_grad():
                expert.observe(real, weights)
            losses, right = [], []
            for r, f, rr, fr, w in self._chunks(real, fake, real_reference, fake_reference, weights):
                with torch.no_grad():
                    features = _joined(expert.transform(r, rr), expert.transform(f, fr))
                features = tuple(x.requires_grad_(penalise) for x in features)
                logits = expert.judge(features) if penalise else self._judge(expert, features)
                margin = _margin(logits, len(r))
                loss = (w[:, None] * F.softplus(-margin)).mean()
                total = loss
                if penalise:
                    real_square, fake_square = _gradient_squares(logits, features).chunk(2)
                    penalty = (w * real_square + fake_square).mean()
                    total = total + self.penalty_every * self.gamma / 2 * penalty
                (total / self._parts).backward()
                losses.append(loss.detach())
                right.append((margin.detach() > 0).float().mean())
            logged[f"loss_d_{expert.name}"] = float(torch.stack(losses).mean())
            logged[f"sign_{expert.name}"] = float(torch.stack(right).mean())
        norms = {}
        for expert in self.members():
            ranks.average_gradients(expert.parameters())
            norm = torch.nn.utils.clip_grad_norm_(expert.parameters(), GRADIENT_LIMIT)
            norms[f"gradient of the {expert.name} expert"] = float(norm)
        check_finite({**logged, **norms}, step)
        self.optimizer.step()
        return logged

    def losses(
        self,
        fake: Tensor,
        real: Tensor,
        fake_reference: Tensor | None = None,
        real_reference: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The network's loss by expert; gradients reach `fake` alone (and, unless asked otherwise, the experts)."""
        weights = real.new_ones(len(real)) if weights is None else weights.detach()
        found = {}
        for expert in self.members():
            with torch.no_grad():
                seen = expert.transform(real, real_reference)
            logits = self._judge(expert, _joined(seen, expert.transform(fake, fake_reference)))
            found[expert.name] = (weights[:, None] * F.softplus(_margin(logits, len(real)))).mean()
        return found

    def _judge(self, expert: Expert, features: Features) -> Tensor:
        with torch.autocast(features[0].device.type, torch.bfloat16, enabled=self._bf16):
            logits = expert.judge(features)
        return logits.float()

    def _chunks(self, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
        """The tensors' micro-batches; None stays None."""
        return zip(*((None,) * self._parts if x is None else x.chunk(self._parts) for x in tensors), strict=True)

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint must hold: weights, running statistics, optimiser state, step count."""
        return {
            **prefixed("experts", self.experts.state_dict()),
            **prefixed("optimizer", optimizer_tensors(self.optimizer)),
            "steps": torch.tensor(self._steps),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave. Raises CheckpointError when it is of another committee."""
        load_weights(self.experts, part("experts", tensors), "committee")
        restore_optimizer(self.optimizer, part("optimizer", tensors))
        self._steps = int(tensors["steps"])


def _joined(real: Features, fake: Features) -> Features:
    return tuple(torch.cat([r, f]) for r, f in zip(real, fake, strict=True))


def _margin(logits: Tensor, reals: int) -> Tensor:
    """[B, heads] D(real) - D(fake) from the logits of reals and fakes together."""
    logits = logits.reshape(len(logits), -1)
    return logits[:reals] - logits[reals:]


def _gradient_squares(logits: Tensor, features: Features) -> Tensor:
    """[2B] squared norm of each picture's gradient over all features; heads share none, so their sum separates."""
    gradients = torch.autograd.grad(logits.sum(), features, create_graph=True)
    return torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
