"""Diff-Instruct: a generator descends the integral over noise levels of KL(q_t || p_t)."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.generator.fake_score import FakeScoreDistillation
from core.distillation.method import Family, Ground, MethodCard, Needs, Settings, StudentKind
from core.distillation.score.sds import Weighting, surrogate_loss, x0_weighting
from core.distillation.score.vsd import VSD
from core.schedule import noise_like

__all__ = ["DiffInstruct"]


class DiffInstruct(FakeScoreDistillation):
    """int w(t) (s_q - s_p)(x_t) dx_t/dphi dt (arXiv 2305.18455, the gradient of its IKL).

    s_q and s_p are the scores of the generator's and the data's noised laws. In x0 readings
    (s_q - s_p) alpha = (alpha/sigma)^2 (D_fake - D), so the gradient is VSD's on x = g(z), and
    `weighting` c(t) stands for the integral KL's weight w = c (sigma/alpha)^2.
    """

    card = MethodCard(
        name="diff-instruct",
        title="Diff-Instruct",
        family=Family.GENERATOR,
        student=StudentKind.GENERATOR,
        needs=frozenset({Needs.TEACHER}),
        nfe=(1,),
        reference="arXiv 2305.18455",
        idea="Descend the KL divergence between generator and data at every noise level.",
        equation="g = w (s_q - s_p)(x_t) dx_t/dphi",
    )

    def __init__(
        self,
        ground: Ground,
        *,
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
        self.weighting = weighting

    def loss(self, generator: torch.Generator) -> Tensor:
        made = self.draw(generator)
        t = self.ground.times(len(made.x0), generator)
        eps = noise_like(made.x0, generator)
        return surrogate_loss(made.x0, self.gradient_at(made.x0, t, eps, made.cond)) / len(made.x0)

    def gradient_at(
        self, x: Tensor, t: Tensor, eps: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        """The gradient by x [B, ...] for given times and noise."""
        return VSD(self.ground.teacher, self.fake, self.weighting).gradient_at(x, t, eps, cond)
