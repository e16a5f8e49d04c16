"""Classifier score distillation: guidance alone, without the generative score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.denoiser import Conditioning, Guidance
from core.distillation.score.sds import Weighting, x0_weighting
from core.schedule import diffuse, noise_like, per_sample

__all__ = ["CSD"]


@dataclass(frozen=True, eq=False)
class CSD:
    """gradient = w(t) (D_uncond(x_t) - D_guided(x_t)) (arXiv 2310.19415).

    For classifier-free guidance of scale s that is w s (D_uncond - D_cond) =
    w s (sigma/alpha) (eps_cond - eps_uncond) = -w s (sigma^2/alpha) grad log p(y | x_t): the
    gradient of an implicit classifier. SDS with the guided denoiser is SDS with the unconditional
    one plus this, so guided SDS is affine in s, and this is its slope.

    A negative prompt is guidance's own: what cond.uncond was encoded from.
    """

    guided_only: ClassVar[bool] = False

    guidance: Guidance
    weighting: Weighting = x0_weighting

    def gradient(
        self, x: Tensor, t: Tensor, cond: Conditioning | None, generator: torch.Generator
    ) -> Tensor:
        return self.gradient_at(x, t, noise_like(x, generator), cond)

    @torch.no_grad()
    def gradient_at(
        self, x: Tensor, t: Tensor, eps: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        """The gradient for a given noise eps [B, ...]."""
        schedule = self.guidance.schedule
        parts = self.guidance.parts(diffuse(schedule, x, eps, t), t, cond)
        difference = parts.unconditional.x0 - parts.guided.x0
        return per_sample(self.weighting(schedule, t), x) * difference
