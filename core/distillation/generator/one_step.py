"""One-step generators z to x, and what every method that trains one shares."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.method import Batch, Distillation, Ground, Settings

__all__ = ["GeneratorDistillation"]


class GeneratorDistillation(Distillation):
    """A method whose student is a Generator: one network evaluation from z to x.

    Args:
        latent_dimension: Of z, a flat standard normal; None gives z the data's shape and the
            prior's spread, so that a generator starts where the teacher's sampler does.
    """

    def __init__(
        self, ground: Ground, *, latent_dimension: int | None = None, **settings: Unpack[Settings]
    ) -> None:
        super().__init__(ground, **settings)
        if latent_dimension is not None and latent_dimension < 1:
            raise ValueError(
                f"latent_dimension must be at least 1, got {latent_dimension}. None takes the "
                "data's shape."
            )
        self.latent_dimension = latent_dimension
        t = torch.tensor(ground.t_max)
        signal = ground.schedule.alpha(t) * ground.data_std
        self._prior_std = float((ground.schedule.sigma(t).square() + signal.square()).sqrt())
        self.student = self.make_student()

    def make_student(self) -> nn.Module:
        """A fresh generator of this latent; drawn from torch's global generator."""
        return self.ground.make_network(times=0, in_dimension=self.latent_dimension)

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        if self.latent_dimension is None:
            return self.ground.noise(n, generator)
        return torch.randn(n, self.latent_dimension, generator=generator)

    def generate(self, z: Tensor, cond: Conditioning | None = None) -> Tensor:
        """x [B, *shape] of latents z as `noise` draws them; differentiable."""
        if self.latent_dimension is None:
            z = z / self._prior_std
        return self.student(z, cond=cond)

    def draw(self, generator: torch.Generator) -> Batch:
        """A batch of the student's samples, differentiable, under the data's conditionings."""
        cond = self.ground.data(self.batch, generator).cond
        return Batch(x0=self.generate(self.noise(self.batch, generator), cond), cond=cond)

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        """[z, x]; raises ValueError for any other number of evaluations than one."""
        if nfe != 1:
            raise ValueError(f"{self.card.title} makes a one-step generator: ask for nfe 1.")
        return [x, self.generate(x, cond)]
