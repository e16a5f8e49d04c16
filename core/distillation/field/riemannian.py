"""Flow matching along the sphere's geodesics."""

from __future__ import annotations

import itertools
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
from core.sphere import exp_map, geodesic, tangent_part, uniform_on_sphere

__all__ = ["RiemannianFlowMatching"]


class RiemannianFlowMatching(Distillation):
    """|v(x_t, t) - dx_t/dt|^2, x_t on the geodesic from x0 to x_T (Chen & Lipman, 2302.03660).

    The data are the directions x0 / |x0| of the ground's samples, the prior is uniform on the
    sphere, and v is the tangent part of the network's output, so that Euler's steps, by the
    exponential map, never leave the sphere.
    """

    card = MethodCard(
        name="riemannian",
        title="Riemannian flow matching on the sphere",
        family=Family.PATH,
        student=StudentKind.FLOW_MAP,
        needs=frozenset({Needs.DATA}),
        nfe=(4, 8),
        reference="arXiv 2302.03660",
        idea="Flow matching where a straight line is a great circle.",
        equation="|v(x_t, t) - dx_t/dt|^2, x_t = exp(x0, t log(x0, x_T))",
    )
    makes_directions = True

    def __init__(self, ground: Ground, **settings: Unpack[Settings]) -> None:
        super().__init__(ground, **settings)
        if len(ground.shape) != 1 or ground.shape[0] < 2:
            raise ValueError(
                "Directions need samples of shape [D] with D >= 2, and this ground's are "
                f"{list(ground.shape)}. Take a mixture in two dimensions or more."
            )
        self.student = ground.make_network()

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        return uniform_on_sphere(n, self.ground.shape[0], generator)

    def velocity(self, x: Tensor, t: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The network's tangent part at x [B, D], t [B]."""
        return tangent_part(x, self.student(x, t, cond=cond))

    def loss(self, generator: torch.Generator) -> Tensor:
        data = self.ground.data(self.batch, generator)
        x0 = data.x0 / data.x0.norm(dim=1, keepdim=True)
        t = torch.rand(self.batch, generator=generator)
        x_t, rate = geodesic(x0, self.noise(self.batch, generator), t)
        return (self.velocity(x_t, t, data.cond) - rate).square().mean()

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        states = [x]
        for t, s in itertools.pairwise(torch.linspace(1, 0, nfe + 1).tolist()):
            now = torch.full((len(x),), t, device=x.device, dtype=x.dtype)
            moved = exp_map(states[-1], (s - t) * self.velocity(states[-1], now, cond))
            # Rounding adds up over the steps.
            states.append(moved / moved.norm(dim=1, keepdim=True))
        return states
