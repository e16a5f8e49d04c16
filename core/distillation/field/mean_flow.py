"""MeanFlow: a network learns the velocity's mean over any interval, from data alone."""

from __future__ import annotations

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
from core.schedule import diffuse, noise_like, per_sample

__all__ = ["MeanFlow"]


class MeanFlow(Distillation):
    """|u(x_t, t, s) - sg(v - (t - s) du/dt)|^2, v = dx_t/dt (arXiv 2505.13447, Eqs. 6, 9, 11).

    du/dt is the total derivative along the path, one forward-mode product with (v, 1, 0). Half of
    the pairs have s = t, where this is flow matching.
    """

    card = MethodCard(
        name="meanflow",
        title="MeanFlow",
        family=Family.PATH,
        student=StudentKind.FLOW_MAP,
        needs=frozenset({Needs.DATA}),
        nfe=(1, 2),
        reference="arXiv 2505.13447",
        idea="Learn the mean velocity over an interval by the identity that it obeys.",
        equation="u = v - (t - s) du/dt",
    )

    def __init__(self, ground: Ground, **settings: Unpack[Settings]) -> None:
        super().__init__(ground, **settings)
        self.student = ground.make_network(times=2)
        self.flow_map = VelocityFlowMap(self.student, ground.schedule)

    def loss(self, generator: torch.Generator) -> Tensor:
        data = self.ground.data(self.batch, generator)
        t, s = self.ground.times(2 * self.batch, generator).view(2, -1).sort(0, True).values
        s = torch.where(torch.rand(s.shape, generator=generator) < 0.5, t, s)
        eps = noise_like(data.x0, generator)
        x_t = diffuse(self.ground.schedule, data.x0, eps, t)
        v = Parametrisation.VELOCITY.target(data.x0, eps, t, self.ground.schedule)
        u, rate, *_ = torch.func.jvp(
            lambda x, t, s: self.student(x, t, s, data.cond),
            (x_t, t, s),
            (v, torch.ones_like(t), torch.zeros_like(s)),
        )
        return (u - (v - per_sample(t - s, v) * rate).detach()).square().mean()

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        return sample_by_jumps(self.flow_map, x, self.ground.grid(nfe), cond)
