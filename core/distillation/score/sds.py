"""Score distillation: a frozen denoiser's gradient on any differentiable image.

The image x [B, ...] may come from a radiance field's render, a one-step generator or plain
pixels. A ScoreDistillation says in which direction the denoiser would move x; `surrogate_loss`
turns that into a scalar whose backward pass carries exactly this direction to the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.schedule import NoiseSchedule, diffuse, noise_like, per_sample

__all__ = [
    "SDS",
    "ScoreDistillation",
    "Weighting",
    "dreamfusion_weighting",
    "eps_weighting",
    "surrogate_loss",
    "x0_weighting",
]

Weighting = Callable[[NoiseSchedule, Tensor], Tensor]
"""(schedule, t [B]) to [B]: the factor of x - D(x_t), the x0 form of score distillation."""


class ScoreDistillation(Protocol):
    """A rule that gives images a direction to move in.

    Attributes:
        guided_only: Whether all that it asks is the guided answer, never one of the two that this
            is made of: a denoiser that says it in one pass then serves it as well.
    """

    guided_only: ClassVar[bool]

    def gradient(
        self, x: Tensor, t: Tensor, cond: Conditioning | None, generator: torch.Generator
    ) -> Tensor:
        """The gradient of the (implicit) loss by x [B, ...], detached, at the times t [B]."""
        ...


def x0_weighting(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """1: the gradient is x - D(x_t), in the units of the image at every noise level."""
    return torch.ones_like(t)


def eps_weighting(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """alpha/sigma: the gradient is eps^ - eps (w = 1 in DreamFusion's Eq. 3). Needs sigma > 0."""
    sigma = schedule.sigma(t)
    # Where sigma never vanishes no device is waited for to say so.
    if (t.device.type == "cpu" or schedule.reaches_data) and bool((sigma == 0).any()):
        raise ValueError(
            "The eps form of score distillation does not exist where sigma is 0. Choose t > 0, "
            "or x0_weighting."
        )
    return schedule.alpha(t) / sigma


def dreamfusion_weighting(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """alpha sigma: the gradient is sigma^2 (eps^ - eps), DreamFusion's own w(t) = sigma^2."""
    return schedule.alpha(t) * schedule.sigma(t)


@dataclass(frozen=True, eq=False)
class SDS:
    """Score distillation sampling (DreamFusion, arXiv 2209.14988, Eq. 3).

    gradient = w(t) (x - D(x_t)), x_t = alpha x + sigma eps, D the denoiser's x0. Since
    x - D(x_t) = (sigma/alpha) (eps^ - eps), this is Eq. 3 with its w(t) times sigma/alpha; the
    x0 form also exists where alpha is 0. Its expectation over eps is
    w(t) (sigma/alpha)^2 times the gradient by x of KL(N(alpha x, sigma^2 I) || p_t).

    Guidance belongs to the denoiser (core.denoiser); `weighting` is w(t).
    """

    guided_only: ClassVar[bool] = True

    denoiser: Denoiser
    weighting: Weighting = x0_weighting

    def gradient(
        self, x: Tensor, t: Tensor, cond: Conditioning | None, generator: torch.Generator
    ) -> Tensor:
        return self.gradient_at(x, t, noise_like(x, generator), cond)

    @torch.no_grad()
    def gradient_at(
        self, x: Tensor, t: Tensor, eps: Tensor, cond: Conditioning | None = None
    ) -> Tensor:
        """The gradient for a given noise eps [B, ...]."""
        schedule = self.denoiser.schedule
        x_t = diffuse(schedule, x, eps, t)
        residual = x - self.denoiser(x_t, t, cond).x0
        return per_sample(self.weighting(schedule, t), x) * residual


def surrogate_loss(x: Tensor, gradient: Tensor) -> Tensor:
    """1/2 |x - stop_gradient(x - gradient)|^2, summed: a scalar whose gradient by x is `gradient`.

    Divide it by the batch size for a mean over samples.
    """
    if gradient.shape != x.shape:
        raise ValueError(
            f"The gradient must have x's shape {list(x.shape)}, got {list(gradient.shape)}."
        )
    return (x - (x - gradient).detach()).square().sum() / 2
