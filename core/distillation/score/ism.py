"""Interval score matching: two neighbours on the image's own inverted path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.distillation.score.inversion import START, ddim_invert
from core.distillation.score.sds import Weighting, x0_weighting
from core.schedule import per_sample
from core.solvers.ddim import ddim_step

__all__ = ["ISM"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ISM:
    """gradient = w(t) (sigma/alpha)(t) (eps(x_t, y) - eps(x_s, 0)) (arXiv 2311.11284).

    x_s is x inverted to s = t - interval by DDIM, x_t one further DDIM step: no noise is drawn, so
    the target does not change from step to step. `inverter` inverts and says eps(x_s, 0): the
    unconditional teacher in the paper; `denoiser` says eps(x_t, y), guided.

    Without guidance (denoiser = inverter) the two are neighbours on one trajectory and the
    gradient is O(interval): x_0 is where the ODE would lead anyway, and only guidance moves it.
    With it, the gradient is affine in the scale, its slope CSD at x_t.
    w(t) = 1 is the authors' sqrt((1 - abar)/abar) in front of the eps difference.
    """

    guided_only: ClassVar[bool] = False

    denoiser: Denoiser
    inverter: Denoiser
    interval: float = 0.05
    inversion_steps: int = 5
    weighting: Weighting = x0_weighting

    def __post_init__(self) -> None:
        if not 0 < self.interval < 1:
            raise ValueError(f"ISM's interval must lie in (0, 1), got {self.interval}.")
        if self.inverter.schedule != self.denoiser.schedule:
            raise ValueError("ISM needs a denoiser and an inverter of one schedule.")

    @torch.no_grad()
    def gradient(
        self, x: Tensor, t: Tensor, cond: Conditioning | None, generator: torch.Generator
    ) -> Tensor:
        """Nothing is drawn from `generator`. Times up to START + interval begin at START."""
        schedule = self.denoiser.schedule
        t = t.clamp(min=START + self.interval)
        s = t - self.interval
        x_s = ddim_invert(self.inverter, x, s, cond, steps=self.inversion_steps)
        at_s = self.inverter(x_s, s, cond)
        at_t = self.denoiser(ddim_step(at_s, t), t, cond)
        scale = self.weighting(schedule, t) * schedule.sigma(t) / schedule.alpha(t)
        return per_sample(scale, x) * (at_t.eps - at_s.eps)
