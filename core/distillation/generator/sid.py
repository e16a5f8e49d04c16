"""SiD: score identity distillation, whose gradient runs through both denoisers."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.generator.fake_score import FakeScoreDistillation
from core.distillation.method import Family, Ground, MethodCard, Needs, Settings, StudentKind
from core.distillation.score.sds import Weighting, x0_weighting
from core.schedule import diffuse, noise_like

__all__ = ["SiD"]


class SiD(FakeScoreDistillation):
    """w(t) delta . ((D - x) - a delta), delta = (D - D_fake)(x_t) (arXiv 2404.04057).

    Its gradient reaches the generator through x, and through x_t in D and in D_fake; the fake
    score's parameters stay. With the exact D_fake, E[x | x_t] = D_fake and the expectation is
    (1 - a) E |delta|^2: at a = 1 it vanishes, yet the gradient does not. The paper also divides
    by a norm of x - D; that breaks the identity, and these grounds do not need it.

    Args:
        a: The paper's alpha; it recommends 1 to 1.2.
        weighting: w(t).
    """

    card = MethodCard(
        name="sid",
        title="SiD",
        family=Family.GENERATOR,
        student=StudentKind.GENERATOR,
        needs=frozenset({Needs.TEACHER}),
        nfe=(1,),
        reference="arXiv 2404.04057",
        idea="Descend the Fisher divergence by identities that hold for any generator.",
        equation="delta . ((D - x) - a delta), delta = D - D_fake",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        a: float = 1.0,
        weighting: Weighting = x0_weighting,
        fake_updates: int = 1,
        fake_learning_rate: float | None = None,
        latent_dimension: int | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(
            ground,
            fake_updates=fake_updates,
            fake_learning_rate=fake_learning_rate,
            latent_dimension=latent_dimension,
            **settings,
        )
        if a < 0:
            raise ValueError(f"SiD's a must not be negative, got {a}. The paper takes 1 to 1.2.")
        self.a = a
        self.weighting = weighting

    def loss(self, generator: torch.Generator) -> Tensor:
        made = self.draw(generator)
        t = self.ground.times(len(made.x0), generator)
        eps = noise_like(made.x0, generator)
        return self.terms_at(made.x0, t, eps, made.cond).mean()

    def terms_at(
        self, x: Tensor, t: Tensor, eps: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        """The loss of each sample [B], for given times and noise; differentiable by x."""
        x_t = diffuse(self.ground.schedule, x, eps, t)
        real, fake = self.ground.teacher(x_t, t, cond).x0, self.fake(x_t, t, cond).x0
        delta = real - fake
        terms = (delta * ((real - x) - self.a * delta)).flatten(1).sum(1)
        return self.weighting(self.ground.schedule, t).to(x.dtype) * terms
