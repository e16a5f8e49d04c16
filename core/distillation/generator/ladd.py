"""LADD: the critic of adversarial distillation reads the teacher's own features, at any noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser
from core.distillation.generator.critic import (
    critic_logits,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from core.distillation.generator.noised_start import NoisedStartDistillation
from core.distillation.method import Family, Ground, MethodCard, Needs, Settings, StudentKind
from core.schedule import diffuse, noise_like

__all__ = ["LADD", "TeacherFeatures", "module_features", "prediction_features"]

TeacherFeatures = Callable[[Tensor, Tensor, Conditioning | None], Tensor]
"""(x_t [B, ...], t [B], cond) to [B, F], differentiable by x_t."""


def prediction_features(denoiser: Denoiser) -> TeacherFeatures:
    """[x_t, D(x_t)] flat: what any denoiser has, one without layers too."""

    def features(x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Tensor:
        return torch.cat([x_t.flatten(1), denoiser(x_t, t, cond).x0.flatten(1)], dim=1)

    return features


def module_features(denoiser: Denoiser, module: nn.Module) -> TeacherFeatures:
    """The output of `module`, a part of the denoiser's network, flat.

    Raises RuntimeError where the denoiser does not call it.
    """

    def features(x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Tensor:
        outputs: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outputs.append(output)

        handle = module.register_forward_hook(keep)
        try:
            denoiser(x_t, t, cond)
        finally:
            handle.remove()
        if not outputs:
            raise RuntimeError(
                f"The denoiser does not call the given {type(module).__name__}: choose a module "
                "of its own network."
            )
        return torch.cat([output.flatten(1) for output in outputs], dim=1)

    return features


class LADD(NoisedStartDistillation):
    """A GAN on features of the teacher at x_t, with R1 (arXiv 2403.12015).

    Samples and data are noised alike to a level t of logit-normal law, which says what the critic
    looks at: structure where t is high, detail where it is low. It is told t and the level s that
    the sample started from; R1 is on the features of the data. There is no distillation loss; the
    losses are logistic.

    Args:
        features: Of the teacher; `prediction_features` by default.
        logit_mean, logit_std: Of the logit of t, moved into [t_min, t_max]; the paper's m and s.
        r1_weight: Of the gradient penalty.
    """

    card = MethodCard(
        name="ladd",
        title="LADD",
        family=Family.GENERATOR,
        student=StudentKind.GENERATOR,
        needs=frozenset({Needs.TEACHER, Needs.DATA}),
        nfe=(1, 2, 4),
        reference="arXiv 2403.12015",
        idea="Adversarial distillation in latent space: the teacher's features are the critic's.",
        equation="GAN on features(x_t, t) + R1",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        features: TeacherFeatures | None = None,
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        r1_weight: float = 0.03,
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
        if logit_std <= 0 or r1_weight < 0:
            raise ValueError(
                f"LADD needs logit_std > 0 and r1_weight >= 0, got {logit_std} and {r1_weight}."
            )
        self.features = features or prediction_features(ground.teacher)
        self.logit_mean = logit_mean
        self.logit_std = logit_std
        self.r1_weight = r1_weight
        probe = ground.data(1, torch.Generator().manual_seed(0))
        with torch.no_grad():
            width = self.features(probe.x0, torch.full((1,), ground.t_max), probe.cond).shape[1]
        self.critic = ground.make_network(times=2, in_dimension=width)

    def times(self, n: int, generator: torch.Generator) -> Tensor:
        """n noise levels for the critic."""
        logits = self.logit_mean + self.logit_std * torch.randn(n, generator=generator)
        return self.ground.t_min + (self.ground.t_max - self.ground.t_min) * logits.sigmoid()

    def read(self, x: Tensor, t: Tensor, eps: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The teacher's features [B, F] at x's x_t."""
        return self.features(diffuse(self.ground.schedule, x, eps, t), t, cond)

    def loss(self, generator: torch.Generator) -> Tensor:
        data = self.ground.data(self.batch, generator)
        x_s, index = self.draw_start(data, generator)
        x = self.generate(x_s, index, data.cond)
        t, s = self.times(len(x), generator), self.ground.grid(self.levels)[index]
        features = self.read(x, t, noise_like(x, generator), data.cond)
        return generator_loss(critic_logits(self.critic, features, t, data.cond, s))

    def critic_loss(self, generator: torch.Generator) -> Tensor:
        data = self.ground.data(self.batch, generator)
        x_s, index = self.draw_start(data, generator)
        t, s = self.times(len(x_s), generator), self.ground.grid(self.levels)[index]
        with torch.no_grad():
            made = self.generate(x_s, index, data.cond)
            real, fake = (
                self.read(x, t, noise_like(x, generator), data.cond) for x in (data.x0, made)
            )
        real.requires_grad_(True)
        real_logits = critic_logits(self.critic, real, t, data.cond, s)
        fake_logits = critic_logits(self.critic, fake, t, data.cond, s)
        loss = discriminator_loss(real_logits, fake_logits)
        if self.r1_weight > 0:
            loss = loss + self.r1_weight * gradient_penalty(real_logits, real)
        return loss
