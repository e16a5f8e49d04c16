"""Noise schedules: x_t = alpha(t) x0 + sigma(t) eps, for t in [0, 1].

Every schedule has a strictly falling log-SNR, log(alpha^2 / sigma^2), and says by
`reaches_data` and `reaches_noise` which of its two ends are the limits themselves:

| schedule           | t = 0                   | t = 1                       |
|--------------------|-------------------------|-----------------------------|
| FlowSchedule       | sigma = 0               | alpha = 0                   |
| VPSchedule         | sigma = 0, sigma' = inf | alpha > 0                   |
| CosineSchedule     | sigma = 0               | alpha = 0                   |
| VESchedule         | sigma > 0               | alpha = 1                   |
| DiscreteVPSchedule | sigma > 0               | alpha > 0, or 0 if rescaled |

At such an end the log-SNR is infinite, and parametrisations that would divide by the zero do not
exist (see core.prediction).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from core.discrete_schedule import DiscreteVPSchedule
from core.transfer import to_device

__all__ = [
    "CosineSchedule",
    "FlowSchedule",
    "NoiseSchedule",
    "VESchedule",
    "VPSchedule",
    "diffuse",
    "from_diffusers",
    "noise_like",
    "per_sample",
]


class NoiseSchedule(Protocol):
    """alpha and sigma of x_t = alpha x0 + sigma eps, elementwise in t (any shape, in [0, 1])."""

    @property
    def reaches_data(self) -> bool:
        """Whether sigma(0) = 0: t = 0 is the data itself, without noise."""
        ...

    @property
    def reaches_noise(self) -> bool:
        """Whether alpha(1) = 0: t = 1 holds nothing of the data."""
        ...

    def alpha(self, t: Tensor) -> Tensor: ...

    def sigma(self, t: Tensor) -> Tensor: ...

    def alpha_prime(self, t: Tensor) -> Tensor:
        """d alpha / dt."""
        ...

    def sigma_prime(self, t: Tensor) -> Tensor:
        """d sigma / dt."""
        ...

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2); the lambda of DPM-Solver is half of it."""
        ...

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The inverse of log_snr on its range."""
        ...


@dataclass(frozen=True)
class FlowSchedule:
    """The straight path alpha = 1 - t, sigma = t (Rectified Flow, arXiv 2209.03003, Eq. 1).

    Both ends are included.
    """

    reaches_data = True
    reaches_noise = True

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_prime(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_prime(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t) - torch.log(t))

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)


@dataclass(frozen=True, kw_only=True)
class VPSchedule:
    """Variance-preserving with beta linear in t (Score SDE, arXiv 2011.13456, Eq. 33).

    alpha = exp(-B/2), sigma^2 = 1 - exp(-B) with B(t) the integral of beta from 0 to t.
    The data end is included, though sigma' is infinite there; alpha(1) is small, not 0.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    reaches_data = True
    reaches_noise = False

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(
                f"VPSchedule needs 0 < beta_min < beta_max, got beta_min={self.beta_min} "
                f"and beta_max={self.beta_max}."
            )

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._integrated_beta(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integrated_beta(t)))

    def alpha_prime(self, t: Tensor) -> Tensor:
        return -self._beta(t) / 2 * self.alpha(t)

    def sigma_prime(self, t: Tensor) -> Tensor:
        return self._beta(t) / 2 * self.alpha(t) ** 2 / self.sigma(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return -torch.log(torch.expm1(self._integrated_beta(t)))

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        integrated = torch.logaddexp(torch.zeros_like(log_snr), -log_snr)
        # The root of B(t) = integrated that does not cancel for small t.
        slope = self.beta_max - self.beta_min
        root = torch.sqrt(self.beta_min**2 + 2 * slope * integrated)
        return 2 * integrated / (self.beta_min + root)

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integrated_beta(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)


@dataclass(frozen=True)
class CosineSchedule:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (arXiv 2202.00512, Section 2).

    Variance-preserving; both ends are included.
    """

    reaches_data = True
    reaches_noise = True

    def alpha(self, t: Tensor) -> Tensor:
        # The sine of the complement, not the cosine: it is exactly 0 at t = 1.
        return torch.sin((1 - t) * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2))

    def alpha_prime(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * self.sigma(t)

    def sigma_prime(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.alpha(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log(self.alpha(t)) - torch.log(self.sigma(t)))

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(-log_snr / 2))


@dataclass(frozen=True, kw_only=True)
class VESchedule:
    """Variance-exploding: alpha = 1, sigma geometric in t (arXiv 2011.13456, Appendix C).

    Neither end is included: sigma runs from sigma_min > 0 to sigma_max < inf.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    reaches_data = False
    reaches_noise = False

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"VESchedule needs 0 < sigma_min < sigma_max, got sigma_min={self.sigma_min} "
                f"and sigma_max={self.sigma_max}."
            )

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.exp(-self.log_snr(t) / 2)

    def alpha_prime(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_prime(self, t: Tensor) -> Tensor:
        return self.sigma(t) * self._log_ratio

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * (math.log(self.sigma_min) + t * self._log_ratio)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return (-log_snr / 2 - math.log(self.sigma_min)) / self._log_ratio

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)


def from_diffusers(scheduler: Any) -> FlowSchedule | DiscreteVPSchedule:
    """The schedule that a diffusers scheduler's network was trained on.

    A flow-matching scheduler gives FlowSchedule whatever its `shift`: the shift chooses which
    times a sampler visits, and the network is told sigma itself. A scheduler with
    `alphas_cumprod` gives a DiscreteVPSchedule of its training timesteps.

    Raises TypeError for a scheduler that is neither (EDM and consistency schedulers keep their
    noise levels in a form of their own).
    """
    config: Mapping[str, Any] = getattr(scheduler, "config", {})
    trained_on_flow = config.get("prediction_type") == "flow_prediction"
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if trained_on_flow or (alphas_cumprod is None and "shift" in config):
        return FlowSchedule()
    if alphas_cumprod is not None:
        return DiscreteVPSchedule(alphas_cumprod)
    raise TypeError(
        f"{type(scheduler).__name__} has neither alphas_cumprod nor a flow-matching shift. Pass "
        "the scheduler of the model's training (a DDPM- or FlowMatch-like one), or build a "
        "NoiseSchedule such as VESchedule by hand."
    )


def per_sample(coefficient: Tensor, x: Tensor) -> Tensor:
    """`coefficient` [B] as [B, 1, ..., 1] in x's dtype and rank, ready to multiply x [B, ...]."""
    if coefficient.shape != x.shape[:1]:
        raise ValueError(
            f"A value per sample must have shape [{x.shape[0]}] for x of shape {list(x.shape)}, "
            f"got {list(coefficient.shape)}. Expand t to one value per sample."
        )
    return coefficient.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def diffuse(schedule: NoiseSchedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) x0 + sigma(t) eps, for x0 and eps [B, ...] and t [B]."""
    return per_sample(schedule.alpha(t), x0) * x0 + per_sample(schedule.sigma(t), x0) * eps


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of x's shape, dtype and device, drawn where the generator lives.

    A CPU generator thus gives the same noise to x on any device.
    """
    noise = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
    return to_device(noise, x.device)
