"""The Solver contract, and the loop that runs any solver over given times."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.prediction import Prediction
from core.schedule import NoiseSchedule

__all__ = ["Solver", "Trajectory", "log_snr_times", "sample"]

StateT = TypeVar("StateT")


class Solver(Protocol[StateT]):
    """One step of the reverse (or forward) process, from t to s.

    A solver is a value without memory: what a multistep solver remembers of earlier steps is the
    state that `step` hands on, which is None for a one-step solver.
    """

    @property
    def order(self) -> int:
        """The power of the step size with which the error over a fixed interval falls."""
        ...

    def start(self) -> StateT:
        """The state before the first step."""
        ...

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: StateT,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, StateT]:
        """x [B, ...] at t [B] to x at s [B], with the next state.

        The denoiser comes with its conditioning bound, so it is called as denoiser(x, t).
        Solvers that draw noise raise ValueError without a generator.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """What `sample` went through: N + 1 times, the states at them, and the calls it took."""

    times: Tensor
    """[N + 1], in the order visited."""
    states: tuple[Tensor, ...]
    """N + 1 tensors [B, ...]; the first is the given x."""
    nfe: int
    """Calls of the denoiser; a guided denoiser's call counts once, whatever it calls."""

    @property
    def x(self) -> Tensor:
        """The last state [B, ...]."""
        return self.states[-1]


def sample(
    denoiser: Denoiser,
    solver: Solver[StateT],
    times: Tensor,
    x: Tensor,
    cond: Conditioning | None = None,
    generator: torch.Generator | None = None,
) -> Trajectory:
    """Run `solver` from x [B, ...] at times[0] through all of `times` [N + 1].

    Falling times denoise, rising ones invert; anything else raises ValueError. Gradients flow
    through: call it under torch.no_grad() where none is wanted.
    """
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"times must have shape [N + 1] with N >= 1, got {list(times.shape)}.")
    steps = times.diff()
    if not bool((steps < 0).all() | (steps > 0).all()):
        raise ValueError("times must fall strictly (to denoise) or rise strictly (to invert).")
    bound = _BoundDenoiser(denoiser, cond)
    states = [x]
    state = solver.start()
    per_sample_times = times.to(x.device)[:, None].expand(-1, len(x))
    for t, s in pairwise(per_sample_times.unbind()):
        x, state = solver.step(bound, x, t, s, state, generator)
        states.append(x)
    return Trajectory(times=times, states=tuple(states), nfe=bound.calls)


def log_snr_times(schedule: NoiseSchedule, start: float, end: float, steps: int) -> Tensor:
    """steps + 1 float64 times from `start` to `end`, equally spaced in log-SNR.

    Raises ValueError for an end whose log-SNR is infinite.
    """
    log_snr = schedule.log_snr(torch.tensor([start, end], dtype=torch.float64))
    if not bool(torch.isfinite(log_snr).all()):
        raise ValueError(
            f"The log-SNR at t = {start:g} or {end:g} is infinite, so times cannot be spaced "
            "equally in it. Stay inside that end, or use torch.linspace in t."
        )
    fractions = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    times = schedule.t_of_log_snr(torch.lerp(log_snr[0], log_snr[1], fractions))
    times[0], times[-1] = start, end
    return times


class _BoundDenoiser:
    """A denoiser with its conditioning, counting its calls."""

    def __init__(self, denoiser: Denoiser, cond: Conditioning | None) -> None:
        self._denoiser = denoiser
        self._cond = cond
        self.calls = 0

    @property
    def schedule(self) -> NoiseSchedule:
        return self._denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        self.calls += 1
        return self._denoiser(x_t, t, self._cond if cond is None else cond)
