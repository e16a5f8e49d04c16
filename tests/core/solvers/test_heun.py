"""Heun: second order on any schedule, EDM's own algorithm on VE, and the schedule's ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from core.exact_flow import ExactFlowMap
from core.mixture import GaussianMixture, MixtureDenoiser
from core.schedule import CosineSchedule, FlowSchedule, NoiseSchedule, VESchedule
from core.solvers.ddim import DDIM
from core.solvers.heun import Heun
from core.solvers.sampling import sample


def filled(n: int, value: float) -> Tensor:
    return torch.full((n,), value, dtype=torch.float64)


def grid(n: int = 33) -> Tensor:
    return torch.linspace(-1.5, 1.5, n, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.1), (0.1, 0.5)], ids=["denoise", "invert"])
def test_order_is_two(
    schedule: NoiseSchedule, orders: Callable[..., list[float]], start: float, end: float
) -> None:
    slopes = orders(Heun(), schedule, (128, 256, 512), start=start, end=end)
    assert slopes == pytest.approx([Heun().order] * 2, abs=0.06)


def test_order_holds_in_two_dimensions(mixture_2d: GaussianMixture) -> None:
    schedule = FlowSchedule()
    x = torch.cat([grid(9), grid(9).flip(0) + 0.3], 1)
    exact = ExactFlowMap(mixture_2d, schedule)(x, filled(9, 0.5), filled(9, 0.1))
    denoiser = MixtureDenoiser(mixture_2d, schedule)
    errors = []
    for steps in (64, 128):
        times = torch.linspace(0.5, 0.1, steps + 1, dtype=torch.float64)
        errors.append((sample(denoiser, Heun(), times, x).x - exact).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.06)


def test_on_ve_it_is_edms_algorithm(mixture_1d: GaussianMixture) -> None:
    """Algorithm 1 of arXiv 2206.00364 without churn, written with its own D and d."""
    schedule = VESchedule(sigma_min=0.02, sigma_max=10.0)
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    times = torch.linspace(1, 0, 9, dtype=torch.float64)
    start = 10 * grid()
    sigmas = schedule.sigma(times).tolist()

    def slope(x: Tensor, index: int) -> Tensor:
        return (x - denoiser(x, times[index].expand(len(x))).x0) / sigmas[index]

    x = start
    for index in range(8):
        step = sigmas[index + 1] - sigmas[index]
        first = slope(x, index)
        second = slope(x + step * first, index + 1)
        x = x + step * (first + second) / 2
    torch.testing.assert_close(sample(denoiser, Heun(), times, start).x, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", [FlowSchedule(), CosineSchedule()])
def test_first_and_last_steps_at_the_ends_are_ddims(
    schedule: NoiseSchedule, mixture_1d: GaussianMixture
) -> None:
    denoiser = MixtureDenoiser(mixture_1d, schedule)
    times = torch.linspace(1, 0, 33, dtype=torch.float64)
    path = sample(denoiser, Heun(), times, grid())
    assert path.nfe == 2 * 32 - 2
    first = sample(denoiser, DDIM(), times[:2], grid()).x
    assert torch.equal(path.states[1], first)
    last = sample(denoiser, DDIM(), times[-2:], path.states[-2]).x
    assert torch.equal(path.x, last)
    exact = ExactFlowMap(mixture_1d, schedule)(grid(), filled(33, 1), filled(33, 0))
    by_ddim = sample(denoiser, DDIM(), times, grid()).x

    def error(x: Tensor) -> float:
        return (x - exact).square().mean().sqrt().item()

    assert error(path.x) < 0.5 * error(by_ddim)
