"""ERA-Solver, Adams' implicit method without its extra call, robust to errors of eps.

arXiv 2301.12935.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.denoiser import Denoiser
from core.prediction import Prediction
from core.schedule import NoiseSchedule, per_sample
from core.solvers.ddim import ddim_step
from core.solvers.exponential import half_log_snr, is_finite_step, remember
from core.solvers.interpolation import Variable, check_variable, integrate_eps, lagrange, place

__all__ = ["ERA", "ERAState"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ERAState:
    """What a step needs of those before it.

    history   all predictions, the newest first: the newest is that of the last step's start
    foreseen  the eps [B, ...] that the last step expected at its end, None before the first step
    """

    history: tuple[Prediction, ...] = ()
    foreseen: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ERA:
    """An implicit Adams step whose eps at s is foreseen by a polynomial, not called for.

    The polynomial goes through `bases` of all n + 1 predictions so far; then eps is taken as the
    cubic through its value at s and the last three predictions, and integrated. Which predictions
    are the bases hangs on how wrong the last step foresaw the eps that came, Delta [B] (the root
    mean square of the difference, sample by sample): counted from the first, they are

        floor((m / bases)^(Delta / error_scale) n),  m = 1 .. bases,

    each at least one before the next. A small error takes the last ones, one of `error_scale`
    spreads them evenly, a larger one moves them to the start, where networks err least.
    error_scale = inf always takes the last ones: then, with three or four, ERA is DEIS of degree
    bases - 1.

    The paper has Adams' weights for equal steps (9, 19, -5, 1)/24 and DDIM's step along their
    sum, and its lambda is of the norm over a whole batch; here the weights are those of the
    actual steps in `variable` (see DEIS), which raises the order from 2 to min(bases, 4), and
    samples do not hang on their neighbours. One call a step; the order is that from a history
    given to it. Keeps every prediction.
    """

    bases: int = 4
    error_scale: float = 0.1
    variable: Variable = "t"

    def __post_init__(self) -> None:
        if not self.bases >= 1:
            raise ValueError(f"ERA's bases must be at least 1, got {self.bases}.")
        if not self.error_scale > 0:
            raise ValueError(f"ERA's error_scale must be positive, got {self.error_scale}.")
        check_variable("ERA", self.variable)

    @property
    def order(self) -> int:
        return min(self.bases, 4)

    def start(self) -> ERAState:
        return ERAState()

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: ERAState,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, ERAState]:
        schedule = denoiser.schedule
        now = denoiser(x, t)
        history = remember(state.history, now, len(state.history) + 1)
        if not is_finite_step(schedule, t, s):
            return ddim_step(now, s), ERAState(history=history)
        knots = self._place(schedule, torch.stack([each.t for each in history]))
        at_s = self._place(schedule, s)
        if state.foreseen is None:
            error = torch.zeros_like(t)
        else:
            error = (now.eps - state.foreseen).flatten(1).square().mean(1).sqrt().to(t.dtype)
        chosen = self.choose(len(history), error)
        bases = torch.stack(lagrange(knots.gather(0, chosen).unbind(), at_s))
        weights = torch.zeros_like(knots).scatter(0, chosen, bases)
        foreseen = torch.zeros_like(x)
        for index in chosen.unique().tolist():
            foreseen = foreseen + per_sample(weights[index], x) * history[index].eps
        x_s = integrate_eps(
            schedule,
            x,
            t,
            s,
            [at_s, *knots[:3]],
            [foreseen, *(each.eps for each in history[:3])],
            self.variable,
        )
        return x_s, ERAState(history=history, foreseen=foreseen)

    def choose(self, known: int, error: Tensor) -> Tensor:
        """The bases [M, B] among `known` predictions (0 the newest) after errors [B], M <= bases.

        They differ, and the newest is always among them.
        """
        newest, count = known - 1, min(self.bases, known)
        power = error.detach() / self.error_scale
        after, chosen = torch.full_like(error, newest + 1), []
        for m in range(count, 0, -1):
            # The little more is for a product that rounding left below a whole number.
            wanted = torch.floor((m / count) ** power * newest + 1e-6)
            after = torch.minimum(wanted, after - 1).clamp(min=m - 1)
            chosen.append(newest - after)
        return torch.stack(chosen).long()

    def _place(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return place(schedule, half_log_snr(schedule, t), self.variable)
