"""PNDM, pseudo numerical methods for diffusion models (arXiv 2202.09778)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.denoiser import Denoiser
from core.prediction import Prediction
from core.solvers.ddim import ddim_step
from core.solvers.exponential import hold_eps, is_finite_step, remember

__all__ = ["PNDM"]

# Adams-Bashforth of four steps, the newest first.
_WEIGHTS = (55 / 24, -59 / 24, 37 / 24, -9 / 24)


@dataclass(frozen=True, kw_only=True)
class PNDM:
    """DDIM steps on a combination of eps: three Runge-Kutta steps, then linear multistep.

    The combinations are those of the classical methods of fourth order, for times equally spaced
    in t; as DDIM's step is no straight line in t, the order is 2. Four calls in each of the first
    three steps (F-PNDM, Algorithm 2), one in all others. A step that touches an end where the
    log-SNR is infinite is a DDIM step of one call and does not count as one of the three.
    """

    @property
    def order(self) -> int:
        return 2

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
        following = remember(state, now, 3)
        if not is_finite_step(schedule, t, s):
            return ddim_step(now, s), following
        eps = now.eps
        if len(state) == 3:
            # Eq. 12.
            combined = _WEIGHTS[0] * eps
            for weight, each in zip(_WEIGHTS[1:], state, strict=True):
                combined = combined + weight * each.eps
            return hold_eps(schedule, x, combined, t, s), following
        # Eq. 13.
        middle = (t + s) / 2
        second = denoiser(hold_eps(schedule, x, eps, t, middle), middle).eps
        third = denoiser(hold_eps(schedule, x, second, t, middle), middle).eps
        fourth = denoiser(hold_eps(schedule, x, third, t, s), s).eps
        return hold_eps(schedule, x, (eps + 2 * second + 2 * third + fourth) / 6, t, s), following
