"""Euler-Maruyama on the reverse SDE (Score SDE, arXiv 2011.13456), on any schedule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.denoiser import Denoiser
from core.schedule import NoiseSchedule, noise_like, per_sample

__all__ = ["EulerMaruyama", "sde_coefficients"]


def sde_coefficients(schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """f and g^2, of t's shape, of the forward SDE dx = f x dt + g dw with the schedule's marginals.

    f = alpha'/alpha and g^2 = 2 sigma (sigma' - f sigma) (Variational Diffusion
    Models, arXiv 2107.00630). Raises ValueError where they are not finite.
    """
    f = schedule.alpha_prime(t) / schedule.alpha(t)
    g_squared = 2 * schedule.sigma(t) * (schedule.sigma_prime(t) - f * schedule.sigma(t))
    if not bool((torch.isfinite(f) & torch.isfinite(g_squared)).all()):
        raise ValueError(
            "The SDE's coefficients are infinite at one of the times, where the schedule's alpha "
            "or sigma is 0. Stay inside that end, or take DDPM, which holds there."
        )
    return f, g_squared


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama:
    """x_s = x + (f x - (1 + noise^2)/2 g^2 score) (s - t) + noise g sqrt(t - s) z.

    `noise` scales the fresh noise with the drift that keeps the marginals: 1 is the reverse SDE
    (Eq. 6), 0 is Euler's method on the probability-flow ODE (Eq. 13), which runs either way in
    time and needs no generator. One call a step; the order is that of the moments.
    """

    noise: float = 1.0

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise ValueError(f"EulerMaruyama's noise must be at least 0, got {self.noise}.")

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
        f, g_squared = sde_coefficients(denoiser.schedule, t)
        score_weight = (1 + self.noise**2) / 2 * g_squared
        drift = per_sample(f, x) * x - per_sample(score_weight, x) * denoiser(x, t).score
        x_s = x + per_sample(s - t, x) * drift
        if self.noise == 0:
            return x_s, None
        if generator is None:
            raise ValueError("EulerMaruyama draws noise. Pass a generator, or set noise=0.")
        if bool((s >= t).any()):
            raise ValueError("EulerMaruyama with noise cannot run toward the noise. Set noise=0.")
        fresh = self.noise * (g_squared * (t - s)).sqrt()
        return x_s + per_sample(fresh, x) * noise_like(x, generator), None
