"""Heun's method on the probability-flow ODE (EDM, arXiv 2206.00364), on any schedule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.denoiser import Denoiser
from core.schedule import per_sample
from core.solvers.ddim import ddim_step

__all__ = ["Heun"]


@dataclass(frozen=True, kw_only=True)
class Heun:
    """A DDIM step to s, then the trapezoid of eps at both ends (Algorithm 1, without churn).

    In y = x / alpha and r = sigma / alpha the ODE is dy/dr = eps, so
    x_s = (alpha_s/alpha_t) x_t + (sigma_s - sigma_t alpha_s/alpha_t) (eps_t + eps_s) / 2.

    Of second order, two calls a step. A step that touches alpha = 0 (r is infinite) or ends
    where sigma = 0 (as EDM's last) is a DDIM step of one call, for the whole batch.
    """

    @property
    def order(self) -> int:
        return 2

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
        schedule = denoiser.schedule
        alpha_t, sigma_t = schedule.alpha(t), schedule.sigma(t)
        alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
        prediction = denoiser(x, t)
        predicted = ddim_step(prediction, s)
        if bool((alpha_t == 0).any() | (alpha_s == 0).any() | (sigma_s == 0).any()):
            return predicted, None
        eps = (prediction.eps + denoiser(predicted, s).eps) / 2
        scale = alpha_s / alpha_t
        return per_sample(scale, x) * x + per_sample(sigma_s - sigma_t * scale, x) * eps, None
