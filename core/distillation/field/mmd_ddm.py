"""MMD-DDM: a few-step sampler fine-tuned as a whole, to the data's MMD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.field.imitation import imitate_then
from core.distillation.method import (
    Distillation,
    Family,
    Ground,
    MethodCard,
    Needs,
    Settings,
    StudentKind,
)
from core.distillation.students import NetworkDenoiser, sample_by_solver
from core.metrics import mmd_squared
from core.prediction import Parametrisation
from core.solvers.ddim import DDIM
from core.training import Player, Stage

__all__ = ["MMDFineTuning"]


class MMDFineTuning(Distillation):
    """MMD^2(phi(x_theta), phi(x)), x_theta by `nfe` DDIM steps (Aiello et al., arXiv 2301.07969).

    The unbiased U-statistic (core.metrics.mmd_squared), its gradient taken through every step of
    the sampler. The student imitates the teacher first.

    Args:
        nfe: The steps that are tuned for.
        features: phi, of [B, ...] to [B, F]; the identity by default.
        bandwidths: Of the kernel; by default fractions and multiples of data_std sqrt(D).
        imitation_steps: Of `steps`, for the first stage; half of them by default.
    """

    card = MethodCard(
        name="mmd-ddm",
        title="MMD fine-tuning",
        family=Family.PATH,
        student=StudentKind.DENOISER,
        needs=frozenset({Needs.TEACHER, Needs.DATA}),
        nfe=(2, 4, 8),
        reference="arXiv 2301.07969",
        idea="Tune the network so that its few-step samples match the data as sets.",
        equation="MMD^2(phi(x_theta), phi(x))",
    )

    def __init__(
        self,
        ground: Ground,
        *,
        nfe: int = 4,
        features: Callable[[Tensor], Tensor] | None = None,
        bandwidths: Sequence[float] | None = None,
        imitation_steps: int | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(ground, **settings)
        if nfe < 1:
            raise ValueError(f"nfe must be at least 1, got {nfe}.")
        self.nfe = nfe
        self.features = features
        scale = ground.data_std * torch.Size(ground.shape).numel() ** 0.5
        self.bandwidths = bandwidths or tuple(scale * factor for factor in (0.1, 0.3, 1.0))
        self.imitation_steps = self.steps // 2 if imitation_steps is None else imitation_steps
        self.student = ground.make_network()
        self.denoiser = NetworkDenoiser(self.student, ground.schedule, Parametrisation.V_PREDICTION)

    def loss(self, generator: torch.Generator) -> Tensor:
        """The second stage's."""
        data = self.ground.data(self.batch, generator)
        start = self.noise(self.batch, generator)
        x = self.sample(start, self.nfe, data.cond, generator)[-1]
        fake, real = x, data.x0
        if self.features is not None:
            fake, real = self.features(fake), self.features(real)
        return mmd_squared(fake, real, self.bandwidths)

    def sample(
        self, x: Tensor, nfe: int, cond: Conditioning | None, generator: torch.Generator
    ) -> list[Tensor]:
        return sample_by_solver(self.denoiser, DDIM(), x, self.ground.grid(nfe), cond)

    def stages(self) -> Sequence[Stage]:
        # Through the sampler the loss is sharper than a regression's.
        tuner = Player(module=self.student, loss=self.loss, learning_rate=0.25 * self.learning_rate)
        return imitate_then(
            self.denoiser,
            self.ground,
            imitation_steps=self.imitation_steps,
            tuning_steps=self.steps - self.imitation_steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            tuning={"student": tuner},
        )
