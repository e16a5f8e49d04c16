"""Operator splitting for guided sampling (arXiv 2301.11558): Lie-Trotter and Strang.

In y = x / alpha and r = sigma / alpha the guided probability-flow ODE is dy/dr = eps + g, with
the base's eps and what guidance adds to it. Guidance is often too stiff for the methods of high
order that serve eps well; so each of the two is integrated alone, by a solver of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.prediction import Prediction
from core.schedule import NoiseSchedule, per_sample
from core.solvers.exponential import half_log_snr, t_of_half_log_snr
from core.solvers.heun import Heun
from core.solvers.sampling import Solver

__all__ = ["ClassifierFreeTerm", "GuidanceTerm", "Splitting", "SplittingState"]


class GuidanceTerm(Protocol):
    """x_t [B, ...] and t [B], to what guidance adds to eps [B, ...].

    For a classifier that is -scale sigma grad log p(y | x_t).
    """

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class ClassifierFreeTerm:
    """guidance_scale (eps_cond - eps_uncond), for a base that is sampled with cond.uncond.

    Their sum is what ClassifierFreeGuidance predicts. Two calls of the denoiser, which a
    trajectory's nfe does not count. Raises ValueError without cond.uncond.
    """

    denoiser: Denoiser
    cond: Conditioning
    guidance_scale: float

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        if self.cond.uncond is None:
            raise ValueError("ClassifierFreeTerm needs cond.uncond, the base's own conditioning.")
        conditional = self.denoiser(x_t, t, self.cond)
        return self.guidance_scale * (conditional.eps - self.denoiser(x_t, t, self.cond.uncond).eps)


@dataclass(frozen=True, kw_only=True, eq=False)
class SplittingState:
    """The states of the base's solver and of the guidance's."""

    base: Any
    guidance: Any


@dataclass(frozen=True, kw_only=True)
class Splitting:
    """The denoiser's flow and that of `guidance` in turn, each over the whole step.

    "lie"     the base from t to s, then guidance from t to s; of first order
    "strang"  guidance over the first half of the step in r, the base over all of it, guidance
              over the second half; of second order, if both solvers are

    Solvers without noise, both of which start where lambda is finite; a multistep one falls back
    in order, as the other part moves its states. Raises ValueError where alpha is 0: there r is
    infinite.
    """

    guidance: GuidanceTerm
    scheme: Literal["lie", "strang"] = "strang"
    base_solver: Solver[Any] = field(default_factory=Heun)
    guidance_solver: Solver[Any] = field(default_factory=Heun)

    def __post_init__(self) -> None:
        if self.scheme not in ("lie", "strang"):
            raise ValueError(f'Splitting\'s scheme must be "lie" or "strang", got {self.scheme!r}.')

    @property
    def order(self) -> int:
        of_scheme = 1 if self.scheme == "lie" else 2
        return min(of_scheme, self.base_solver.order, self.guidance_solver.order)

    def start(self) -> SplittingState:
        return SplittingState(base=self.base_solver.start(), guidance=self.guidance_solver.start())

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: SplittingState,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, SplittingState]:
        schedule = denoiser.schedule
        if bool(((schedule.alpha(t) == 0) | (schedule.alpha(s) == 0)).any()):
            raise ValueError(
                "Splitting cannot touch a time where the schedule's alpha is 0. Stay inside that "
                "end of the schedule."
            )
        term = _TermAsDenoiser(self.guidance, schedule)
        base, guided = state.base, state.guidance
        if self.scheme == "lie":
            x, base = self.base_solver.step(denoiser, x, t, s, base, generator)
            x = _rescale(schedule, x, s, t)
            x, guided = self.guidance_solver.step(term, x, t, s, guided, generator)
        else:
            r_t, r_s = (torch.exp(-half_log_snr(schedule, each)) for each in (t, s))
            middle = t_of_half_log_snr(schedule, -torch.log((r_t + r_s) / 2))
            x, guided = self.guidance_solver.step(term, x, t, middle, guided, generator)
            x = _rescale(schedule, x, middle, t)
            x, base = self.base_solver.step(denoiser, x, t, s, base, generator)
            x = _rescale(schedule, x, s, middle)
            x, guided = self.guidance_solver.step(term, x, middle, s, guided, generator)
        return x, SplittingState(base=base, guidance=guided)


@dataclass(frozen=True, eq=False)
class _TermAsDenoiser:
    """Guidance as if it were a whole eps: solvers of dy/dr = eps then integrate it alone."""

    term: GuidanceTerm
    schedule: NoiseSchedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        return Prediction.from_eps(self.term(x_t, t), x_t, t, self.schedule)


def _rescale(schedule: NoiseSchedule, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The same y = x / alpha, told at s instead of t."""
    return per_sample(schedule.alpha(s) / schedule.alpha(t), x) * x
