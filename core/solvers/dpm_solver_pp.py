"""DPM-Solver++ (arXiv 2211.01095): exponential integrators on x0, multistep and singlestep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.denoiser import Denoiser
from core.prediction import Prediction
from core.schedule import per_sample
from core.solvers.ddim import ddim_step
from core.solvers.exponential import (
    half_log_snr,
    hold_x0,
    is_finite_step,
    remember,
    t_of_half_log_snr,
)

__all__ = ["DPMSolverPPMultistep", "DPMSolverPPSinglestep"]


@dataclass(frozen=True, kw_only=True)
class DPMSolverPPMultistep:
    """DPM-Solver++ 2M (Algorithm 2) and 3M: one call a step, order 1 (DDIM), 2 or 3.

    The state is the last predictions, the newest first. The first steps have the order that the
    history allows, so 3M keeps its order only from a history given to it: from `start` its first
    step, of first order, leaves an error of second order.
    """

    order: Literal[1, 2, 3] = 2

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"DPMSolverPPMultistep's order must be 1, 2 or 3, got {self.order}.")

    def start(self) -> tuple[Prediction, ...]:
        return ()

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: tuple[Prediction, ...],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, tuple[Prediction, ...]]:
        schedule = denoiser.schedule
        now = denoiser(x, t)
        following = remember(state, now, self.order - 1)
        if not is_finite_step(schedule, t, s):
            return ddim_step(now, s), following
        x_s = hold_x0(schedule, x, now.x0, t, s)
        earlier = state[: self.order - 1]
        if not earlier:
            return x_s, following
        half_t = half_log_snr(schedule, t)
        h = half_log_snr(schedule, s) - half_t
        alpha_s, decay = schedule.alpha(s), torch.expm1(-h)
        half_1 = half_log_snr(schedule, earlier[0].t)
        r0 = (half_t - half_1) / h
        slope = per_sample(1 / r0, x) * (now.x0 - earlier[0].x0)
        if len(earlier) == 1:
            # Algorithm 2: D = x0 + (x0 - x0_before) / (2 r).
            return x_s - per_sample(alpha_s * decay / 2, x) * slope, following
        # The parabola x0 + first tau + bend tau^2 through the three, tau from 0 at t to 1 at s,
        # integrated exactly. Its second derivative is 2 bend: the factor that diffusers'
        # 3M leaves out, which makes it of second order (measured slopes 2.03 and 1.98).
        r1 = (half_1 - half_log_snr(schedule, earlier[1].t)) / h
        before = per_sample(1 / r1, x) * (earlier[0].x0 - earlier[1].x0)
        bend = per_sample(1 / (r0 + r1), x) * (slope - before)
        first = slope + per_sample(r0, x) * bend
        x_s = x_s + per_sample(alpha_s * (decay / h + 1), x) * first
        of_square = 1 - 2 * (decay + h) / h.square()
        return x_s + per_sample(alpha_s * of_square, x) * bend, following


@dataclass(frozen=True, kw_only=True)
class DPMSolverPPSinglestep:
    """DPM-Solver++ 2S (Algorithm 1): two calls a step, of second order.

    `ratio` is where between lambda_t and lambda_s the second call is made.
    """

    ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"DPMSolverPPSinglestep's ratio must lie in (0, 1], got {self.ratio}.")

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
        now = denoiser(x, t)
        if not is_finite_step(schedule, t, s):
            return ddim_step(now, s), None
        half_t, half_s = half_log_snr(schedule, t), half_log_snr(schedule, s)
        between = t_of_half_log_snr(schedule, torch.lerp(half_t, half_s, self.ratio))
        x0 = now.x0
        later = denoiser(hold_x0(schedule, x, x0, t, between), between).x0
        # Algorithm 1: D = (1 - 1/(2r)) x0_t + x0_between / (2r).
        return hold_x0(schedule, x, torch.lerp(x0, later, 0.5 / self.ratio), t, s), None
