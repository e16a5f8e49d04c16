"""ADD: adversarial diffusion distillation, a critic and the teacher's opinion of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.generator.critic import (
    critic_logits,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from core.distillation.generator.noised_start import NoisedStartDistillation
from core.distillation.method import Family, Ground, MethodCard, Needs, Settings, StudentKind
from core.distillation.score.sds import Weighting
from core.schedule import NoiseSchedule, diffuse, noise_like, per_sample

__all__ = ["ADD", "alpha_weighting"]


def alpha_weighting(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """c(t) = alpha: noisier opinions count less (ADD's exponential weighting)."""
    return schedule.alpha(t)


class ADD(NoisedStartDistillation):
    """GAN + distillation_weight c(t) |x^ - sg D(x^_t)|^2, x^ = f(x_s, s) (arXiv 2311.17042).

    The second term's gradient by x^ is SDS's with the weighting 2 c(t), so alone it would
    collapse; the critic keeps it to the data. The critic reads s and features(x), the paper's
    being DINOv2's, with R1 on the features of the data. The losses are logistic (the paper:
    hinge).

    Args:
        distillation_weight: The paper's lambda.
        weighting: c(t).
        r1_weight: Of the gradient penalty.
        features: x [B, ...] to [B, F], frozen and differentiable; None takes x itself.
    """

    card = MethodCard(
        name="add",
        title="ADD",
        family=Family.GENERATOR,
        student=StudentKind.GENERATOR,
        needs=frozenset({Needs.TEACHER, Needs.DATA}),
        nfe=(1, 2, 4),
        reference="arXiv 2311.17042",
        idea="A critic makes few-step samples real, the teacher's denoising keeps them apt.",
        equation="GAN + c(t) |x^ - sg D(x^_t)|^2",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        distillation_weight: float = 0.25,
        weighting: Weighting = alpha_weighting,
        r1_weight: float = 0.1,
        features: Callable[[Tensor], Tensor] | None = None,
        levels: int = 4,
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
        if distillation_weight < 0 or r1_weight < 0:
            raise ValueError(
                "ADD's distillation_weight and r1_weight must not be negative, got "
                f"{distillation_weight} and {r1_weight}."
            )
        self.distillation_weight = distillation_weight
        self.weighting = weighting
        self.r1_weight = r1_weight
        self.features = features
        width = None if features is None else features(torch.zeros(1, *ground.shape)).shape[1]
        self.critic = ground.make_network(times=1, in_dimension=width)

    def read(self, x: Tensor) -> Tensor:
        """What the critic is given of x [B, ...]."""
        return x if self.features is None else self.features(x)

    def loss(self, generator: torch.Generator) -> Tensor:
        data = self.ground.data(self.batch, generator)
        x_s, index = self.draw_start(data, generator)
        x = self.generate(x_s, index, data.cond)
        s = self.ground.grid(self.levels)[index]
        gan = generator_loss(critic_logits(self.critic, self.read(x), s, data.cond))
        t = self.ground.times(len(x), generator)
        distillation = self.distillation_at(x, t, noise_like(x, generator), data.cond)
        return gan + self.distillation_weight * distillation

    def distillation_at(
        self, x: Tensor, t: Tensor, eps: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        """E c(t) |x - sg D(x_t)|^2, summed over a sample, for given times and noise."""
        schedule = self.ground.schedule
        with torch.no_grad():
            target = self.ground.teacher(diffuse(schedule, x, eps, t), t, cond).x0
        weight = per_sample(self.weighting(schedule, t), x)
        return (weight * (x - target).square()).sum() / len(x)

    def critic_loss(self, generator: torch.Generator) -> Tensor:
        data = self.ground.data(self.batch, generator)
        x_s, index = self.draw_start(data, generator)
        with torch.no_grad():
            fake = self.read(self.generate(x_s, index, data.cond))
            real = self.read(data.x0)
        real.requires_grad_(True)
        s = self.ground.grid(self.levels)[index]
        real_logits = critic_logits(self.critic, real, s, data.cond)
        loss = discriminator_loss(real_logits, critic_logits(self.critic, fake, s, data.cond))
        if self.r1_weight > 0:
            loss = loss + self.r1_weight * gradient_penalty(real_logits, real)
        return loss
