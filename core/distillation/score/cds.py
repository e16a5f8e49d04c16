"""Consistency distillation sampling: two neighbours on a path that starts from a fixed noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.distillation.score.inversion import START
from core.distillation.score.sds import Weighting, x0_weighting
from core.schedule import diffuse, per_sample
from core.solvers.ddim import ddim_step
from core.transfer import to_device

__all__ = ["CDS"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CDS:
    """gradient = w(t) (sigma/alpha)(t) (eps(x_t) - eps(x_s)) (Consistent3D, arXiv 2401.09050).

    x_t = alpha x + sigma eps* for one noise eps* that never changes, and x_s is one step of the
    probability-flow ODE from it, to s = t - interval. The ODE is deterministic, so the less noisy
    neighbour is a steady guide where SDS draws a new one each time. With n = sigma/alpha, the two
    x0 differ by n_s times the two eps: D(x_t) - D(x_s) = n_s (eps(x_s) - eps(x_t)), the residual
    of consistency distillation.

    The direction is that of the authors' program, x toward x + eps(x_s) - eps(x_t), which agrees
    with ISM's and leads to where the teacher is denser. Both times are guided. O(interval).

    eps* [...] is drawn from `noise_seed`, for each shape of image the same in all samples and all
    steps, so a resumed run has it too.
    """

    guided_only: ClassVar[bool] = True

    denoiser: Denoiser
    interval: float = 0.05
    noise_seed: int = 0
    weighting: Weighting = x0_weighting

    def __post_init__(self) -> None:
        if not 0 < self.interval < 1:
            raise ValueError(f"CDS's interval must lie in (0, 1), got {self.interval}.")

    def gradient(
        self, x: Tensor, t: Tensor, cond: Conditioning | None, generator: torch.Generator
    ) -> Tensor:
        """Nothing is drawn from `generator`."""
        return self.gradient_at(x, t, self.fixed_noise(x), cond)

    def fixed_noise(self, x: Tensor) -> Tensor:
        """eps* for images like x [B, ...], the same in every sample."""
        generator = torch.Generator().manual_seed(self.noise_seed)
        noise = torch.randn(x.shape[1:], generator=generator, dtype=x.dtype)
        return to_device(noise, x.device).expand_as(x)

    @torch.no_grad()
    def gradient_at(
        self, x: Tensor, t: Tensor, eps: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        """The gradient for a given noise eps [B, ...]. Times below START + interval are raised."""
        schedule = self.denoiser.schedule
        t = t.clamp(min=START + self.interval)
        s = t - self.interval
        at_t = self.denoiser(diffuse(schedule, x, eps, t), t, cond)
        at_s = self.denoiser(ddim_step(at_t, s), s, cond)
        scale = self.weighting(schedule, t) * schedule.sigma(t) / schedule.alpha(t)
        return per_sample(scale, x) * (at_t.eps - at_s.eps)
