"""Consistency trajectory models: jumps from any time to any earlier one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.field.consistency import solver_step
from core.distillation.method import (
    Distillation,
    Family,
    Ground,
    MethodCard,
    Needs,
    Settings,
    StudentKind,
)
from core.distillation.students import DDIMFlowMap, sample_by_jumps
from core.schedule import diffuse, noise_like, per_sample
from core.solvers.heun import Heun
from core.solvers.sampling import Solver
from core.training import Player, Stage

__all__ = ["CTM"]


class CTM(Distillation):
    """|G_sg(G(x_t, t, s), s, 0) - G_sg(G_sg(S(x_t), u, s), s, 0)|^2 + DSM (arXiv 2310.02279).

    G(x_t, t, s) is a DDIM step to s on the network's g(x_t, t, s). S takes the teacher's solver
    from t to u, s <= u < t, and both ways to s are compared at the data's end, through the
    student's average. The denoising term |g(x_t, t, t) - x0|^2 makes g at s = t the denoiser.

    The paper's third, adversarial term is left out, and its adaptive weight of the denoising
    term is a constant here.
    """

    card = MethodCard(
        name="ctm",
        title="Consistency trajectory model",
        family=Family.OUTPUT,
        student=StudentKind.FLOW_MAP,
        needs=frozenset({Needs.TEACHER, Needs.DATA}),
        nfe=(1, 2, 4),
        reference="arXiv 2310.02279",
        idea="Learn every jump along a trajectory; two jumps must be one.",
        equation="|G(G(x_t, t, s), s, 0) - G(G(S(x_t), u, s), s, 0)|^2 + |g(x_t, t, t) - x0|^2",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        intervals: int = 18,
        max_solver_steps: int = 4,
        dsm_weight: float = 1.0,
        average_decay: float = 0.95,
        solver: Solver | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        """CTM; see the class.

        Args:
            ground: Where to train.
            intervals: Of the grid that t, u and s are drawn from, uniform in t.
            max_solver_steps: The most intervals from t to u, one solver step each.
            dsm_weight: Of the denoising term.
            average_decay: Of the average that the targets come from.
            solver: A one-step one, Heun by default.
            settings: As in Settings.
        """
        super().__init__(ground, **settings)
        if intervals < 1 or max_solver_steps < 1 or dsm_weight < 0:
            raise ValueError(
                "CTM needs intervals >= 1, max_solver_steps >= 1 and dsm_weight >= 0, got "
                f"{intervals}, {max_solver_steps} and {dsm_weight}."
            )
        self.intervals = intervals
        self.max_solver_steps = max_solver_steps
        self.dsm_weight = dsm_weight
        self.average_decay = average_decay
        self.solver = solver or Heun()
        self.student = ground.make_network(times=2)
        self.average = deepcopy(self.student).requires_grad_(False)
        self.flow_map = DDIMFlowMap(self.student, ground.schedule)
        self.target_map = DDIMFlowMap(self.average, ground.schedule)

    @torch.no_grad()
    def solve(self, x_t: Tensor, first: Tensor, last: Tensor, cond: Conditioning | None) -> Tensor:
        """The teacher's solver through the grid, from index `first` to `last` [B], each its own."""
        grid, x = self.ground.grid(self.intervals).to(x_t.device), x_t
        for k in range(int((last - first).amax())):
            here, there = (first + k).clamp(max=last), (first + k + 1).clamp(max=last)
            moved = solver_step(self.ground.teacher, self.solver, x, grid[here], grid[there], cond)
            x = torch.where(per_sample(here < last, x) > 0, moved, x)
        return x

    def trajectory_loss(self, generator: torch.Generator) -> Tensor:
        """Both ways from t to s, compared at the data's end."""
        data = self.ground.data(self.batch, generator)
        grid = self.ground.grid(self.intervals)
        u = torch.rand(3, self.batch, generator=generator)
        # first < middle <= last: the indices of t > u >= s.
        first = (u[0] * self.intervals).long()
        last = first + 1 + (u[1] * (self.intervals - first)).long()
        reach = (last - first).clamp(max=self.max_solver_steps)
        middle = first + 1 + (u[2] * reach).long()
        t, between, s, end = grid[first], grid[middle], grid[last], grid[-1].expand(self.batch)
        x_t = diffuse(self.ground.schedule, data.x0, noise_like(data.x0, generator), t)
        with torch.no_grad():
            x_u = self.solve(x_t, first, middle, data.cond)
            target = self._to_end(self.target_map(x_u, between, s, data.cond), s, end, data.cond)
        estimate = self._to_end(self.flow_map(x_t, t, s, data.cond), s, end, data.cond)
        return (estimate - target).square().mean()

    def denoising_loss(self, generator: torch.Generator) -> Tensor:
        data = self.ground.data(self.batch, generator)
        t = self.ground.times(self.batch, generator)
        x_t = diffuse(self.ground.schedule, data.x0, noise_like(data.x0, generator), t)
        return (self.flow_map.clean(x_t, t, t, data.cond) - data.x0).square().mean()

    def loss(self, generator: torch.Generator) -> Tensor:
        trajectory = self.trajectory_loss(generator)
        return trajectory + self.dsm_weight * self.denoising_loss(generator)

    def _to_end(self, x: Tensor, s: Tensor, end: Tensor, cond: Conditioning | None) -> Tensor:
        return self.target_map(x, s, end, cond)

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        """Jumps without noise between them, gamma = 0 in the paper."""
        return sample_by_jumps(self.flow_map, x, self.ground.grid(nfe), cond)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student, "average": self.average}

    def stages(self) -> Sequence[Stage]:
        player = Player(
            module=self.student,
            loss=self.loss,
            learning_rate=self.learning_rate,
            average=self.average,
            average_decay=self.average_decay,
        )
        return [Stage(name="distil", steps=self.steps, players={"student": player})]
