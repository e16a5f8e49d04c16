"""The exact flow map of a Gaussian mixture: x_t to x_s along the probability-flow ODE.

In one dimension the ODE keeps every sample at its quantile, so the map is F_s^-1 o F_t. Beyond,
it is integrated in float64. Any schedule's path is a rotation after rescaling: with
y = x / sqrt(alpha^2 + sigma^2) and phi = atan2(sigma, alpha),

    y = cos(phi) x0 + sin(phi) eps,    dy/dphi = E[cos(phi) eps - sin(phi) x0 | y],

which is smooth on all of [0, pi/2], the two ends included; so it is phi that is integrated over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from core.denoiser import Conditioning
from core.mixture import GaussianMixture, NoisedMixture
from core.schedule import NoiseSchedule

__all__ = ["ExactFlowMap"]


@dataclass(frozen=True, eq=False)
class ExactFlowMap:
    """x_t [B, D] at t [B] to x_s at s [B], either way in time; values only, no gradient.

    Computes in float64 on the CPU and answers in x_t's dtype and device. In one dimension it is
    right to rounding, beyond to about 1e-10.
    """

    mixture: GaussianMixture
    schedule: NoiseSchedule

    @torch.no_grad()
    def __call__(
        self, x_t: Tensor, t: Tensor, s: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        mixture = self.mixture.to("cpu", torch.float64)
        labels = None if cond is None or cond.labels is None else cond.labels.cpu()
        x, t, s = (value.detach().to("cpu", torch.float64) for value in (x_t, t, s))
        if mixture.means.shape[1] == 1:
            at_t = mixture.noised(self.schedule.alpha(t), self.schedule.sigma(t), labels)
            at_s = mixture.noised(self.schedule.alpha(s), self.schedule.sigma(s), labels)
            x_s = _quantile_map(x[:, 0], at_t, at_s)[:, None]
        else:
            x_s = self._integrate(mixture, x, t, s, labels)
        return x_s.to(x_t.device, x_t.dtype)

    def _integrate(
        self, mixture: GaussianMixture, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None
    ) -> Tensor:
        radius_t, phi_t = self._polar(t)
        radius_s, phi_s = self._polar(s)
        turn = phi_s - phi_t

        # One clock for all samples: phi = phi_t + tau (phi_s - phi_t), tau from 0 to 1.
        def rate(tau: float, flat: np.ndarray) -> np.ndarray:
            phi = phi_t + tau * turn
            noised = mixture.noised(torch.cos(phi), torch.sin(phi), labels)
            v_prediction = noised.v_prediction(torch.from_numpy(flat.reshape(x.shape)))
            return (turn[:, None] * v_prediction).reshape(-1).numpy()

        start = (x / radius_t[:, None]).reshape(-1).numpy()
        solution = solve_ivp(rate, (0.0, 1.0), start, "DOP853", rtol=1e-11, atol=1e-12)
        if not solution.success:
            raise RuntimeError(f"The probability-flow ODE did not integrate: {solution.message}")
        return torch.from_numpy(solution.y[:, -1].reshape(x.shape).copy()) * radius_s[:, None]

    def _polar(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return torch.hypot(alpha, sigma), torch.atan2(sigma, alpha)


def _quantile_map(x: Tensor, at_t: NoisedMixture, at_s: NoisedMixture) -> Tensor:
    """F_s^-1(F_t(x)) for x [B], by bisection on the log-odds of F, exact in both tails."""
    wanted = _log_odds(at_t, x)
    # A component's own quantile map is affine; the mixture's lies between the extreme ones.
    mean_t, std_t = _moments(at_t)
    mean_s, std_s = _moments(at_s)
    left_out = torch.isneginf(at_t.log_weights)
    z = (x[:, None] - mean_t) / std_t
    lowest = z.masked_fill(left_out, math.inf).amin(1, keepdim=True)
    highest = z.masked_fill(left_out, -math.inf).amax(1, keepdim=True)
    low = (mean_s + std_s * lowest).masked_fill(left_out, math.inf).amin(1)
    high = (mean_s + std_s * highest).masked_fill(left_out, -math.inf).amax(1)
    while True:
        middle = low + (high - low) / 2
        undecided = (middle > low) & (middle < high)
        if not bool(undecided.any()):
            return middle
        below = _log_odds(at_s, middle) < wanted
        low = torch.where(undecided & below, middle, low)
        high = torch.where(undecided & ~below, middle, high)


def _log_odds(noised: NoisedMixture, x: Tensor) -> Tensor:
    """log F(x) - log(1 - F(x)) for x [B]; rises with x and loses no digits in either tail."""
    mean, std = _moments(noised)
    z = (x[:, None] - mean) / std
    below = torch.logsumexp(noised.log_weights + torch.special.log_ndtr(z), 1)
    above = torch.logsumexp(noised.log_weights + torch.special.log_ndtr(-z), 1)
    return below - above


def _moments(noised: NoisedMixture) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each component of a one-dimensional mixture [B, K]."""
    mean = noised.alpha[:, None] * noised.mixture.means[:, 0]
    return mean, noised.variances[..., 0].sqrt()
