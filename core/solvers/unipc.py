"""UniPC (arXiv 2302.04867): a predictor and a corrector of one form, at one call a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.denoiser import Denoiser
from core.prediction import Prediction
from core.schedule import NoiseSchedule, per_sample
from core.solvers.ddim import ddim_step
from core.solvers.exponential import half_log_snr, hold_x0, is_finite_step, remember

__all__ = ["UniPC", "UniPCState"]


@dataclass(frozen=True, kw_only=True, eq=False)
class UniPCState:
    """What a step needs of those before it.

    history  the last predictions, the newest first: the newest is that of the last step's start
    x        the corrected x [B, ...] at the newest's time, None before the first step
    """

    history: tuple[Prediction, ...] = ()
    x: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class UniPC:
    """UniP-p, and with `corrected` UniC-p too, on x0.

    `b` is the paper's B(h): "bh1" is h, "bh2" is e^h - 1. The corrector of a step uses the call
    that the next step makes anyway, so every step is one call, and the last state of a run is the
    predictor's. The order is p alone and p + 1 corrected, from a history given to it; the first
    steps from `start` have the order that their history allows.
    """

    p: Literal[1, 2, 3] = 2
    b: Literal["bh1", "bh2"] = "bh2"
    corrected: bool = True

    def __post_init__(self) -> None:
        if self.p not in (1, 2, 3):
            raise ValueError(f"UniPC's p must be 1, 2 or 3, got {self.p}.")
        if self.b not in ("bh1", "bh2"):
            raise ValueError(f'UniPC\'s b must be "bh1" or "bh2", got {self.b!r}.')

    @property
    def order(self) -> int:
        return self.p + 1 if self.corrected else self.p

    def start(self) -> UniPCState:
        return UniPCState()

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: UniPCState,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, UniPCState]:
        schedule = denoiser.schedule
        now = denoiser(x, t)
        if self.corrected and state.x is not None and is_finite_step(schedule, t, t):
            x = self._advance(schedule, state.x, state.history, now)
        history = remember(state.history, now, self.p)
        if not is_finite_step(schedule, t, s):
            # Nothing to correct next: this step was no UniP step.
            return ddim_step(Prediction.from_x0(now.x0, x, t, schedule), s), UniPCState(
                history=history
            )
        return self._advance(schedule, x, history, s), UniPCState(history=history, x=x)

    def _advance(
        self,
        schedule: NoiseSchedule,
        x: Tensor,
        history: tuple[Prediction, ...],
        end: Prediction | Tensor,
    ) -> Tensor:
        """x at history[0].t to `end`: to a time by the predictor, or to the time of a
        prediction, which the corrector uses with the history.
        """
        newest = history[0]
        corrects = isinstance(end, Prediction)
        s = end.t if corrects else end
        half_t = half_log_snr(schedule, newest.t)
        h = half_log_snr(schedule, s) - half_t
        x_s = hold_x0(schedule, x, newest.x0, newest.t, s)
        others = [*history[1:], end] if corrects else list(history[1:])
        if not others:
            return x_s
        ratios = torch.stack([(half_log_snr(schedule, other.t) - half_t) / h for other in others])
        weights = self._weights(ratios, h)
        scale = -schedule.alpha(s) * self._b_of_h(h)
        for other, ratio, weight in zip(others, ratios, weights, strict=True):
            x_s = x_s + per_sample(scale * weight / ratio, x) * (other.x0 - newest.x0)
        return x_s

    def _b_of_h(self, h: Tensor) -> Tensor:
        # x0 is integrated against e^lambda, eps against e^-lambda: h changes its sign.
        return -h if self.b == "bh1" else torch.expm1(-h)

    def _weights(self, ratios: Tensor, h: Tensor) -> Tensor:
        """a_m [M, B] for ratios [M, B]: from M = 2 on exact for an x0 of degree M in lambda."""
        if len(ratios) == 1:
            # Any a_1 = 1/2 + O(h) serves; the paper takes the limit.
            return torch.full_like(ratios, 0.5)
        minus_h, rows, right = -h, [], []
        phi = torch.expm1(minus_h) / minus_h
        for n in range(1, len(ratios) + 1):
            # phi_{n+1}(-h) = (phi_n(-h) - 1/n!) / (-h), where phi_1(z) = (e^z - 1) / z.
            phi = (phi - 1 / math.factorial(n)) / minus_h
            rows.append(ratios ** (n - 1))
            right.append(minus_h * phi * math.factorial(n) / self._b_of_h(h))
        matrix = torch.stack(rows).permute(2, 0, 1)
        return torch.linalg.solve(matrix, torch.stack(right).mT).mT
