"""The second player of distribution matching: a denoiser that follows the generator's samples.

The teacher knows the score of the data; the gradient of a divergence between the generator's
noised distribution and the data's needs the generator's score too. It has no closed form, so a
denoiser is trained on the generator's samples while the generator trains.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from core.denoiser import Conditioning, Denoiser
from core.distillation.generator.one_step import GeneratorDistillation
from core.distillation.method import Ground, Settings
from core.distillation.students import NetworkDenoiser
from core.schedule import diffuse, noise_like
from core.training import Player, Stage

__all__ = ["DenoiserGenerator", "FakeScoreDistillation", "denoiser_from_teacher"]


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


START = 5.0
"""sigma/alpha, in the data's standard deviations, of the noise level that generators start at:
SiD's (arXiv 2404.04057) 2.5 for data of 0.5."""


class DenoiserGenerator(nn.Module):
    """A trainable copy of a denoiser's network as a Generator: x0 of z taken for x_t at one t.

    z [B, ...] has unit variance, and is as wide as the noised data before the network sees it.
    """

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self.network, self._denoiser = denoiser_from_teacher(ground)
        r = torch.tensor(START * ground.data_std, dtype=torch.float64)
        t = ground.schedule.t_of_log_snr(-2 * r.log()).clamp(ground.t_min, ground.t_max)
        alpha, sigma = float(ground.schedule.alpha(t)), float(ground.schedule.sigma(t))
        self._t = float(t)
        self._spread = math.hypot(alpha * ground.data_std, sigma)

    def forward(self, z: Tensor, cond: Conditioning | None = None) -> Tensor:
        t = torch.full((len(z),), self._t, device=z.device, dtype=z.dtype)
        return self._denoiser(self._spread * z, t, cond).x0


class FakeScoreDistillation(GeneratorDistillation):
    """A generator and a fake score, trained in turn; the fake score goes first in each step.

    `fake` is read by the loss and may be replaced by an exact denoiser. Where the teacher is a
    network and z has the data's shape both start with its weights, so that the fake score need
    not first find a law that is far from all it knows; else the generator is a fresh network.

    Args:
        fake_updates: The fake score's optimiser steps for each of the generator's; more than one
            is the two-time-scale rule of DMD2 (arXiv 2405.14867).
        fake_learning_rate: Adam's; by default the generator's.
    """

    # Momentum turns the game's rotation around its equilibrium into an outward spiral.
    betas = (0.0, 0.99)

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

    def make_student(self) -> nn.Module:
        if self.latent_dimension is None and isinstance(self.ground.teacher, NetworkDenoiser):
            return DenoiserGenerator(self.ground)
        return super().make_student()

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
                betas=self.betas,
            ),
            "student": Player(
                module=self.student,
                loss=self.loss,
                learning_rate=self.learning_rate,
                betas=self.betas,
            ),
        }

    def modules(self) -> Mapping[str, nn.Module]:
        return {"student": self.student, "fake": self.fake_network}

    def stages(self) -> Sequence[Stage]:
        return [Stage(name="distil", steps=self.steps, players=self.players())]
