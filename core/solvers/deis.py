"""DEIS, the exponential integrator with Adams-Bashforth on eps (arXiv 2204.13902)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.denoiser import Denoiser
from core.prediction import Prediction
from core.solvers.ddim import ddim_step
from core.solvers.exponential import half_log_snr, is_finite_step, remember
from core.solvers.interpolation import Variable, check_variable, integrate_eps, place

__all__ = ["DEIS"]


@dataclass(frozen=True, kw_only=True)
class DEIS:
    """tAB-k: eps as a polynomial of degree k through the last k + 1 predictions, integrated.

    `variable` is what the polynomial is in: "t" (tAB), "r" (rhoAB), or "log_snr" (as the
    scheduler of the diffusers library has it). One call a step. The order is k + 1 from a
    history given to it; from `start` the first steps have the order that their history allows.
    """

    degree: Literal[0, 1, 2, 3] = 2
    variable: Variable = "t"

    def __post_init__(self) -> None:
        if self.degree not in (0, 1, 2, 3):
            raise ValueError(f"DEIS's degree must be 0, 1, 2 or 3, got {self.degree}.")
        check_variable("DEIS", self.variable)

    @property
    def order(self) -> int:
        return self.degree + 1

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
        following = remember(state, now, self.degree)
        if not is_finite_step(schedule, t, s) or not state or self.degree == 0:
            return ddim_step(now, s), following
        used = (now, *state[: self.degree])
        knots = [place(schedule, half_log_snr(schedule, each.t), self.variable) for each in used]
        values = [each.eps for each in used]
        return integrate_eps(schedule, x, t, s, knots, values, self.variable), following
