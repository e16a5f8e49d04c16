"""Score distillation via inversion: SDS with the noise that belongs to the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.distillation.score.inversion import START, ddim_invert
from core.distillation.score.sds import Weighting, x0_weighting
from core.schedule import per_sample

__all__ = ["SDI"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SDI:
    """gradient = w(t) (x - D(x_t, y)), x_t = alpha x + sigma kappa(x) (arXiv 2405.15891).

    kappa is no random noise but the one from which DDIM would have made x, so that SDS becomes a
    reparametrised DDIM: x_t is x inverted to t by `inverter`, and disturbed by eta = 0.3 times
    DDPM's own noise at each step.

    The authors guide `inverter` by the negative of the forward scale. In this project's scale s
    that is 2 - s, as their plain guidance counts from the prompt and their scale is s - 1; and -s
    with Perp-Neg, which counts from nothing there as here and which they invert with too.
    """

    guided_only: ClassVar[bool] = False

    denoiser: Denoiser
    inverter: Denoiser
    inversion_steps: int = 10
    eta: float = 0.3
    start: float = START
    weighting: Weighting = x0_weighting

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"SDI's eta must lie in [0, 1], got {self.eta}.")
        if self.inverter.schedule != self.denoiser.schedule:
            raise ValueError("SDI needs a denoiser and an inverter of one schedule.")

    @torch.no_grad()
    def gradient(
        self, x: Tensor, t: Tensor, cond: Conditioning | None, generator: torch.Generator
    ) -> Tensor:
        """`generator` is drawn from at eta > 0 only."""
        x_t = ddim_invert(
            self.inverter,
            x,
            t,
            cond,
            steps=self.inversion_steps,
            start=self.start,
            eta=self.eta,
            generator=generator,
        )
        target = self.denoiser(x_t, t, cond).x0
        return per_sample(self.weighting(self.denoiser.schedule, t), x) * (x - target)
