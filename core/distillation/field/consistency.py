"""Consistency models: one answer for all the points of a trajectory, its end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser
from core.distillation.method import (
    Distillation,
    Family,
    Ground,
    MethodCard,
    Needs,
    Settings,
    StudentKind,
)
from core.distillation.students import ConsistencyFunction, FlowMap, sample_by_noising
from core.prediction import Prediction
from core.schedule import NoiseSchedule, diffuse, noise_like
from core.solvers.heun import Heun
from core.solvers.sampling import Solver
from core.training import Player, Stage

__all__ = ["ConsistencyDistillation", "ConsistencyMethod", "ConsistencyTraining", "solver_step"]


class ConsistencyMethod(Distillation):
    """|f(x_t, t) - sg f_average(x_s, s)|^2, s one or more intervals of the grid below t.

    What distillation and training share; they differ in how they come from x_t to x_s. The grid
    is uniform in t, and f(x, t_min) = x holds by construction, so that the targets' truth
    travels up from there.
    """

    def __init__(
        self,
        ground: Ground,
        *,
        intervals: int,
        average_decay: float,
        skip: int = 1,
        huber: float = 0.0,
        **settings: Unpack[Settings],
    ) -> None:
        """A consistency method on a grid of so many intervals.

        Args:
            ground: Where to train.
            intervals: Of the grid from t_min to t_max.
            average_decay: Of the average that gives the targets; 0 is the student itself.
            skip: Intervals from t to s; fewer where t_min is nearer.
            huber: c of the distance sqrt(|d|^2 + c^2) - c; 0 is the squared distance.
            settings: As in Settings.
        """
        super().__init__(ground, **settings)
        if not 1 <= skip <= intervals or huber < 0:
            raise ValueError(
                f"A consistency method needs 1 <= skip <= intervals and huber >= 0, got "
                f"skip={skip}, intervals={intervals} and huber={huber}."
            )
        self.intervals = intervals
        self.average_decay = average_decay
        self.skip = skip
        self.huber = huber
        self.student = ground.make_network()
        self.average = deepcopy(self.student).requires_grad_(False)
        self.flow_map: FlowMap = self._function(self.student)
        self.target_map: FlowMap = self._function(self.average)

    def _function(self, network: nn.Module) -> ConsistencyFunction:
        ground = self.ground
        return ConsistencyFunction(network, ground.schedule, ground.t_min, ground.data_std)

    @abstractmethod
    def earlier(
        self, x0: Tensor, eps: Tensor, t: Tensor, s: Tensor, cond: Conditioning | None
    ) -> Tensor:
        """x_s [B, ...] on the trajectory of x_t = alpha_t x0 + sigma_t eps, s < t, both [B]."""

    def distance(self, x: Tensor, target: Tensor) -> Tensor:
        """A scalar: the mean square, or the mean over samples of the pseudo-Huber distance."""
        if self.huber == 0:
            return (x - target).square().mean()
        squared = (x - target).square().flatten(1).sum(1)
        return (torch.sqrt(squared + self.huber**2) - self.huber).mean()

    def loss_on(self, intervals: int, generator: torch.Generator) -> Tensor:
        """The loss on a grid of so many intervals."""
        data = self.ground.data(self.batch, generator)
        grid = self.ground.grid(intervals)
        index = torch.randint(intervals, (self.batch,), generator=generator)
        t, s = grid[index], grid[(index + self.skip).clamp(max=intervals)]
        end = grid[-1].expand_as(t)
        eps = noise_like(data.x0, generator)
        with torch.no_grad():
            x_s = self.earlier(data.x0, eps, t, s, data.cond)
            target = self.target_map(x_s, s, end, data.cond)
        x_t = diffuse(self.ground.schedule, data.x0, eps, t)
        return self.distance(self.flow_map(x_t, t, end, data.cond), target)

    def loss(self, generator: torch.Generator) -> Tensor:
        return self.loss_on(self.intervals, generator)

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        return sample_by_noising(self.flow_map, x, self.ground.grid(nfe), cond, generator)

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


class ConsistencyDistillation(ConsistencyMethod):
    """Consistency distillation: x_s by a step of the teacher (arXiv 2303.01469, Algorithm 2).

    Its fixed point is the solver's map through the grid, so the solver's error stays.
    """

    card = MethodCard(
        name="cd",
        title="Consistency distillation",
        family=Family.OUTPUT,
        student=StudentKind.FLOW_MAP,
        needs=frozenset({Needs.TEACHER, Needs.DATA}),
        nfe=(1, 2, 4),
        reference="arXiv 2303.01469",
        idea="Points that the teacher's solver joins must have the same end.",
        equation="|f(x_t, t) - sg f_average(S(x_t), s)|^2",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        intervals: int = 18,
        average_decay: float = 0.95,
        skip: int = 1,
        huber: float = 0.0,
        solver: Solver | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        """`solver` is a one-step one, Heun by default; the rest as in ConsistencyMethod."""
        super().__init__(
            ground,
            intervals=intervals,
            average_decay=average_decay,
            skip=skip,
            huber=huber,
            **settings,
        )
        self.solver = solver or Heun()

    def earlier(
        self, x0: Tensor, eps: Tensor, t: Tensor, s: Tensor, cond: Conditioning | None
    ) -> Tensor:
        x_t = diffuse(self.ground.schedule, x0, eps, t)
        return solver_step(self.ground.teacher, self.solver, x_t, t, s, cond)


class ConsistencyTraining(ConsistencyMethod):
    """Consistency training: x_s from the same x0 and eps as x_t (arXiv 2303.01469, Algorithm 3).

    No teacher: eps = (x_t - alpha x0) / sigma is an unbiased estimate of the score's, so the
    step of x_t to x_s is DDIM's on average, and the error falls with the intervals. They double
    from first_intervals to `intervals`, `steps` shared out evenly, as in arXiv 2310.14189. That
    paper takes its targets from the student itself (average_decay=0); small networks trained for
    a thousand steps wander without the average.
    """

    card = MethodCard(
        name="ct",
        title="Consistency training",
        family=Family.OUTPUT,
        student=StudentKind.FLOW_MAP,
        needs=frozenset({Needs.DATA}),
        nfe=(1, 2, 4),
        reference="arXiv 2303.01469",
        idea="Two noisings of one draw by the same noise must have the same end.",
        equation="|f(x_t, t) - sg f_average(alpha_s x0 + sigma_s eps, s)|^2",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        first_intervals: int = 8,
        intervals: int = 32,
        average_decay: float = 0.95,
        huber: float = 0.0,
        **settings: Unpack[Settings],
    ) -> None:
        """intervals / first_intervals must be a power of two; the rest as in ConsistencyMethod."""
        super().__init__(
            ground, intervals=intervals, average_decay=average_decay, huber=huber, **settings
        )
        self.counts = [first_intervals]
        while 0 < self.counts[-1] < intervals:
            self.counts.append(2 * self.counts[-1])
        if self.counts[-1] != intervals or self.steps < len(self.counts):
            raise ValueError(
                "Consistency training needs intervals = first_intervals times 1, 2, 4, ..., and a "
                f"step for each count, got {intervals}, {first_intervals} and steps={self.steps}."
            )

    def earlier(
        self, x0: Tensor, eps: Tensor, t: Tensor, s: Tensor, cond: Conditioning | None
    ) -> Tensor:
        return diffuse(self.ground.schedule, x0, eps, s)

    def stages(self) -> Sequence[Stage]:
        (stage,) = super().stages()
        player = stage.players["student"]
        n = len(self.counts)
        return [
            Stage(
                name=f"{count} intervals",
                steps=self.steps * (k + 1) // n - self.steps * k // n,
                players={"student": replace(player, loss=partial(self.loss_on, count))},
            )
            for k, count in enumerate(self.counts)
        ]


def solver_step(
    denoiser: Denoiser,
    solver: Solver,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    cond: Conditioning | None = None,
) -> Tensor:
    """One step of a one-step solver from t to s [B], where each sample has times of its own.

    Steps that touch an end where alpha or sigma is 0 are taken apart from the others: there a
    solver falls back to DDIM, for all of the batch that it is given.
    """
    schedule = denoiser.schedule
    at_end = (schedule.alpha(t) == 0) | (schedule.sigma(s) == 0)
    x_s = torch.empty_like(x_t)
    for rows in (at_end, ~at_end):
        if bool(rows.any()):
            bound = _Bound(denoiser, None if cond is None else cond.select(rows))
            x_s[rows], _ = solver.step(bound, x_t[rows], t[rows], s[rows], solver.start())
    return x_s


class _Bound:
    """A denoiser with a conditioning, as solvers call it."""

    def __init__(self, denoiser: Denoiser, cond: Conditioning | None) -> None:
        self._denoiser = denoiser
        self._cond = cond

    @property
    def schedule(self) -> NoiseSchedule:
        return self._denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        return self._denoiser(x_t, t, self._cond)
