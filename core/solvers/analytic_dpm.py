"""Analytic-DPM: the optimal reverse variance, from the mean squared score (arXiv 2201.06503)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.schedule import diffuse, noise_like, per_sample
from core.solvers.ancestral import require_denoising
from core.solvers.ddim import ddim_coefficients

__all__ = ["AnalyticDPM", "x0_variance"]


@torch.no_grad()
def x0_variance(
    denoiser: Denoiser,
    data: Tensor,
    times: Tensor,
    generator: torch.Generator,
    cond: Conditioning | None = None,
) -> Tensor:
    """E Var[x0 | x_t] per dimension [N], at times [N], by Monte Carlo over data [M, ...].

    Each time noises all of `data` once. From Gamma_t = E |score|^2 / D,
    E Var[x0 | x_t] = (sigma^2/alpha^2) (1 - sigma^2 Gamma_t), and sigma^2 Gamma_t is the mean
    square of eps; it lies in [0, sigma^2/alpha^2]. Raises ValueError where alpha or sigma is 0.
    """
    schedule = denoiser.schedule
    log_snr = schedule.log_snr(times)
    if not bool(torch.isfinite(log_snr).all()):
        raise ValueError(
            "x0_variance needs times at which the schedule's alpha and sigma are not 0. Stay "
            "inside that end of the schedule."
        )
    squares = []
    for time in times.to(data.device):
        t = time.expand(len(data))
        x_t = diffuse(schedule, data, noise_like(data, generator), t)
        squares.append(denoiser(x_t, t, cond).eps.square().mean().to(times.dtype))
    mean_squares = torch.stack(squares).to(times.device).clamp(0, 1)
    return torch.exp(-log_snr) * (1 - mean_squares)


@dataclass(frozen=True, kw_only=True, eq=False)
class AnalyticDPM:
    """Ancestral sampling with the variance that maximises the likelihood (Theorem 1).

    The mean is that of DDIM at `eta`; the variance is h^2 + c^2 E Var[x0 | x_t], where c is what
    x_s's mean gains per unit of x0: what the paper writes with Gamma.

    times      [N], falling or rising, at which the variance of x0 is known: those steps start at
    variances  [N], as `x0_variance` estimates them

    At eta = 1 it is E Var[x_s | x_t] per dimension. One call a step; draws noise in every step but
    one to sigma = 0. A step from a time that is not among `times` raises ValueError.
    """

    times: Tensor
    variances: Tensor
    eta: float = 1.0

    def __post_init__(self) -> None:
        if self.times.ndim != 1 or self.times.shape != self.variances.shape:
            raise ValueError("AnalyticDPM needs times and variances of one shape [N].")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"AnalyticDPM's eta must lie in [0, 1], got {self.eta}.")

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
        generator = require_denoising("AnalyticDPM", t, s, generator)
        schedule = denoiser.schedule
        of_x, of_x0, fresh = ddim_coefficients(schedule, t, s, self.eta)
        variance = fresh.square() + of_x0.square() * self._variance_at(t)
        std = torch.where(schedule.sigma(s) > 0, variance.sqrt(), 0.0)
        mean = per_sample(of_x, x) * x + per_sample(of_x0, x) * denoiser(x, t).x0
        return mean + per_sample(std, x) * noise_like(x, generator), None

    def _variance_at(self, t: Tensor) -> Tensor:
        known = self.times.to(t)
        distance = (t[:, None] - known).abs()
        nearest = distance.argmin(1)
        if bool((distance.amin(1) > 1e-6).any()):
            raise ValueError(
                "AnalyticDPM knows the variance of x0 at its own times only. Estimate it with "
                "x0_variance at every time that a step starts from."
            )
        return self.variances.to(t)[nearest]
