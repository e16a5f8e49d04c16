"""Generators that start from noised data: x_s to x0 at a few levels s, against a critic."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser
from core.distillation.generator.fake_score import denoiser_from_teacher
from core.distillation.method import Batch, Distillation, Ground, Settings
from core.distillation.students import sample_by_noising
from core.schedule import NoiseSchedule, diffuse, noise_like
from core.training import Player, Stage

__all__ = ["NoisedStartDistillation"]


class NoisedStartDistillation(Distillation):
    """A student x0 = f(x_s, s) at the `levels` uniform times s from t_max down, and a critic.

    From the noisiest level it is a one-step generator; sampled in more steps, its answer is
    noised to the next level and it is called again. It starts as the teacher where that is a
    network. The critic goes first in each step. Subclasses make `self.critic`, and let it read s:
    a critic that does not sees all levels' samples as one law, and lets one level make up for the
    modes that another has lost.

    Args:
        levels: Times at which the student is trained.
        critic_updates: The critic's optimiser steps for each of the student's.
        critic_learning_rate: Adam's; by default the student's.
    """

    # Momentum turns the game's rotation around its equilibrium into an outward spiral.
    betas = (0.0, 0.99)

    critic: nn.Module

    def __init__(
        self,
        ground: Ground,
        *,
        levels: int = 4,
        critic_updates: int = 1,
        critic_learning_rate: float | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(ground, **settings)
        if levels < 1:
            raise ValueError(f"levels must be at least 1, got {levels}.")
        self.levels = levels
        self.critic_updates = critic_updates
        self.critic_learning_rate = critic_learning_rate or self.learning_rate
        self.student, self.denoiser = denoiser_from_teacher(ground)

    def draw_start(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x_s of the batch's data [B, ...] and the index of s in `ground.grid(levels)` [B]."""
        index = torch.randint(self.levels, (len(batch.x0),), generator=generator)
        s = self.ground.grid(self.levels)[index]
        noise = noise_like(batch.x0, generator)
        return diffuse(self.ground.schedule, batch.x0, noise, s), index

    def generate(self, x_s: Tensor, index: Tensor, cond: Conditioning | None = None) -> Tensor:
        """f(x_s, s) [B, ...], differentiable."""
        return self.denoiser(x_s, self.ground.grid(self.levels)[index], cond).x0

    @abstractmethod
    def critic_loss(self, generator: torch.Generator) -> Tensor:
        """The critic's scalar over a batch drawn from `generator`."""

    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student, "critic": self.critic}

    def stages(self) -> Sequence[Stage]:
        critic = Player(
            module=self.critic,
            loss=self.critic_loss,
            learning_rate=self.critic_learning_rate,
            updates=self.critic_updates,
            betas=self.betas,
        )
        student = Player(
            module=self.student,
            loss=self.loss,
            learning_rate=self.learning_rate,
            betas=self.betas,
        )
        players = {"critic": critic, "student": student}
        return [Stage(name="distil", steps=self.steps, players=players)]

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        """Raises ValueError where nfe does not divide `levels`."""
        if nfe < 1 or self.levels % nfe:
            raise ValueError(
                f"The student knows {self.levels} noise levels: ask for an nfe that divides "
                f"{self.levels}, not {nfe}, or train it with levels={nfe}."
            )
        # Every (levels / nfe)-th of the very times it was trained at.
        times = self.ground.grid(self.levels)[:: self.levels // nfe]
        return sample_by_noising(_ToData(self.denoiser), x, times, cond, generator)


@dataclass(frozen=True, eq=False)
class _ToData:
    """A denoiser's x0 as a FlowMap that always goes to the data."""

    denoiser: Denoiser

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(
        self, x_t: Tensor, t: Tensor, s: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        return self.denoiser(x_t, t, cond).x0
