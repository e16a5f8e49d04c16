"""Stochastic interpolants: a velocity between any two densities, along any path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.method import (
    Distillation,
    Family,
    Ground,
    MethodCard,
    Needs,
    Settings,
    StudentKind,
)
from core.distillation.students import VelocityFlowMap, sample_by_jumps
from core.prediction import Parametrisation
from core.schedule import CosineSchedule, NoiseSchedule, diffuse, noise_like, per_sample

__all__ = ["StochasticInterpolants"]


class StochasticInterpolants(Distillation):
    """|b(I_t, t) - dI_t/dt|^2, I_t = alpha x0 + sigma x_T + gamma z.

    Albergo & Vanden-Eijnden (arXiv 2209.15571); with the latent z, Albergo et al. (2303.08797),
    where gamma is zero at both ends: here latent_std sin^2(pi t), whose rate is finite there. The
    minimiser is E[dI_t/dt | I_t]; Euler's method along it carries the one end to the other.

    Args:
        path: alpha and sigma, which must reach both ends; the trigonometric one by default, and
            FlowSchedule for straight lines.
        latent_std: Of the latent at t = 1/2.
        base: (n, generator) to n draws [n, *shape] of the density at t = 1; the ground's prior by
            default, and any other density as well.
    """

    card = MethodCard(
        name="interpolants",
        title="Stochastic interpolants",
        family=Family.PATH,
        student=StudentKind.FLOW_MAP,
        needs=frozenset({Needs.DATA}),
        nfe=(4, 8),
        reference="arXiv 2209.15571, 2303.08797",
        idea="Learn the mean rate of any random path between two densities.",
        equation="|b(I_t, t) - dI_t/dt|^2",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        path: NoiseSchedule | None = None,
        latent_std: float = 0.2,
        base: Callable[[int, torch.Generator], Tensor] | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(ground, **settings)
        self.path = path or CosineSchedule()
        if not (self.path.reaches_data and self.path.reaches_noise):
            raise ValueError(
                "A path must reach both densities. Take CosineSchedule or FlowSchedule, whatever "
                "the teacher's schedule is."
            )
        if latent_std < 0:
            raise ValueError(f"latent_std must be at least 0, got {latent_std}.")
        self.latent_std = latent_std
        self.base = base
        self.student = ground.make_network()
        self.flow_map = VelocityFlowMap(self.student, self.path)

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        return self.ground.noise(n, generator) if self.base is None else self.base(n, generator)

    def target(self, x0: Tensor, x_T: Tensor, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """I_t and dI_t/dt, each [B, ...], for t [B]."""
        gamma = self.latent_std * torch.sin(math.pi * t).square()
        rate = self.latent_std * math.pi * torch.sin(2 * math.pi * t)
        between = diffuse(self.path, x0, x_T, t) + per_sample(gamma, z) * z
        velocity = Parametrisation.VELOCITY.target(x0, x_T, t, self.path)
        return between, velocity + per_sample(rate, z) * z

    def loss(self, generator: torch.Generator) -> Tensor:
        data = self.ground.data(self.batch, generator)
        x_T = self.noise(self.batch, generator)
        t = torch.rand(self.batch, generator=generator)
        between, rate = self.target(data.x0, x_T, noise_like(data.x0, generator), t)
        return (self.student(between, t, cond=data.cond) - rate).square().mean()

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        return sample_by_jumps(self.flow_map, x, torch.linspace(1, 0, nfe + 1), cond)
