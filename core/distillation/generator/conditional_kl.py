"""Luhman & Luhman's distillation as a generator's: a conditional KL to the teacher's output."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.generator.one_step import GeneratorDistillation
from core.distillation.method import Family, Ground, MethodCard, Needs, Settings, StudentKind
from core.solvers.ddim import DDIM
from core.solvers.sampling import sample

__all__ = ["ConditionalKL"]


class ConditionalKL(GeneratorDistillation):
    """E_z KL(N(DDIM(z), s^2) || N(f(z), s^2)) = E |f(z) - DDIM(z)|^2 / (2 s^2).

    arXiv 2101.02388: teacher and student are conditional laws of the sample given the prior's z,
    and s = `output_std` (1 in the paper) only scales the loss. By the chain rule it bounds the
    divergence between the two marginal laws, which the methods on a fake score descend directly.
    """

    card = MethodCard(
        name="conditional-kl",
        title="Conditional KL (Luhman)",
        family=Family.GENERATOR,
        student=StudentKind.GENERATOR,
        needs=frozenset({Needs.TEACHER}),
        nfe=(1,),
        reference="arXiv 2101.02388",
        idea="A generator whose sample from z is close to the teacher's sample from the same z.",
        equation="E |f(z) - DDIM(z)|^2 / (2 s^2)",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        solver_steps: int = 32,
        output_std: float = 1.0,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(ground, **settings)
        if solver_steps < 1 or output_std <= 0:
            raise ValueError(
                "ConditionalKL needs solver_steps >= 1 and output_std > 0, got "
                f"{solver_steps} and {output_std}."
            )
        self.solver_steps = solver_steps
        self.output_std = output_std

    @torch.no_grad()
    def target(self, z: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The teacher's DDIM sample from the prior's z [B, ...]."""
        times = self.ground.grid(self.solver_steps)
        return sample(self.ground.teacher, DDIM(), times.to(z.dtype), z, cond).x

    def loss(self, generator: torch.Generator) -> Tensor:
        cond = self.ground.data(self.batch, generator).cond
        return self.loss_at(self.noise(self.batch, generator), cond)

    def loss_at(self, z: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The KL of the given z [B, ...], in nats a sample."""
        error = self.generate(z, cond) - self.target(z, cond)
        return error.square().sum() / (2 * self.output_std**2 * len(z))
