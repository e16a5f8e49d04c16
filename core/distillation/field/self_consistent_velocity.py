"""Self-consistent velocity matching: a velocity that is what its own flow's density asks for."""

from __future__ import annotations

import itertools
from typing import Unpack

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.method import (
    Batch,
    Distillation,
    Family,
    Ground,
    MethodCard,
    Needs,
    Settings,
    StudentKind,
)
from core.distillation.students import VelocityFlowMap, sample_by_jumps
from core.schedule import diffuse, noise_like, per_sample
from core.solvers.euler_maruyama import sde_coefficients

__all__ = ["SelfConsistentVelocity"]


class SelfConsistentVelocity(Distillation):
    """|v(x, t) - sg(f x - g^2/2 grad log p_t(x))|^2, p_t pushed by v itself (arXiv 2301.13737).

    A fixed point: the densities p_t that the flow of v makes of the data's obey the diffusion's
    Fokker-Planck equation, written as a continuity equation, iff v is that right-hand side. The
    teacher is asked at t_min alone, for the data's score s; along the flow

        dx/dt = v(x, t),    ds/dt = -(dv/dx)^T s - grad div v

    carries it on, exactly for any v. No gradient flows through the path or the target.

    Args:
        points: Steps of Heun's method from t_min to t_end, at random times; all states are used.
        t_end: Where training stops and sampling starts; on a schedule that reaches the noise,
            where the equation is singular, it must be below 1. 0.9 of t_max there by default.
    """

    card = MethodCard(
        name="scvm",
        title="Self-consistent velocity matching",
        family=Family.PATH,
        student=StudentKind.FLOW_MAP,
        needs=frozenset({Needs.TEACHER, Needs.DATA}),
        nfe=(8,),
        reference="arXiv 2301.13737",
        idea="Match the velocity to the score of the density that its own flow produces.",
        equation="|v - (f x - g^2/2 grad log p_t^v)|^2",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        points: int = 12,
        t_end: float | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(ground, **settings)
        if len(ground.shape) != 1:
            raise ValueError(
                "scvm takes the divergence of a velocity coordinate by coordinate: use a ground "
                f"of shape [D], not {list(ground.shape)}."
            )
        singular = ground.schedule.reaches_noise
        if t_end is None:
            t_end = 0.9 * ground.t_max if singular else ground.t_max
        if not ground.t_min < t_end <= ground.t_max or (singular and t_end >= 1):
            raise ValueError(
                f"t_end must lie between {ground.t_min:g} and {ground.t_max:g}, and below 1 where "
                f"alpha(1) = 0; got {t_end:g}."
            )
        if points < 1 or ground.t_min <= 0:
            raise ValueError(
                f"scvm needs points >= 1 and a ground with t_min > 0, got {points} and "
                f"{ground.t_min:g}."
            )
        self.points = points
        self.t_end = t_end
        self.student = ground.make_network()
        self.flow_map = VelocityFlowMap(self.student, ground.schedule)

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Normal, as wide as x_t at t_end."""
        t = torch.tensor(self.t_end)
        schedule = self.ground.schedule
        spread = torch.hypot(schedule.alpha(t) * self.ground.data_std, schedule.sigma(t))
        return spread * noise_like(torch.empty(n, *self.ground.shape), generator)

    def right_side(self, x: Tensor, score: Tensor, t: Tensor) -> Tensor:
        """f x - g^2/2 score [B, D] at t [B]: what v must be."""
        f, g_squared = sde_coefficients(self.ground.schedule, t)
        return per_sample(f, x) * x - per_sample(g_squared / 2, x) * score

    def rates(
        self, x: Tensor, score: Tensor, t: Tensor, cond: Conditioning | None = None
    ) -> tuple[Tensor, Tensor]:
        """dx/dt and ds/dt [B, D] of the student's own flow; detached."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            velocity = self.student(x, t, cond=cond)
            div = torch.zeros((), dtype=x.dtype, device=x.device)
            for i in range(x.shape[1]):
                column = torch.autograd.grad(velocity[:, i].sum(), x, create_graph=True)[0]
                div = div + column[:, i].sum()
            # One product for both: the gradient of v . s + div v, with s held.
            total = (velocity * score).sum() + div
            (gradient,) = torch.autograd.grad(total, x)
        return velocity.detach(), -gradient

    def path(
        self, x: Tensor, score: Tensor, times: Tensor, cond: Conditioning | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """The states x and scores [B, D] at `times` [K + 1], carried from those at times[0]."""
        visited = [(x, score)]
        for t, s in itertools.pairwise(times.tolist()):
            now, then = (torch.full((len(x),), u, device=x.device, dtype=x.dtype) for u in (t, s))
            dx, ds = self.rates(x, score, now, cond)
            h = s - t
            dx2, ds2 = self.rates(x + h * dx, score + h * ds, then, cond)
            x, score = x + h / 2 * (dx + dx2), score + h / 2 * (ds + ds2)
            visited.append((x, score))
        return visited

    def start(self, data: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The data at t_min with the teacher's score there, each [B, D]."""
        t = torch.full((len(data.x0),), self.ground.t_min)
        x = diffuse(self.ground.schedule, data.x0, noise_like(data.x0, generator), t)
        with torch.no_grad():
            return x, self.ground.teacher(x, t, data.cond).score

    def residual(
        self, x: Tensor, score: Tensor, t: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        """v(x, t) - sg(f x - g^2/2 score) [B, D]; zero everywhere at the true velocity."""
        return self.student(x, t, cond=cond) - self.right_side(x, score, t).detach()

    def loss(self, generator: torch.Generator) -> Tensor:
        data = self.ground.data(self.batch, generator)
        between = torch.rand(self.points, generator=generator).sort().values
        ends = torch.tensor([0.0, 1.0])
        # Squared: the density changes fastest near the data.
        unit = torch.cat([ends[:1], between[:-1], ends[1:]]).square()
        times = self.ground.t_min + (self.t_end - self.ground.t_min) * unit
        visited = self.path(*self.start(data, generator), times, data.cond)
        losses = []
        for (x, score), t in zip(visited, times.tolist(), strict=True):
            now = torch.full((len(x),), t, dtype=x.dtype, device=x.device)
            losses.append(self.residual(x, score, now, data.cond).square().mean())
        return torch.stack(losses).mean()

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        times = torch.linspace(self.t_end, self.ground.t_min, nfe + 1)
        return sample_by_jumps(self.flow_map, x, times, cond)
