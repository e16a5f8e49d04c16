"""DMD2: distribution matching without pairs, with a critic and a fake score on a faster scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import torch
from torch import Tensor, nn

from core.distillation.generator.critic import (
    critic_logits,
    discriminator_loss,
    generator_loss,
)
from core.distillation.generator.dmd import DMD
from core.distillation.method import Family, Ground, MethodCard, Needs, Settings, StudentKind
from core.distillation.score.sds import surrogate_loss
from core.schedule import diffuse, noise_like
from core.training import Player

__all__ = ["DMD2"]


class DMD2(DMD):
    """DMD's gradient plus gan_weight times a diffusion GAN's (arXiv 2405.14867).

    There are no regression pairs; `fake_updates` steps of the fake score and of the critic go
    before each of the generator's. The critic compares x_t of data and of samples at a common t.
    The paper's critic is a head on the fake score's features; here it is a network of its own,
    so that each player has one loss.
    """

    card = MethodCard(
        name="dmd2",
        title="DMD2",
        family=Family.GENERATOR,
        student=StudentKind.GENERATOR,
        needs=frozenset({Needs.TEACHER, Needs.DATA}),
        nfe=(1,),
        reference="arXiv 2405.14867",
        idea="DMD with a critic on noised data in place of pairs, and two time scales.",
        equation="g = (D_fake - D) / mean |x - D| + w grad softplus(-critic(x_t))",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        gan_weight: float = 0.1,
        fake_updates: int = 5,
        fake_learning_rate: float | None = None,
        normaliser_floor: float = 0.1,
        latent_dimension: int | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(
            ground,
            regression_weight=0.0,
            normaliser_floor=normaliser_floor,
            fake_updates=fake_updates,
            fake_learning_rate=fake_learning_rate,
            latent_dimension=latent_dimension,
            **settings,
        )
        if gan_weight <= 0:
            raise ValueError(
                f"gan_weight must be above 0, got {gan_weight}. DMD with regression_weight=0 is "
                "the method without a critic."
            )
        self.gan_weight = gan_weight
        self.critic = ground.make_network(times=1)

    def loss(self, generator: torch.Generator) -> Tensor:
        made = self.draw(generator)
        t = self.ground.times(len(made.x0), generator)
        eps = noise_like(made.x0, generator)
        matching = surrogate_loss(made.x0, self.gradient_at(made.x0, t, eps, made.cond))
        x_t = diffuse(self.ground.schedule, made.x0, eps, t)
        gan = generator_loss(critic_logits(self.critic, x_t, t, made.cond))
        return matching / len(made.x0) + self.gan_weight * gan

    def critic_loss(self, generator: torch.Generator) -> Tensor:
        """The discriminator's loss on x_t of data and of samples, at the same t and class."""
        real = self.ground.data(self.batch, generator)
        with torch.no_grad():
            fake = self.generate(self.noise(self.batch, generator), real.cond)
        t = self.ground.times(self.batch, generator)
        logits = [
            critic_logits(
                self.critic,
                diffuse(self.ground.schedule, x0, noise_like(x0, generator), t),
                t,
                real.cond,
            )
            for x0 in (real.x0, fake)
        ]
        return discriminator_loss(*logits)

    def players(self) -> dict[str, Player]:
        critic = Player(
            module=self.critic,
            loss=self.critic_loss,
            learning_rate=self.fake_learning_rate,
            updates=self.fake_updates,
            betas=self.betas,
        )
        return {"critic": critic, **super().players()}

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "critic": self.critic}
