"""Noise-free score distillation: guidance and the domain's pull, without the noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser, Guidance
from core.distillation.score.sds import Weighting, x0_weighting
from core.schedule import diffuse, noise_like, per_sample

__all__ = ["NFSD", "NFSD_NEGATIVE_PROMPT"]

NFSD_NEGATIVE_PROMPT = (
    "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, "
    "low-resolution, gloomy"
)
"""What stands for images outside the domain (arXiv 2310.17590)."""

NOISE_FREE_BELOW = 0.2
"""The t below which eps_uncond is taken to hold no noise: the paper's 200 of 1000 timesteps."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NFSD:
    """gradient = w(t) (sigma/alpha) (delta_D + delta_C) (arXiv 2310.17590, Eq. 6).

    delta_C = eps_guided - eps_uncond, the direction of the prompt (for scale s, s times
    eps_cond - eps_uncond), and delta_D the direction of the domain: what is left of eps_uncond
    when the noise in it is gone. That is eps_uncond itself where there is little noise,
    t < 0.2, and eps_uncond - eps_negative above, where `negative` describes images
    outside the domain, so that the noise common to both cancels.

    Below the limit it is SDS without the subtracted eps: the same expectation. Above, with
    `negative` = cond.uncond, it is CSD.
    """

    guided_only: ClassVar[bool] = False

    guidance: Guidance
    denoiser: Denoiser
    negative: Conditioning
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
        x_t = diffuse(schedule, x, eps, t)
        parts = self.guidance.parts(x_t, t, cond)
        unconditional = parts.unconditional.eps
        negative = self.denoiser(x_t, t, self.negative.expand(len(x))).eps
        noisy = per_sample((t >= NOISE_FREE_BELOW).to(x.dtype), x)
        of_domain = unconditional - noisy * negative
        of_prompt = parts.guided.eps - unconditional
        scale = self.weighting(schedule, t) * schedule.sigma(t) / schedule.alpha(t)
        return per_sample(scale, x) * (of_domain + of_prompt)
