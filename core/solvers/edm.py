"""EDM's stochastic sampler: Heun with churn (arXiv 2206.00364, Algorithm 2), on any schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core.denoiser import Denoiser
from core.schedule import noise_like, per_sample
from core.solvers.heun import Heun

__all__ = ["EDM"]

_LARGEST_CHURN = math.sqrt(2) - 1


@dataclass(frozen=True, kw_only=True)
class EDM:
    """Each step first raises r = sigma / alpha to (1 + churn) r with fresh noise, then is Heun's.

    churn      gamma of Algorithm 2, at most sqrt(2) - 1; see `for_steps`. 0 is Heun
    min_noise, max_noise  the r between which there is churn (S_tmin, S_tmax)
    noise_std  of the fresh noise (S_noise): a little over 1 counters a denoiser that removes too
               much

    Two calls a step. At churn > 0 it only denoises and needs a generator; r is raised no further
    than to the schedule's t = 1. A step from alpha = 0 has no churn.
    """

    churn: float = 0.0
    min_noise: float = 0.0
    max_noise: float = math.inf
    noise_std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.churn <= _LARGEST_CHURN + 1e-12:
            raise ValueError(
                f"EDM's churn must lie in [0, sqrt(2) - 1], got {self.churn}. "
                "EDM.for_steps clips it."
            )
        if not 0 <= self.min_noise <= self.max_noise:
            raise ValueError(
                f"EDM needs 0 <= min_noise <= max_noise, got {self.min_noise} and {self.max_noise}."
            )
        if not self.noise_std > 0:
            raise ValueError(f"EDM's noise_std must be positive, got {self.noise_std}.")

    @classmethod
    def for_steps(
        cls,
        s_churn: float,
        steps: int,
        *,
        min_noise: float = 0.0,
        max_noise: float = math.inf,
        noise_std: float = 1.0,
    ) -> EDM:
        """The paper's S_churn spread over `steps`: gamma = min(S_churn / N, sqrt(2) - 1)."""
        return cls(
            churn=min(s_churn / steps, _LARGEST_CHURN),
            min_noise=min_noise,
            max_noise=max_noise,
            noise_std=noise_std,
        )

    @property
    def order(self) -> int:
        """Of the ODE's error, without churn."""
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
        if self.churn > 0:
            if generator is None:
                raise ValueError("EDM with churn draws noise. Pass a generator, or set churn=0.")
            if bool((s >= t).any()):
                raise ValueError("EDM with churn cannot run toward the noise. Set churn=0.")
            x, t = self._churned(denoiser, x, t, generator)
        return Heun().step(denoiser, x, t, s, None)

    def _churned(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Algorithm 2's raised noise, in x / alpha; x at a time no earlier than t."""
        schedule = denoiser.schedule
        level = schedule.log_snr(t)
        ratio = torch.exp(-level / 2)
        churns = torch.isfinite(level) & (ratio >= self.min_noise) & (ratio <= self.max_noise)
        if not bool(churns.any()):
            return x, t
        raised = level - 2 * math.log1p(self.churn)
        last = schedule.log_snr(torch.ones_like(t))
        raised = torch.where(churns, torch.maximum(raised, last), level)
        later = torch.where(churns, schedule.t_of_log_snr(raised), t)
        scale = torch.where(churns, schedule.alpha(later) / schedule.alpha(t), 1.0)
        extra = (schedule.sigma(later).square() - (scale * schedule.sigma(t)).square()).clamp(min=0)
        fresh = self.noise_std * torch.where(churns, extra, 0.0).sqrt()
        noise = noise_like(x, generator)
        return per_sample(scale, x) * x + per_sample(fresh, x) * noise, later
