"""SDS on a generator: the baseline that collapses, for want of the generator's own score."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.generator.one_step import GeneratorDistillation
from core.distillation.method import Family, Ground, MethodCard, Needs, Settings, StudentKind
from core.distillation.score.sds import SDS, Weighting, surrogate_loss, x0_weighting
from core.schedule import noise_like

__all__ = ["SDSGenerator"]


class SDSGenerator(GeneratorDistillation):
    """The gradient w (x - D(x_t)) on x = g(z) (DreamFusion, arXiv 2209.14988).

    Each sample alone descends KL(N(alpha x, sigma^2) || p_t), so all samples go to modes and
    nothing keeps them apart: what VSD and Diff-Instruct mend.
    """

    card = MethodCard(
        name="sds",
        title="SDS",
        family=Family.GENERATOR,
        student=StudentKind.GENERATOR,
        needs=frozenset({Needs.TEACHER}),
        nfe=(1,),
        reference="arXiv 2209.14988",
        idea="Move each sample to where the teacher finds it likely; samples collapse to modes.",
        equation="g = w (x - D(x_t))",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        weighting: Weighting = x0_weighting,
        latent_dimension: int | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(ground, latent_dimension=latent_dimension, **settings)
        self.score_distillation = SDS(ground.teacher, weighting)

    def loss(self, generator: torch.Generator) -> Tensor:
        made = self.draw(generator)
        t = self.ground.times(len(made.x0), generator)
        return self.loss_at(made.x0, t, noise_like(made.x0, generator), made.cond)

    def loss_at(
        self, x: Tensor, t: Tensor, eps: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        """A scalar whose gradient by x [B, ...] is SDS's, over B."""
        return surrogate_loss(x, self.score_distillation.gradient_at(x, t, eps, cond)) / len(x)
