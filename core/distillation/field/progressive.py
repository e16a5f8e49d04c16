"""Progressive distillation: each student does in one DDIM step what its teacher did in two."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser
from core.distillation.field.counted_students import CountedStudents
from core.distillation.method import Family, Ground, MethodCard, Needs, Settings, StudentKind
from core.distillation.students import NetworkDenoiser
from core.prediction import Parametrisation
from core.schedule import NoiseSchedule, diffuse, noise_like, per_sample
from core.solvers.ddim import ddim_step
from core.training import Player, Stage

__all__ = [
    "ProgressiveDistillation",
    "inherit_weights",
    "require_x0",
    "truncated_snr",
    "x0_of_step",
]


def x0_of_step(x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The x0 [B, ...] with which one DDIM step takes x_t at t [B] to x_s at s [B], s < t.

    (x_s - r x_t) / (alpha_s - r alpha_t), r = sigma_s / sigma_t (arXiv 2202.00512, Algorithm 2).
    """
    ratio = schedule.sigma(s) / schedule.sigma(t)
    gain = schedule.alpha(s) - ratio * schedule.alpha(t)
    return (x_s - per_sample(ratio, x_t) * x_t) / per_sample(gain, x_t)


def truncated_snr(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """max(SNR, 1) [B], the weight of x0's squared error (arXiv 2202.00512, Section 4)."""
    return schedule.log_snr(t).exp().clamp(min=1.0)


def require_x0(given: Parametrisation) -> None:
    """Raise ValueError for what a student in few steps cannot predict."""
    if given not in (Parametrisation.V_PREDICTION, Parametrisation.X0):
        raise ValueError(
            f"A student in few steps cannot predict {given.value}, which says nothing of x0 where "
            "alpha = 0. Choose V_PREDICTION or X0."
        )


def inherit_weights(student: nn.Module, teacher: Denoiser, given: Parametrisation) -> bool:
    """Copy the teacher's weights into `student`, where it is a network of the same shapes.

    Both must give the same parametrisation. Returns whether anything was copied.
    """
    if not isinstance(teacher, NetworkDenoiser) or teacher.parametrisation is not given:
        return False
    network = teacher.network
    if not isinstance(network, nn.Module):
        return False
    state, own = network.state_dict(), student.state_dict()
    if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in own.items()}:
        return False
    student.load_state_dict(state)
    return True


class ProgressiveDistillation(CountedStudents):
    """max(SNR, 1) |D(x_t, t) - x~|^2 (Salimans & Ho, arXiv 2202.00512, Algorithm 2).

    Two DDIM steps of the teacher, t to t' to t'', end in x_t''; x~ is the x0 with which one step
    does so. The rounds halve teacher_steps down to `nfe`; each student is the next one's teacher
    and its first weights, and all are kept.

    The student predicts v or x0, by default what the ground's networks give: where alpha = 0, eps
    says nothing of x0. With parametrisation=Parametrisation.X0 and a teacher that predicts x0 this
    is ProDiff's recipe (arXiv 2207.06389), there of four steps to two for speech.
    """

    card = MethodCard(
        name="progressive",
        title="Progressive distillation",
        family=Family.OUTPUT,
        student=StudentKind.DENOISER,
        needs=frozenset({Needs.TEACHER, Needs.DATA}),
        nfe=(1, 2, 4, 8),
        reference="arXiv 2202.00512",
        idea="Halve the number of DDIM steps, again and again, each student teaching the next.",
        equation="max(SNR, 1) |D(x_t) - x~|^2, DDIM(x_t, x~) = DDIM(DDIM(x_t))",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        teacher_steps: int = 16,
        nfe: int = 1,
        parametrisation: Parametrisation | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        """teacher_steps / nfe must be a power of two; `steps` are shared out among the rounds."""
        super().__init__(ground, **settings)
        counts = [teacher_steps]
        while counts[-1] > nfe and counts[-1] % 2 == 0:
            counts.append(counts[-1] // 2)
        if nfe < 1 or counts[-1] != nfe or len(counts) == 1:
            raise ValueError(
                f"teacher_steps must be nfe times 2, 4, 8, ..., got {teacher_steps} and {nfe}."
            )
        if self.steps < len(counts) - 1:
            raise ValueError(f"{len(counts) - 1} rounds need at least as many optimiser steps.")
        parametrisation = parametrisation or ground.parametrisation
        require_x0(parametrisation)
        self.teacher_steps = teacher_steps
        self.nfe = nfe
        self.parametrisation = parametrisation
        self.students = {count: ground.make_network() for count in counts[1:]}
        self.student = self.students[nfe]

    @torch.no_grad()
    def target(
        self,
        x_t: Tensor,
        t: Tensor,
        middle: Tensor,
        s: Tensor,
        cond: Conditioning | None,
        teacher: Denoiser,
    ) -> Tensor:
        """x~ [B, ...] of the teacher's steps t to middle to s, each [B]."""
        x_middle = ddim_step(teacher(x_t, t, cond), middle)
        x_s = ddim_step(teacher(x_middle, middle, cond), s)
        return x0_of_step(x_t, t, x_s, s, self.ground.schedule)

    def distance(self, x0: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """A scalar, of the student's x0 and x~ [B, ...] at t [B]."""
        weight = per_sample(truncated_snr(self.ground.schedule, t), x0)
        return (weight * (x0 - target).square()).mean()

    def loss_of_round(self, nfe: int, generator: torch.Generator) -> Tensor:
        """The loss of the student of `nfe` steps, whose teacher takes twice as many."""
        data = self.ground.data(self.batch, generator)
        grid = self.ground.grid(2 * nfe)
        first = 2 * torch.randint(nfe, (self.batch,), generator=generator)
        t, middle, s = grid[first], grid[first + 1], grid[first + 2]
        x_t = diffuse(self.ground.schedule, data.x0, noise_like(data.x0, generator), t)
        target = self.target(x_t, t, middle, s, data.cond, self.denoiser(2 * nfe))
        return self.distance(self.denoiser(nfe)(x_t, t, data.cond).x0, target, t)

    def loss(self, generator: torch.Generator) -> Tensor:
        """The last round's."""
        return self.loss_of_round(self.nfe, generator)

    def stages(self) -> Sequence[Stage]:
        rounds = len(self.students)
        stages = []
        for k, (count, network) in enumerate(self.students.items()):
            player = Player(
                module=network,
                loss=partial(self.loss_of_round, count),
                learning_rate=self.learning_rate,
            )
            steps = self.steps * (k + 1) // rounds - self.steps * k // rounds
            stages.append(
                Stage(
                    name=f"{2 * count} to {count}",
                    steps=steps,
                    players={"student": player},
                    enter=partial(self._enter, count),
                )
            )
        return stages

    def _enter(self, count: int, generator: torch.Generator) -> None:
        inherit_weights(self.students[count], self.denoiser(2 * count), self.parametrisation)
