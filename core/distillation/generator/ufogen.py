"""UFOGen: a diffusion GAN whose generator says x0, judged one noise level below where it began."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.generator.critic import (
    critic_logits,
    discriminator_loss,
    generator_loss,
)
from core.distillation.generator.noised_start import NoisedStartDistillation
from core.distillation.method import Family, Ground, MethodCard, Needs, Settings, StudentKind
from core.schedule import diffuse, noise_like, per_sample

__all__ = ["UFOGen"]


class UFOGen(NoisedStartDistillation):
    """A GAN on x_{t-1} of x0 and x^0 = f(x_t, t), plus gamma_t |x0 - x^0|^2 (arXiv 2311.09257).

    Both x0's are noised afresh to the level below t. Gaussian noise is injective on laws, so the
    noised laws are equal only where the clean ones are; yet they overlap, which the critic needs.
    gamma_t = gamma alpha_{t-1}^2: the squared distance of the two x_{t-1} under a common noise.
    Constant, it would win at high noise, where the critic sees little, and pull to the mean.

    Args:
        reconstruction_weight: gamma.
    """

    card = MethodCard(
        name="ufogen",
        title="UFOGen",
        family=Family.GENERATOR,
        student=StudentKind.GENERATOR,
        needs=frozenset({Needs.DATA}),
        nfe=(1, 2),
        reference="arXiv 2311.09257",
        idea="A diffusion GAN that can go to the data in one step: x0 is what it generates.",
        equation="GAN on x_{t-1} + gamma_t |x0 - x^0|^2",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        reconstruction_weight: float = 0.05,
        levels: int = 2,
        critic_updates: int = 1,
        critic_learning_rate: float | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(
            ground,
            levels=levels,
            critic_updates=critic_updates,
            critic_learning_rate=critic_learning_rate,
            **settings,
        )
        if reconstruction_weight < 0:
            raise ValueError(
                f"reconstruction_weight must not be negative, got {reconstruction_weight}."
            )
        self.reconstruction_weight = reconstruction_weight
        self.critic = ground.make_network(times=1)

    def logits(
        self, x0: Tensor, index: Tensor, eps: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        """The critic's [B] at x0 noised by eps to the level below the start's `index` [B]."""
        below = self.ground.grid(self.levels)[index + 1]
        return critic_logits(
            self.critic, diffuse(self.ground.schedule, x0, eps, below), below, cond
        )

    def loss(self, generator: torch.Generator) -> Tensor:
        data = self.ground.data(self.batch, generator)
        x_t, index = self.draw_start(data, generator)
        x = self.generate(x_t, index, data.cond)
        gan = generator_loss(self.logits(x, index, noise_like(x, generator), data.cond))
        below = self.ground.grid(self.levels)[index + 1]
        weight = per_sample(self.ground.schedule.alpha(below).square(), x)
        reconstruction = (weight * (x - data.x0).square()).sum() / len(x)
        return gan + self.reconstruction_weight * reconstruction

    def critic_loss(self, generator: torch.Generator) -> Tensor:
        data = self.ground.data(self.batch, generator)
        x_t, index = self.draw_start(data, generator)
        with torch.no_grad():
            made = self.generate(x_t, index, data.cond)
        real, fake = (
            self.logits(x, index, noise_like(x, generator), data.cond) for x in (data.x0, made)
        )
        return discriminator_loss(real, fake)
