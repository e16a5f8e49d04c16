"""The second player of distribution matching: a denoiser that follows the generator's samples.

The teacher knows the score of the data; the gradient of a divergence between the generator's
noised distribution and the data's needs the generator's score too. It has no closed form, so a
denoiser is trained on the generator's samples while the generator trains.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Denoiser
from core.distillation.generator.one_step import GeneratorDistillation
from core.distillation.method import Ground, Settings
from core.distillation.students import NetworkDenoiser
from core.schedule import diffuse, noise_like
from core.training import Player, Stage

__all__ = ["FakeScoreDistillation", "denoiser_from_teacher"]


def denoiser_from_teacher(ground: Ground) -> tuple[nn.Module, NetworkDenoiser]:
    """A trainable network and the denoiser it makes.

    A copy of the teacher where that is a network, as the papers start; else a fresh one.
    """
    teacher = ground.teacher
    if isinstance(teacher, NetworkDenoiser) and isinstance(teacher.network, nn.Module):
        network = copy.deepcopy(teacher.network).train().requires_grad_(True)
        return network, NetworkDenoiser(network, ground.schedule, teacher.parametrisation)
    network = ground.make_network(times=1)
    return network, NetworkDenoiser(network, ground.schedule)


class FakeScoreDistillation(GeneratorDistillation):
    """A generator and a fake score, trained in turn; the fake score goes first in each step.

    `fake` is read by the loss and may be replaced by an exact denoiser.

    Args:
        fake_updates: The fake score's optimiser steps for each of the generator's; more than one
            is the two-time-scale rule of DMD2 (arXiv 2405.14867).
        fake_learning_rate: Adam's; by default the generator's.
    """

    def __init__(
        self,
        ground: Ground,
        *,
        fake_updates: int = 1,
        fake_learning_rate: float | None = None,
        latent_dimension: int | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(ground, latent_dimension=latent_dimension, **settings)
        self.fake_updates = fake_updates
        self.fake_learning_rate = fake_learning_rate or self.learning_rate
        network, denoiser = denoiser_from_teacher(ground)
        self.fake_network: nn.Module = network
        self.fake: Denoiser = denoiser

    def fake_loss(self, generator: torch.Generator) -> Tensor:
        """Denoising the generator's samples, in the fake score's own parametrisation."""
        with torch.no_grad():
            made = self.draw(generator)
        t = self.ground.times(len(made.x0), generator)
        eps = noise_like(made.x0, generator)
        prediction = self.fake(diffuse(self.ground.schedule, made.x0, eps, t), t, made.cond)
        target = prediction.given.target(made.x0, eps, t, self.ground.schedule)
        return (prediction.value - target).square().mean()

    def players(self) -> dict[str, Player]:
        """The players of the one stage, in turn."""
        return {
            "fake": Player(
                module=self.fake_network,
                loss=self.fake_loss,
                learning_rate=self.fake_learning_rate,
                updates=self.fake_updates,
            ),
            "student": Player(
                module=self.student, loss=self.loss, learning_rate=self.learning_rate
            ),
        }

    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student, "fake": self.fake_network}

    def stages(self) -> Sequence[Stage]:
        return [Stage(name="distil", steps=self.steps, players=self.players())]
