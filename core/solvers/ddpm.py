"""DDPM's ancestral sampling (arXiv 2006.11239), on any schedule and any steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.denoiser import Denoiser
from core.schedule import NoiseSchedule, noise_like, per_sample
from core.solvers.ancestral import require_denoising
from core.solvers.ddim import DDIM

__all__ = ["DDPM", "transition_variance"]


def transition_variance(schedule: NoiseSchedule, t: Tensor, s: Tensor) -> Tensor:
    """Var[x_t | x_s] = sigma_t^2 - (alpha_t sigma_s / alpha_s)^2 [B], for s < t: DDPM's beta."""
    kept = schedule.alpha(t) * schedule.sigma(s) / schedule.alpha(s)
    return (schedule.sigma(t).square() - kept.square()).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class DDPM:
    """x_s = E[x_s | x_t, x0] + std z (Algorithm 2; Eq. 7 with the predicted x0).

    `variance` is "small", the variance of x_s given x_t and x0 (exact for data that is a point;
    then the step is DDIM's at eta = 1), or "large", that of x_t given x_s (exact for data of
    unit variance, on variance-preserving schedules). No noise is added in a step to sigma = 0.
    """

    variance: Literal["small", "large"] = "small"

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large"):
            raise ValueError(f'DDPM\'s variance must be "small" or "large", got {self.variance!r}.')

    @property
    def order(self) -> int:
        return 1

    def start(self) -> None:
        return None

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, None]:
        if self.variance == "small":
            return DDIM(eta=1.0).step(denoiser, x, t, s, None, generator)
        generator = require_denoising("DDPM", t, s, generator)
        schedule = denoiser.schedule
        beta = transition_variance(schedule, t, s)
        gain = schedule.alpha(t) / schedule.alpha(s)
        gain = gain * (schedule.sigma(s) / schedule.sigma(t)).square()
        of_x0 = schedule.alpha(s) * beta / schedule.sigma(t).square()
        std = torch.where(schedule.sigma(s) > 0, beta.sqrt(), 0.0)
        x0 = denoiser(x, t).x0
        mean = per_sample(gain, x) * x + per_sample(of_x0, x) * x0
        return mean + per_sample(std, x) * noise_like(x, generator), None
