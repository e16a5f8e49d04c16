"""What methods share that keep a student for each of several numbers of steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser
from core.distillation.method import Distillation
from core.distillation.students import NetworkDenoiser, sample_by_solver
from core.prediction import Parametrisation
from core.solvers.ddim import DDIM
from core.training import Stage

__all__ = ["CountedStudents"]


class CountedStudents(Distillation):
    """Denoisers by the DDIM steps that each takes, the one with the fewest being `student`.

    Subclasses set `teacher_steps`, `students` by their steps, and `parametrisation`; each of their
    stages trains one of the students.
    """

    teacher_steps: int
    students: dict[int, nn.Module]
    parametrisation: Parametrisation

    def denoiser(self, nfe: int) -> Denoiser:
        """The student of `nfe` steps; with teacher_steps, the ground's teacher."""
        if nfe == self.teacher_steps:
            return self.ground.teacher
        if nfe not in self.students:
            raise ValueError(f"There is no student of {nfe} steps: ask one of {[*self.students]}.")
        return NetworkDenoiser(self.students[nfe], self.ground.schedule, self.parametrisation)

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        """DDIM of the student for `nfe`; raises ValueError where there is none."""
        return sample_by_solver(self.denoiser(nfe), DDIM(), x, self.ground.grid(nfe), cond)

    def sample_in(
        self,
        stage: Stage,
        x: Tensor,
        nfe: int,
        cond: Conditioning | None,
        generator: torch.Generator,
    ) -> list[Tensor]:
        """Of the student that the stage trains, in as many steps as it takes."""
        trained = stage.players["student"].module
        (count,) = (n for n, network in self.students.items() if network is trained)
        return self.sample(x, count, cond, generator)

    def modules(self) -> Mapping[str, nn.Module]:
        """The last student is "student", the one of N steps before it "student_N"."""
        last = min(self.students)
        return {
            "student" if count == last else f"student_{count}": network
            for count, network in self.students.items()
        }
