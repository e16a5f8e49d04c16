"""Extended Analytic-DPM: the optimal variance of every element, learned (arXiv 2206.07309)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from core.denoiser import Denoiser
from core.schedule import NoiseSchedule, diffuse, noise_like, per_sample
from core.solvers.ancestral import require_denoising
from core.solvers.ddim import ddim_coefficients
from core.training import Player, Stage

__all__ = ["ExtendedAnalyticDPM", "SecondMoment", "SecondMomentTraining", "second_moment_loss"]


class SecondMoment(Protocol):
    """x_t [B, ...] and t [B], to h = E[eps^2 | x_t], element by element [B, ...]."""

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor: ...


def second_moment_loss(
    second_moment: SecondMoment,
    schedule: NoiseSchedule,
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
) -> Tensor:
    """The mean of (h(x_t, t) - eps^2)^2, for x0 and eps [B, ...] and t [B].

    E[eps^2 | x_t] makes it least.
    The denoiser has no part in it: a network may learn h beside one that is trained already.
    """
    x_t = diffuse(schedule, x0, eps, t)
    return (second_moment(x_t, t) - eps.square()).square().mean()


class SecondMomentTraining:
    """Learns h from data, as a core.training.Method: `second_moment_loss` at uniform times.

    network          a core.networks.Network, trained in place; a SecondMoment as it is
    data             (n, generator) to x0 [n, ...]
    t_min, t_max     times are uniform between them; sample within
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        data: Callable[[int, torch.Generator], Tensor],
        *,
        steps: int,
        batch: int = 256,
        learning_rate: float = 2e-3,
        t_min: float = 1e-3,
        t_max: float = 1.0,
    ) -> None:
        if not 0 <= t_min < t_max <= 1:
            raise ValueError(f"t_min and t_max must be 0 <= t_min < t_max <= 1: {t_min}, {t_max}.")
        self.network, self.schedule, self.data = network, schedule, data
        self.steps, self.batch, self.learning_rate = steps, batch, learning_rate
        self.t_min, self.t_max = t_min, t_max

    def loss(self, generator: torch.Generator) -> Tensor:
        x0 = self.data(self.batch, generator)
        u = torch.rand(self.batch, generator=generator)
        t = self.t_min + (self.t_max - self.t_min) * u
        return second_moment_loss(self.network, self.schedule, x0, noise_like(x0, generator), t)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"network": self.network}

    def stages(self) -> Sequence[Stage]:
        player = Player(module=self.network, loss=self.loss, learning_rate=self.learning_rate)
        return [Stage(name="second moment", steps=self.steps, players={"network": player})]


@dataclass(frozen=True, kw_only=True)
class ExtendedAnalyticDPM:
    """Ancestral sampling with the diagonal covariance that maximises the likelihood.

    From h = E[eps^2 | x_t], Var[x0 | x_t] = (sigma^2/alpha^2) (h - eps^2), element by element
    (not less than 0, where a learned h falls short); the rest is Analytic-DPM's, which knows only
    its mean over x_t and the elements. At eta = 1 the variance is Var[x_s | x_t].

    One call of the denoiser a step, and one of `second_moment`, which a trajectory's nfe does not
    count; draws noise in every step but one to sigma = 0. Raises ValueError where alpha_t is 0.
    """

    second_moment: SecondMoment
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"ExtendedAnalyticDPM's eta must lie in [0, 1], got {self.eta}.")

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
        generator = require_denoising("ExtendedAnalyticDPM", t, s, generator)
        schedule = denoiser.schedule
        if bool((schedule.alpha(t) == 0).any()):
            raise ValueError(
                "At alpha = 0, eps says nothing of x0's variance. Make the first step by DDPM, or "
                "start inside that end of the schedule."
            )
        of_x, of_x0, fresh = ddim_coefficients(schedule, t, s, self.eta)
        prediction = denoiser(x, t)
        spread = (self.second_moment(x, t) - prediction.eps.square()).clamp(min=0)
        of_spread = (of_x0 * schedule.sigma(t) / schedule.alpha(t)).square()
        variance = per_sample(fresh.square(), x) + per_sample(of_spread, x) * spread
        std = torch.where(per_sample(schedule.sigma(s), x) > 0, variance.sqrt(), 0.0)
        mean = per_sample(of_x, x) * x + per_sample(of_x0, x) * prediction.x0
        return mean + std * noise_like(x, generator), None
