"""DMD: distribution matching with a gradient in units of its own error, and regression pairs."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.generator.fake_score import FakeScoreDistillation
from core.distillation.method import Family, Ground, MethodCard, Needs, Settings, StudentKind
from core.distillation.score.sds import surrogate_loss
from core.schedule import diffuse, noise_like, per_sample
from core.solvers.ddim import DDIM
from core.solvers.sampling import sample

__all__ = ["DMD"]


class DMD(FakeScoreDistillation):
    """g = (D_fake - D)(x_t) / mean |x - D(x_t)| (arXiv 2311.18828), plus regression.

    The loss is 1/2 |x - sg(x - g)|^2 + regression_weight |g(z) - DDIM(z)|^2, the second over
    pairs of the prior's z and the teacher's sample from it, drawn anew at each step. The paper
    measures it by LPIPS; here it is squared, summed over a sample.

    Args:
        regression_weight: 0 leaves the pairs out, as DMD2 does.
        regression_batch: Pairs a step.
        solver_steps: The teacher's DDIM steps for a pair.
        normaliser_floor: The least mean |x - D|, in units of the data's spread. In images the
            mean is over thousands of coordinates; in one or two it may come near zero.
    """

    card = MethodCard(
        name="dmd",
        title="DMD",
        family=Family.GENERATOR,
        student=StudentKind.GENERATOR,
        needs=frozenset({Needs.TEACHER}),
        nfe=(1,),
        reference="arXiv 2311.18828",
        idea="Match distributions by the difference of two scores, held by a few teacher pairs.",
        equation="g = (D_fake - D) / mean |x - D|",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        regression_weight: float = 0.25,
        regression_batch: int = 64,
        solver_steps: int = 16,
        normaliser_floor: float = 0.1,
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
        if regression_weight > 0 and latent_dimension is not None:
            raise ValueError(
                "A regression pair needs z to be the prior's x: set latent_dimension=None, or "
                "regression_weight=0."
            )
        if regression_weight < 0 or regression_batch < 1 or solver_steps < 1:
            raise ValueError(
                "DMD needs regression_weight >= 0, regression_batch >= 1 and solver_steps >= 1, "
                f"got {regression_weight}, {regression_batch} and {solver_steps}."
            )
        if normaliser_floor <= 0:
            raise ValueError(f"normaliser_floor must be above 0, got {normaliser_floor}.")
        self.regression_weight = regression_weight
        self.regression_batch = regression_batch
        self.solver_steps = solver_steps
        self.normaliser_floor = normaliser_floor

    def loss(self, generator: torch.Generator) -> Tensor:
        made = self.draw(generator)
        t = self.ground.times(len(made.x0), generator)
        eps = noise_like(made.x0, generator)
        matching = surrogate_loss(made.x0, self.gradient_at(made.x0, t, eps, made.cond))
        loss = matching / len(made.x0)
        if self.regression_weight > 0:
            loss = loss + self.regression_weight * self.regression_loss(generator)
        return loss

    @torch.no_grad()
    def gradient_at(
        self, x: Tensor, t: Tensor, eps: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        """g [B, ...] for given times and noise."""
        x_t = diffuse(self.ground.schedule, x, eps, t)
        real, fake = self.ground.teacher(x_t, t, cond).x0, self.fake(x_t, t, cond).x0
        error = (x - real).abs().flatten(1).mean(1)
        error = error.clamp(min=self.normaliser_floor * self.ground.data_std)
        return (fake - real) / per_sample(error, x)

    def regression_loss(self, generator: torch.Generator) -> Tensor:
        """|g(z) - DDIM(z)|^2, summed over a sample, over fresh pairs."""
        z = self.noise(self.regression_batch, generator)
        cond = self.ground.data(len(z), generator).cond
        with torch.no_grad():
            times = self.ground.grid(self.solver_steps)
            target = sample(self.ground.teacher, DDIM(), times, z, cond).x
        return (self.generate(z, cond) - target).square().sum() / len(z)
