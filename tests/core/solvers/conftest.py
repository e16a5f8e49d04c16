"""How the tests of solvers measure an order, and compare with diffusers' schedulers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from core.denoiser import Conditioning, Denoiser
from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture, MixtureDenoiser
from core.prediction import Prediction
from core.schedule import FlowSchedule, NoiseSchedule, VPSchedule, from_diffusers
from core.solvers.sampling import Solver, log_snr_times, sample

START, END = 0.5, 0.1


class _SmoothEps:
    """eps = a smooth function of x and t, for steps to be compared on."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        wave = torch.cos(5 * t).reshape(-1, *[1] * (x_t.ndim - 1))
        return Prediction.from_eps(torch.tanh(x_t) * wave + 0.3 * wave, x_t, t, self.schedule)


@pytest.fixture(params=[VPSchedule(), FlowSchedule()], ids=["vp", "flow"])
def main_schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return request.param


@pytest.fixture
def orders(mixture_1d: GaussianMixture) -> Callable[..., list[float]]:
    """Slopes of the error at `end`, from `start`, against the exact flow, for doubled steps.

    `given` is how many predictions before the start, exact and on the same grid, a multistep
    solver finds in its state; `make_state` turns those predictions, the newest first, into it.
    `denoiser` and `exact` are for a flow that is not the mixture's: what the solver is given, and
    a function of (x, start, end) to where that flow leads.
    """

    def measure(
        solver: Solver[Any],
        schedule: NoiseSchedule,
        steps: Sequence[int],
        *,
        given: int = 0,
        make_state: Callable[[tuple[Prediction, ...]], Any] = lambda history: history,
        times_of: Callable[..., Tensor] = log_snr_times,
        start: float = START,
        end: float = END,
        denoiser: Denoiser | None = None,
        exact: Callable[[Tensor, float, float], Tensor] | None = None,
    ) -> list[float]:
        x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
        flow = ExactFlowMap(mixture_1d, schedule)
        denoiser = denoiser or MixtureDenoiser(mixture_1d, schedule)

        def filled(value: float) -> Tensor:
            return torch.full((len(x),), value, dtype=torch.float64)

        wanted = exact(x, start, end) if exact else flow(x, filled(start), filled(end))
        errors = []
        for n in steps:
            times = times_of(schedule, start, end, n)
            if not given:
                reached = sample(denoiser, solver, times, x).x
            else:
                gap = schedule.log_snr(times[:2]).diff().item()
                history = []
                for k in range(1, given + 1):
                    level = schedule.log_snr(times[:1]).item() - k * gap
                    t = schedule.t_of_log_snr(filled(level))
                    history.append(denoiser(flow(x, filled(start), t), t))
                state, reached = make_state(tuple(history)), x
                for t, s in itertools.pairwise(times.tolist()):
                    reached, state = solver.step(denoiser, reached, filled(t), filled(s), state)
            errors.append((reached - wanted).square().mean().sqrt().item())
        return [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]

    return measure


@pytest.fixture
def steps_with_diffusers(
    generator: torch.Generator,
) -> Callable[..., tuple[list[Tensor], list[Tensor]]]:
    """Our states and theirs, through all timesteps of a scheduler but the step to its end."""

    def run(scheduler: Any, solver: Solver[Any]) -> tuple[list[Tensor], list[Tensor]]:
        schedule = from_diffusers(scheduler)
        denoiser = _SmoothEps(schedule)
        x = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
        last = scheduler.config.num_train_timesteps - 1
        timesteps = scheduler.timesteps.double()
        ours = list(sample(denoiser, solver, timesteps / last, x).states[1:])
        theirs = []
        for timestep in scheduler.timesteps[:-1]:
            t = (timestep.double() / last).expand(len(x))
            x = scheduler.step(denoiser(x, t).eps, timestep, x, return_dict=False)[0].double()
            theirs.append(x)
        return ours, theirs

    return run
