"""Exact students and teachers that the tests of field methods share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeAlias

import pytest
import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser
from core.distillation.field.consistency import solver_step
from core.distillation.method import Ground
from core.distillation.students import FlowMap
from core.exact_flow import ExactFlowMap
from core.prediction import Parametrisation
from core.schedule import NoiseSchedule
from core.solvers.sampling import Solver

Map: TypeAlias = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class _DoubleGround(Ground):
    """A ground whose times and noise are float64."""

    def grid(self, steps: int) -> Tensor:
        return torch.linspace(self.t_max, self.t_min, steps + 1, dtype=torch.float64)

    def times(self, n: int, generator: torch.Generator) -> Tensor:
        return super().times(n, generator).double()

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        return super().noise(n, generator).double()


@pytest.fixture
def double() -> Callable[[Ground], Ground]:
    """The same ground in float64; its mixture must be."""

    def convert(ground: Ground) -> Ground:
        values = {field.name: getattr(ground, field.name) for field in fields(ground)}
        return _DoubleGround(**values)

    return convert


@dataclass(frozen=True, eq=False)
class _ExactSolver:
    """A solver whose every step is the exact flow."""

    flow: ExactFlowMap
    order: int = 0

    def start(self) -> None:
        return None

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, None]:
        return self.flow(x, t, s), None


@pytest.fixture
def exact_solver() -> Callable[[ExactFlowMap], Solver]:
    return _ExactSolver


@dataclass(frozen=True, eq=False)
class _SolverMap:
    """`factor` times the map of x at any of the grid's times to its end, by a solver's steps."""

    teacher: Denoiser
    solver: Solver
    grid: Tensor
    skip: int = 1
    factor: float = 1.0

    @property
    def schedule(self) -> NoiseSchedule:
        return self.teacher.schedule

    def __call__(
        self, x_t: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None
    ) -> Tensor:
        last = len(self.grid) - 1
        index = (self.grid == t[:, None]).long().argmax(1)
        assert torch.equal(self.grid[index], t), "only the grid's own times are mapped"
        x = x_t.clone()
        while bool((index < last).any()):
            rows = index < last
            following = (index + self.skip).clamp(max=last)
            here, there = self.grid[index[rows]], self.grid[following[rows]]
            picked = None if cond is None else cond.select(rows)
            x[rows] = solver_step(self.teacher, self.solver, x[rows], here, there, picked)
            index = following
        return self.factor * x


@pytest.fixture
def solver_map() -> Callable[..., FlowMap]:
    """(teacher, solver, grid, skip, factor) to a _SolverMap."""
    return _SolverMap


class _X0Network(nn.Module):
    """A network that gives v for an x0 that is known as a function of x, t and cond."""

    def __init__(self, x0: Map, schedule_of: Denoiser) -> None:
        super().__init__()
        self.x0 = x0
        self.schedule = schedule_of.schedule

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        cond: Conditioning | None = None,
    ) -> Tensor:
        # eps = (x_t - alpha x0) / sigma, and v of the two.
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        x0 = self.x0(x, t, cond)
        v = Parametrisation.V_PREDICTION.target
        return v(x0, (x - alpha * x0) / sigma, t, self.schedule)


@pytest.fixture
def x0_network() -> Callable[[Map, Denoiser], nn.Module]:
    """A module that predicts v for a given function's x0."""
    return _X0Network
