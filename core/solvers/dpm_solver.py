"""DPM-Solver (arXiv 2206.00927): singlestep exponential integrators on eps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.denoiser import Denoiser
from core.schedule import per_sample
from core.solvers.ddim import ddim_step
from core.solvers.exponential import half_log_snr, hold_eps, is_finite_step, t_of_half_log_snr

__all__ = ["DPMSolver"]


@dataclass(frozen=True, kw_only=True)
class DPMSolver:
    """DPM-Solver-1 (DDIM), -2 (Algorithm 1) and -3 (Algorithm 2): `order` calls a step.

    A step that touches an end where the log-SNR is infinite is a DDIM step of one call.
    """

    order: Literal[1, 2, 3] = 2

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"DPMSolver's order must be 1, 2 or 3, got {self.order}.")

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
        if self.order == 1 or not is_finite_step(schedule, t, s):
            return ddim_step(now, s), None
        eps = now.eps
        half_t, half_s = half_log_snr(schedule, t), half_log_snr(schedule, s)
        h = half_s - half_t

        def between(fraction: float) -> Tensor:
            return t_of_half_log_snr(schedule, torch.lerp(half_t, half_s, fraction))

        if self.order == 2:
            # Algorithm 1: eps at the middle of the step in lambda, held over all of it.
            middle = between(1 / 2)
            at_middle = denoiser(hold_eps(schedule, x, eps, t, middle), middle).eps
            return hold_eps(schedule, x, at_middle, t, s), None
        # Algorithm 2, with r1 = 1/3 and r2 = 2/3.
        first, second = between(1 / 3), between(2 / 3)
        at_first = denoiser(hold_eps(schedule, x, eps, t, first), first).eps
        bend = 2 * schedule.sigma(second) * (torch.expm1(2 / 3 * h) / (2 / 3 * h) - 1)
        x_second = hold_eps(schedule, x, eps, t, second) - per_sample(bend, x) * (at_first - eps)
        at_second = denoiser(x_second, second).eps
        bend = 3 / 2 * schedule.sigma(s) * (torch.expm1(h) / h - 1)
        return hold_eps(schedule, x, eps, t, s) - per_sample(bend, x) * (at_second - eps), None
