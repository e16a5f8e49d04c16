"""Knowledge distillation: one network call for what the teacher's sampler makes of the noise."""

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
from core.distillation.students import ConsistencyFunction, FlowMap
from core.solvers.ddim import DDIM
from core.solvers.sampling import Solver, sample

__all__ = ["KnowledgeDistillation"]


class KnowledgeDistillation(Distillation):
    """1/2 |f(x_T) - DDIM(x_T)|^2, x_T from the prior (Luhman & Luhman, arXiv 2101.02388).

    A deterministic sampler makes the answer a function of the noise, so no part of the loss is
    irreducible. The student is a consistency function that is only ever asked at t_max.
    """

    card = MethodCard(
        name="kd",
        title="Knowledge distillation (Denoising Student)",
        family=Family.OUTPUT,
        student=StudentKind.FLOW_MAP,
        needs=frozenset({Needs.TEACHER}),
        nfe=(1,),
        reference="arXiv 2101.02388",
        idea="Regress the teacher's deterministic samples on the noise that they came from.",
        equation="1/2 |f(x_T) - DDIM(x_T)|^2",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        teacher_steps: int = 16,
        solver: Solver | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        """`teacher_steps` of a deterministic `solver` (DDIM by default), uniform in t."""
        super().__init__(ground, **settings)
        if teacher_steps < 1:
            raise ValueError(f"teacher_steps must be at least 1, got {teacher_steps}.")
        self.teacher_steps = teacher_steps
        self.solver = solver or DDIM()
        self.student = ground.make_network()
        self.flow_map: FlowMap = ConsistencyFunction(
            self.student, ground.schedule, ground.t_min, ground.data_std
        )

    @torch.no_grad()
    def target(self, x: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The teacher's sample [B, ...] from the prior's x [B, ...]."""
        times = self.ground.grid(self.teacher_steps)
        return sample(self.ground.teacher, self.solver, times, x, cond).x

    def loss(self, generator: torch.Generator) -> Tensor:
        cond = self.ground.data(self.batch, generator).cond
        x = self.noise(self.batch, generator)
        return 0.5 * (self._jump(x, cond) - self.target(x, cond)).square().mean()

    def _jump(self, x: Tensor, cond: Conditioning | None) -> Tensor:
        ones = torch.ones(len(x), device=x.device, dtype=x.dtype)
        return self.flow_map(x, self.ground.t_max * ones, self.ground.t_min * ones, cond)

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        """Raises ValueError for any nfe but 1: the student knows no time but t_max."""
        if nfe != 1:
            raise ValueError(f"A student of kd samples in one evaluation, not {nfe}: ask nfe=1.")
        return [x, self._jump(x, cond)]
