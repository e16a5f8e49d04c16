"""DDIM (arXiv 2010.02502), on any schedule; DDPM's ancestral sampling at eta = 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.denoiser import Denoiser
from core.prediction import Prediction
from core.schedule import NoiseSchedule, noise_like, per_sample
from core.solvers.ancestral import require_denoising

__all__ = ["DDIM", "ddim_coefficients", "ddim_step"]


def ddim_step(prediction: Prediction, s: Tensor) -> Tensor:
    """alpha_s x0 + sigma_s eps: the prediction carried unchanged to s [B], at eta = 0."""
    schedule, x = prediction.schedule, prediction.x_t
    return (
        per_sample(schedule.alpha(s), x) * prediction.x0
        + per_sample(schedule.sigma(s), x) * prediction.eps
    )


def ddim_coefficients(
    schedule: NoiseSchedule, t: Tensor, s: Tensor, eta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(a, b, h), of t's shape, of DDIM's step x_s = a x_t + b x0 + h z, for s < t, sigma_t > 0.

    Given x0 itself instead of a prediction, at eta = 1 that is x_s's exact law given x_t and x0.
    """
    sigma_s, sigma_t = schedule.sigma(s), schedule.sigma(t)
    fresh = eta * _posterior_std(schedule, t, s)
    of_x = torch.sqrt((sigma_s.square() - fresh.square()).clamp(min=0)) / sigma_t
    return of_x, schedule.alpha(s) - of_x * schedule.alpha(t), fresh


@dataclass(frozen=True, kw_only=True)
class DDIM:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - h^2) eps + h z (arXiv 2010.02502, Eq. 12).

    h^2 = eta^2 sigma_s^2 (1 - SNR_t / SNR_s): eta^2 times the variance of x_s given x_t and x0,
    Eq. 16 for the variance-preserving case. eta = 0 is deterministic, runs either way in time
    and is of first order; eta > 0 only denoises, and needs a generator. At eta = 1 a step's
    Gaussian is DDPM's.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"DDIM's eta must lie in [0, 1], got {self.eta}.")

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
        prediction = denoiser(x, t)
        if self.eta == 0:
            return ddim_step(prediction, s), None
        generator = require_denoising("DDIM with eta > 0", t, s, generator, otherwise="set eta=0")
        schedule = denoiser.schedule
        sigma_s = schedule.sigma(s)
        fresh = self.eta * _posterior_std(schedule, t, s)
        kept = torch.sqrt((sigma_s.square() - fresh.square()).clamp(min=0))
        x_s = (
            per_sample(schedule.alpha(s), x) * prediction.x0
            + per_sample(kept, x) * prediction.eps
            + per_sample(fresh, x) * noise_like(x, generator)
        )
        return x_s, None


def _posterior_std(schedule: NoiseSchedule, t: Tensor, s: Tensor) -> Tensor:
    """Standard deviation of x_s given x_t and x0 [B], for s < t."""
    sigma_s = schedule.sigma(s)
    snr_ratio = (schedule.alpha(t) * sigma_s / (schedule.alpha(s) * schedule.sigma(t))).square()
    return sigma_s * torch.sqrt((1 - snr_ratio).clamp(min=0))
