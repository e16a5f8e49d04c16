"""Variational score distillation: the teacher's denoiser against one of the images themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.distillation.score.sds import Weighting, x0_weighting
from core.schedule import diffuse, noise_like, per_sample

__all__ = ["VSD"]


@dataclass(frozen=True, eq=False)
class VSD:
    """gradient = w(t) (D_fake(x_t) - D(x_t)) (ProlificDreamer, arXiv 2305.16213).

    D and D_fake are x0 readings; the paper's eps form is this times alpha/sigma. `fake` denoises
    the images that are being made (particles, renders, a generator's samples); if it is exact,
    the expectation is w(t) (sigma/alpha)^2 times the gradient of KL(q_t || p_t), q_t the law of
    x_t. With one particle x the exact `fake` says x, and this is SDS; with many it pushes
    them apart, and their spread and mode weights become the teacher's.

    Training `fake` is the caller's part. Both denoisers must have the same schedule.
    """

    guided_only: ClassVar[bool] = False  # `fake` learns as a twin of the unguided teacher

    denoiser: Denoiser
    fake: Denoiser
    weighting: Weighting = x0_weighting

    def __post_init__(self) -> None:
        if self.fake.schedule != self.denoiser.schedule:
            raise ValueError(
                "VSD compares two denoisers at the same x_t: give `fake` the teacher's schedule, "
                f"got {self.fake.schedule} and {self.denoiser.schedule}."
            )

    def gradient(
        self, x: Tensor, t: Tensor, cond: Conditioning | None, generator: torch.Generator
    ) -> Tensor:
        return self.gradient_at(x, t, noise_like(x, generator), cond)

    @torch.no_grad()
    def gradient_at(
        self, x: Tensor, t: Tensor, eps: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        """The gradient for a given noise eps [B, ...]."""
        schedule = self.denoiser.schedule
        x_t = diffuse(schedule, x, eps, t)
        difference = self.fake(x_t, t, cond).x0 - self.denoiser(x_t, t, cond).x0
        return per_sample(self.weighting(schedule, t), x) * difference
