"""VSD on particles: a finite set of images, moved until their law is the teacher's."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.generator.fake_score import FakeScoreDistillation
from core.distillation.method import (
    Batch,
    Family,
    Ground,
    MethodCard,
    Needs,
    Settings,
    StudentKind,
)
from core.distillation.score.sds import Weighting, surrogate_loss, x0_weighting
from core.distillation.score.vsd import VSD

__all__ = ["ParticleVSD", "Particles"]


class Particles(nn.Module):
    """`points` [P, *shape] as a Generator: z [B, 1], standard normal, picks one of them.

    Which one is the rank of z among P equal parts of the normal law; each is as likely.
    """

    def __init__(self, n: int, shape: tuple[int, ...], std: float) -> None:
        super().__init__()
        self.points = nn.Parameter(std * torch.randn(n, *shape))

    def forward(self, z: Tensor, cond: Conditioning | None = None) -> Tensor:
        n = len(self.points)
        index = (torch.special.ndtr(z[:, 0]) * n).long().clamp(max=n - 1)
        return self.points[index]


class ParticleVSD(FakeScoreDistillation):
    """ProlificDreamer's gradient (arXiv 2305.16213, Algorithm 1) on `particles` points.

    The paper's particles are radiance fields, its fake score a low-rank delta of the teacher.
    Particles have no classes: the teacher is asked without a conditioning.
    """

    card = MethodCard(
        name="vsd",
        title="VSD",
        family=Family.GENERATOR,
        student=StudentKind.GENERATOR,
        needs=frozenset({Needs.TEACHER}),
        nfe=(1,),
        reference="arXiv 2305.16213",
        idea="Move particles by the teacher's score less their own.",
        equation="g = w (eps_p - eps_fake)",
    )
    is_conditional = False

    def __init__(
        self,
        ground: Ground,
        *,
        particles: int = 64,
        weighting: Weighting = x0_weighting,
        fake_updates: int = 1,
        fake_learning_rate: float | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        if particles < 1:
            raise ValueError(f"particles must be at least 1, got {particles}.")
        self.particles = particles
        super().__init__(
            ground,
            fake_updates=fake_updates,
            fake_learning_rate=fake_learning_rate,
            latent_dimension=1,
            **settings,
        )
        self.weighting = weighting

    def make_student(self) -> nn.Module:
        return Particles(self.particles, self.ground.shape, self.ground.data_std)

    def draw(self, generator: torch.Generator) -> Batch:
        return Batch(x0=self.generate(self.noise(self.batch, generator)))

    def loss(self, generator: torch.Generator) -> Tensor:
        x = self.draw(generator).x0
        t = self.ground.times(len(x), generator)
        vsd = VSD(self.ground.teacher, self.fake, self.weighting)
        return surrogate_loss(x, vsd.gradient(x, t, None, generator)) / len(x)

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        """[z, x]; raises ValueError for a conditioning, which particles cannot honour."""
        if cond is not None:
            raise ValueError("Particles are not conditioned: ask for samples with cond=None.")
        return super().sample(x, nfe, None, generator)
