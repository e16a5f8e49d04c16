"""DEIS, the exponential integrator with Adams-Bashforth on eps (arXiv 2204.13902)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from core.denoiser import Denoiser
from core.prediction import Prediction
from core.schedule import NoiseSchedule, per_sample
from core.solvers.ddim import ddim_step
from core.solvers.exponential import half_log_snr, is_finite_step, remember, t_of_half_log_snr

__all__ = ["DEIS"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


@dataclass(frozen=True, kw_only=True)
class DEIS:
    """tAB-k (Eq. 14, 15): eps as a polynomial of degree k through the last k + 1 predictions.

    With r = sigma / alpha, x_s = (alpha_s/alpha_t) x_t + alpha_s sum_j eps_j int L_j dr from t to
    s, where L_j are the Lagrange polynomials of the times visited; the integrals are computed by
    16 Gauss-Legendre nodes in log r.

    `variable` is what the polynomial is in: "t" (tAB), "r" (rhoAB, Section 3.4), or "log_snr"
    (as the scheduler of the diffusers library has it). One call a step. The order is k + 1 from a
    history given to it; from `start` the first steps have the order that their history allows.
    """

    degree: Literal[0, 1, 2, 3] = 2
    variable: Literal["t", "r", "log_snr"] = "t"

    def __post_init__(self) -> None:
        if self.degree not in (0, 1, 2, 3):
            raise ValueError(f"DEIS's degree must be 0, 1, 2 or 3, got {self.degree}.")
        if self.variable not in ("t", "r", "log_snr"):
            raise ValueError(
                f'DEIS\'s variable must be "t", "r" or "log_snr", got {self.variable!r}.'
            )

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
        half_t, half_s = half_log_snr(schedule, t), half_log_snr(schedule, s)
        knots = [self._place(schedule, half_log_snr(schedule, each.t)) for each in used]
        nodes = torch.as_tensor((_NODES + 1) / 2, dtype=t.dtype, device=t.device)[:, None]
        weights = torch.as_tensor(_WEIGHTS / 2, dtype=t.dtype, device=t.device)[:, None]
        halves = half_t + nodes * (half_s - half_t)
        places = self._place(schedule, halves)
        # dr = -r d lambda, and alpha_s r written so that it does not overflow.
        measure = weights * (half_t - half_s) * schedule.sigma(s) * torch.exp(half_s - halves)
        x_s = per_sample(schedule.alpha(s) / schedule.alpha(t), x) * x
        for j, each in enumerate(used):
            basis = torch.ones_like(places)
            for i, knot in enumerate(knots):
                if i != j:
                    basis = basis * (places - knot) / (knots[j] - knot)
            x_s = x_s + per_sample((measure * basis).sum(0), x) * each.eps
        return x_s, following

    def _place(self, schedule: NoiseSchedule, half: Tensor) -> Tensor:
        match self.variable:
            case "t":
                return t_of_half_log_snr(schedule, half)
            case "r":
                return torch.exp(-half)
            case "log_snr":
                return half
