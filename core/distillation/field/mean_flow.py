"""MeanFlow: a network learns the velocity's mean over any interval, from data alone."""

from __future__ import annotations

import torch
from torch import Tensor

from core.distillation.field.velocity_student import VelocityStudent
from core.distillation.method import Family, MethodCard, Needs, StudentKind
from core.prediction import Parametrisation
from core.schedule import diffuse, noise_like, per_sample

__all__ = ["MeanFlow"]


class MeanFlow(VelocityStudent):
    """|u(x_t, t, s) - sg(v - (t - s) du/dt)|^2, v = dx_t/dt (arXiv 2505.13447, Section 4).

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
