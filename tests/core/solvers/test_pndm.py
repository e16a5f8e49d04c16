"""PNDM: its order against the exact flow, diffusers' steps, calls, and the ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch import Tensor

from core.denoiser import Conditioning
from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture, MixtureDenoiser
from core.prediction import Prediction
from core.schedule import FlowSchedule, NoiseSchedule, from_diffusers
from core.solvers.ddim import DDIM
from core.solvers.pndm import PNDM
from core.solvers.sampling import sample


def even_times(schedule: NoiseSchedule, start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def test_order_is_two(main_schedule: NoiseSchedule, orders: Callable[..., list[float]]) -> None:
    slopes = orders(PNDM(), main_schedule, (64, 128, 256), times_of=even_times)
    assert slopes == pytest.approx([2, 2], abs=0.15)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # in diffusers itself
def test_steps_are_diffusers(generator: torch.Generator) -> None:
    """Theirs makes each call a step of its own, on whole timesteps: ours on the same ones."""
    scheduler = PNDMScheduler(skip_prk_steps=False)
    scheduler.set_timesteps(50)
    timesteps = torch.as_tensor(scheduler.timesteps)
    schedule = from_diffusers(scheduler)

    def eps_of(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x) * torch.cos(5 * t).reshape(-1, 1)

    class Smooth:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
            return Prediction.from_eps(eps_of(x_t, t), x_t, t, schedule)

    start = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    theirs, x = {}, start
    for index, timestep in enumerate(timesteps[:-1]):
        t = (timestep.double() / 999).expand(4)
        x = scheduler.step(eps_of(x, t), int(timestep), x, return_dict=False)[0]
        theirs[index] = x
    # Twelve calls for the first three steps, then one a step.
    visited = [timesteps[0], timesteps[4], timesteps[8]]
    times = torch.stack([*visited, *timesteps[12:]]).double() / 999
    path = sample(Smooth(), PNDM(), times, start)
    assert path.nfe == 12 + len(times) - 1 - 3
    for k in (1, 2, 3):
        torch.testing.assert_close(path.states[k], theirs[4 * k - 1], rtol=1e-4, atol=1e-4)
    for k in range(4, len(times)):
        torch.testing.assert_close(path.states[k], theirs[8 + k], rtol=1e-4, atol=1e-4)


def test_calls_and_ends(mixture_1d: GaussianMixture) -> None:
    schedule = FlowSchedule()
    times = torch.linspace(1, 0, 41, dtype=torch.float64)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    ends = torch.ones(9, dtype=torch.float64)
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    exact = ExactFlowMap(mixture_1d, schedule)(x, ends, 0 * ends)
    path = sample(denoiser, PNDM(), times, x)
    assert path.nfe == 40 + 9
    by_ddim = (sample(denoiser, DDIM(), times, x).x - exact).abs().mean()
    assert (path.x - exact).abs().mean() < 0.6 * by_ddim
