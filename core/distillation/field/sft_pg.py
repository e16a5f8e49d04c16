"""SFT-PG: a few-step stochastic sampler tuned by policy gradient against a critic."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.field.imitation import imitate_then
from core.distillation.method import (
    Distillation,
    Family,
    Ground,
    MethodCard,
    Needs,
    Settings,
    StudentKind,
)
from core.distillation.students import NetworkDenoiser
from core.networks import MLP
from core.prediction import Parametrisation
from core.schedule import noise_like, per_sample
from core.training import Player, Stage

__all__ = ["PolicyGradient"]


class PolicyGradient(Distillation):
    """E[D(x0) sum_t grad log p(x_{t-1} | x_t)], D a critic (Fan & Lee, arXiv 2301.13362).

    The sampler is a policy of `nfe` Gaussian steps; D rises where the policy has more mass than
    the data, by an integral probability metric over functions of slope at most 1. A penalty on
    steeper slopes alone holds it there (arXiv 1709.08894): WGAN-GP's, on smaller ones too, keeps
    a critic on a line from ever changing the sign of its slope. The gradient needs D's values
    alone, and none through the sampler. Each sample's baseline is the mean of the others' D,
    which leaves it unbiased. The student imitates the teacher first.

    Args:
        nfe: The policy's steps.
        min_std: Of each step's Gaussian, in units of data_std: the last one of a diffusion's is
            almost sure, and has no useful density.
        penalty: Weight of max(|grad D| - 1, 0)^2.
        critic_updates: The critic's optimiser steps for each of the policy's.
        policy_learning_rate: Of the second stage; a policy gradient's noise is large, and by
            default it is a twentieth of the learning rate.
        imitation_steps: Of `steps`, for the first stage; half of them by default.
    """

    card = MethodCard(
        name="sft-pg",
        title="Shortcut fine-tuning by policy gradient",
        family=Family.PATH,
        student=StudentKind.DENOISER,
        needs=frozenset({Needs.TEACHER, Needs.DATA}),
        nfe=(4, 8),
        reference="arXiv 2301.13362",
        idea="Reward the sampler's random steps for samples that a critic takes for data.",
        equation="E[D(x0) sum_t grad log p(x_{t-1} | x_t)]",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        nfe: int = 4,
        min_std: float = 0.05,
        penalty: float = 10.0,
        critic_updates: int = 5,
        policy_learning_rate: float | None = None,
        imitation_steps: int | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(ground, **settings)
        if nfe < 1 or min_std <= 0 or penalty < 0:
            raise ValueError(
                f"sft-pg needs nfe >= 1, min_std > 0 and penalty >= 0, got {nfe}, {min_std} and "
                f"{penalty}."
            )
        self.nfe = nfe
        self.min_std = min_std * ground.data_std
        self.penalty = penalty
        self.critic_updates = critic_updates
        self.policy_learning_rate = policy_learning_rate or 0.05 * self.learning_rate
        self.imitation_steps = self.steps // 2 if imitation_steps is None else imitation_steps
        self.student = ground.make_network()
        self.denoiser = NetworkDenoiser(self.student, ground.schedule, Parametrisation.V_PREDICTION)
        size = torch.Size(ground.shape).numel()
        self.critic: nn.Module = MLP(size, out_dimension=1, times=0, width=64)

    def step(
        self, x: Tensor, t: Tensor, s: Tensor, cond: Conditioning | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean [B, ...] and standard deviation [B] of the policy's x_s given x_t.

        DDPM's, with the student's x0 for the data's, and no narrower than min_std.
        """
        schedule = self.ground.schedule
        prediction = self.denoiser(x, t, cond)
        sigma_s = schedule.sigma(s)
        ratio = schedule.alpha(t) * sigma_s / (schedule.alpha(s) * schedule.sigma(t))
        std = sigma_s * (1 - ratio.square()).clamp(min=0).sqrt()
        kept = (sigma_s.square() - std.square()).clamp(min=0).sqrt()
        mean = (
            per_sample(schedule.alpha(s), x) * prediction.x0 + per_sample(kept, x) * prediction.eps
        )
        return mean, std.clamp(min=self.min_std)

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        """The policy's states, with its fresh noise."""
        states = [x]
        for t, s in self._pairs(x, nfe):
            mean, std = self.step(states[-1], t, s, cond)
            states.append(mean + per_sample(std, mean) * noise_like(mean, generator))
        return states

    def log_probability(self, states: Sequence[Tensor], cond: Conditioning | None) -> Tensor:
        """sum_t log p(x_{t-1} | x_t) [B] of N + 1 states, less what no parameter changes.

        Differentiable in the student; the states are taken as they are.
        """
        steps = self._pairs(states[0], len(states) - 1)
        total = torch.zeros(len(states[0]), dtype=states[0].dtype, device=states[0].device)
        for (x, x_s), (t, s) in zip(itertools.pairwise(states), steps, strict=True):
            mean, std = self.step(x.detach(), t, s, cond)
            off = (x_s.detach() - mean) / per_sample(std, mean)
            total = total - off.square().flatten(1).sum(1) / 2
        return total

    def advantage(self, value: Tensor) -> Tensor:
        """Each of value [B] less the mean of the others."""
        return (value - value.mean()) * (len(value) / (len(value) - 1))

    def loss(self, generator: torch.Generator) -> Tensor:
        """The policy's: a scalar whose gradient is the policy gradient, of no meaning itself."""
        states, cond = self._rollout(generator)
        with torch.no_grad():
            value = self.critic(states[-1].flatten(1))[:, 0]
        return (self.advantage(value) * self.log_probability(states, cond)).mean()

    def critic_loss(self, generator: torch.Generator) -> Tensor:
        """E D(data) - E D(policy) + penalty max(|grad D| - 1, 0)^2 between the two."""
        states, _ = self._rollout(generator)
        fake = states[-1].flatten(1)
        real = self.ground.data(self.batch, generator).x0.flatten(1)
        mix = torch.rand(self.batch, 1, generator=generator)
        between = (mix * real + (1 - mix) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        penalty = (slope.square().sum(1).add(1e-12).sqrt() - 1).clamp(min=0).square().mean()
        return self.critic(real).mean() - self.critic(fake).mean() + self.penalty * penalty

    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student, "critic": self.critic}

    def stages(self) -> Sequence[Stage]:
        critic = Player(
            module=self.critic,
            loss=self.critic_loss,
            learning_rate=self.learning_rate,
            updates=self.critic_updates,
        )
        policy = Player(
            module=self.student, loss=self.loss, learning_rate=self.policy_learning_rate
        )
        return imitate_then(
            self.denoiser,
            self.ground,
            imitation_steps=self.imitation_steps,
            tuning_steps=self.steps - self.imitation_steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            tuning={"critic": critic, "policy": policy},
        )

    @torch.no_grad()
    def _rollout(self, generator: torch.Generator) -> tuple[list[Tensor], Conditioning | None]:
        cond = self.ground.data(self.batch, generator).cond
        start = self.noise(self.batch, generator)
        return self.sample(start, self.nfe, cond, generator), cond

    def _pairs(self, x: Tensor, nfe: int) -> list[tuple[Tensor, Tensor]]:
        times = self.ground.grid(nfe).to(x.device, x.dtype)
        return list(itertools.pairwise(times[:, None].expand(-1, len(x)).unbind()))
