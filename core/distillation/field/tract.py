"""TRACT: one step for a whole group of the teacher's, in one phase or two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser
from core.distillation.field.counted_students import CountedStudents
from core.distillation.field.progressive import (
    inherit_weights,
    require_x0,
    truncated_snr,
    x0_of_step,
)
from core.distillation.method import Family, Ground, MethodCard, Needs, Settings, StudentKind
from core.distillation.students import NetworkDenoiser
from core.schedule import diffuse, noise_like, per_sample
from core.solvers.ddim import ddim_step
from core.training import Player, Stage

__all__ = ["TRACT"]


class TRACT(CountedStudents):
    """max(SNR, 1) |D(x_t, t) - x~|^2, for jumps to the end of t's group (arXiv 2303.04248).

    The teacher's steps form equal groups. From x_t the teacher takes one step, the student's
    average the rest of the way to the group's end; x~ is the x0 with which one DDIM step does
    both. Its fixed point is the teacher's map over the group, in whatever number of steps, where
    progressive distillation needs a round for each halving.
    """

    card = MethodCard(
        name="tract",
        title="TRACT (transitive closure time-distillation)",
        family=Family.OUTPUT,
        student=StudentKind.DENOISER,
        needs=frozenset({Needs.TEACHER, Needs.DATA}),
        nfe=(1, 4),
        reference="arXiv 2303.04248",
        idea="One step of the teacher, then the student's own jump, make the student's target.",
        equation="max(SNR, 1) |D(x_t) - x~|^2, DDIM(x_t, x~) = student(teacher(x_t))",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        teacher_steps: int = 32,
        groups: Sequence[int] = (4, 1),
        average_decay: float = 0.9,
        **settings: Unpack[Settings],
    ) -> None:
        """`groups` of each phase; each divides the one before, the first teacher_steps."""
        super().__init__(ground, **settings)
        counts = (teacher_steps, *groups)
        if len(counts) < 2 or any(
            low < 1 or high <= low or high % low for high, low in pairwise(counts)
        ):
            raise ValueError(
                "TRACT needs groups that fall and divide one another and teacher_steps, as 32 and "
                f"(4, 1); got {teacher_steps} and {tuple(groups)}."
            )
        require_x0(ground.parametrisation)
        if self.steps < len(groups):
            raise ValueError(f"{len(groups)} phases need at least as many optimiser steps.")
        self.teacher_steps = teacher_steps
        self.parametrisation = ground.parametrisation
        self.steps_before = {count: before for before, count in pairwise(counts)}
        self.average_decay = average_decay
        self.students = {count: ground.make_network() for count in groups}
        self.averages = {
            count: deepcopy(network).requires_grad_(False)
            for count, network in self.students.items()
        }
        self.student = self.students[counts[-1]]

    @torch.no_grad()
    def target(
        self,
        x_t: Tensor,
        t: Tensor,
        following: Tensor,
        end: Tensor,
        cond: Conditioning | None,
        teacher: Denoiser,
        average: Denoiser,
    ) -> Tensor:
        """x~ [B, ...]: the teacher from t to the grid's next time, the average on to the end."""
        x_next = ddim_step(teacher(x_t, t, cond), following)
        jumped = ddim_step(average(x_next, following, cond), end)
        arrived = per_sample(following == end, x_t) > 0
        x_end = torch.where(arrived, x_next, jumped)
        return x0_of_step(x_t, t, x_end, end, self.ground.schedule)

    def loss_of_phase(self, groups: int, generator: torch.Generator) -> Tensor:
        """The loss of the phase that ends in so many groups."""
        data = self.ground.data(self.batch, generator)
        before = self.steps_before[groups]
        grid, size = self.ground.grid(before), before // groups
        index = torch.randint(before, (self.batch,), generator=generator)
        t, following, end = grid[index], grid[index + 1], grid[(index // size + 1) * size]
        x_t = diffuse(self.ground.schedule, data.x0, noise_like(data.x0, generator), t)
        average = NetworkDenoiser(self.averages[groups], self.ground.schedule, self.parametrisation)
        teacher = self.denoiser(before)
        target = self.target(x_t, t, following, end, data.cond, teacher, average)
        weight = per_sample(truncated_snr(self.ground.schedule, t), x_t)
        x0 = self.denoiser(groups)(x_t, t, data.cond).x0
        return (weight * (x0 - target).square()).mean()

    def loss(self, generator: torch.Generator) -> Tensor:
        """The last phase's."""
        return self.loss_of_phase(min(self.students), generator)

    def modules(self) -> Mapping[str, nn.Module]:
        """The students, and "average_N" the average of that of N groups."""
        averages = {f"average_{n}": m for n, m in self.averages.items()}
        return {**super().modules(), **averages}

    def stages(self) -> Sequence[Stage]:
        phases = len(self.students)
        return [
            Stage(
                name=f"{self.steps_before[count]} to {count}",
                steps=self.steps * (k + 1) // phases - self.steps * k // phases,
                players={
                    "student": Player(
                        module=network,
                        loss=partial(self.loss_of_phase, count),
                        learning_rate=self.learning_rate,
                        average=self.averages[count],
                        average_decay=self.average_decay,
                    )
                },
                enter=partial(self._enter, count),
            )
            for k, (count, network) in enumerate(self.students.items())
        ]

    def _enter(self, count: int, generator: torch.Generator) -> None:
        teacher = self.denoiser(self.steps_before[count])
        for network in (self.students[count], self.averages[count]):
            inherit_weights(network, teacher, self.parametrisation)
